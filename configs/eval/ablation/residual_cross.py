"""Ablation of the residual: cross-attention of the temporal block."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", probes=("temporal_blocks.2.cross",))
