"""Ablation of the residual: temporal attention, as published."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", probes=("temporal_blocks.2.attn",))
