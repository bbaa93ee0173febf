"""A model between the embedded and the released one, with random weights: 2 rows of 15 x 16 x 16 latents."""
_base_ = "../shapes/sample_adacache.py"
model = dict(_delete_=True, type="STDiT3", depth=8, hidden_size=256, num_heads=4, caption_channels=128,
             model_max_length=32)
# every third step; new temporal blocks are the identity, and have no change to measure
adacache = dict(_delete_=True, codebook=((1e9, 3),), probes=("spatial_blocks.3.attn",))
