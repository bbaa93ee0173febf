"""Ablation of the probe: a temporal block in the middle."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast", probes=("temporal_blocks.2.attn",))
