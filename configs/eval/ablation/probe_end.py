"""Ablation of the probe: the last temporal block."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", probes=("temporal_blocks.3.attn",))
