"""Ablation of the residual: spatial attention."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(probes=("spatial_blocks.2.attn",))
