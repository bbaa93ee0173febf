"""Ablation of the probe: the first temporal block."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", probes=("temporal_blocks.0.attn",))
