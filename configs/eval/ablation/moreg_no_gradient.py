"""Ablation of MoReg: without the motion gradient."""
_base_ = "../../shapes/sample_adacache_moreg.py"
adacache = dict(codebook="published-fast", moreg=dict(gradient=0))
