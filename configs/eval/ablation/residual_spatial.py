"""Ablation of the residual: spatial attention."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", probes=("spatial_blocks.2.attn",))
