"""Ablation of the metric: L1, as published."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(metric="l1")
