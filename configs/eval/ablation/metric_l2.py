"""Ablation of the metric: L2."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", metric="l2")
