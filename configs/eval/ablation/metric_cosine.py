"""Ablation of the metric: cosine distance."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", metric="cosine")
