"""The released model's size at 480p and 2 s, bf16, with random weights: for a GPU."""
_base_ = "../opensora-v1-2/inference/480p_30.py"
prompt = "a large yellow circle moves left quickly on a gray background"
# captions of the embedded text encoder, so that nothing needs to be downloaded
model = dict(_delete_=True, type="STDiT3-XL/2", caption_channels=128, model_max_length=32)
vae = dict(_delete_=True, type="OpenSoraVAE_V1_2", micro_frame_size=17, micro_batch_size=4)
text_encoder = dict(_delete_=True, type="t5", from_pretrained="opensora/assets/shapes/text_encoder",
                    model_max_length=32)
# every third step, as random weights have no schedule of their own
adacache = dict(codebook=((1e9, 3),), probes=("temporal_blocks.13.attn",))
