"""Ablation of the metric: L1, as published."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", metric="l1")
