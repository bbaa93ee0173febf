"""The embedded model with AdaCache."""
_base_ = "sample.py"
adacache = dict(codebook="fast", probes=("temporal_blocks.2.attn",))
