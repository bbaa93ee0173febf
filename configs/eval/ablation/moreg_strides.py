"""Ablation of MoReg: frames compared at several distances."""
_base_ = "../../shapes/sample_adacache_moreg.py"
adacache = dict(codebook="published-fast", moreg=dict(strides=(1, 2, 4)))
