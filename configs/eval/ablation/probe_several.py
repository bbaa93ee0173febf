"""Ablation of the probe: three temporal blocks, by their mean."""
_base_ = "../../shapes/sample_adacache.py"
adacache = dict(codebook="published-fast",
                probes=("temporal_blocks.0.attn", "temporal_blocks.2.attn", "temporal_blocks.3.attn"))
