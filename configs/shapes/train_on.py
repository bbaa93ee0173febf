"""The shipped transformer and text encoder, trained on with whole clips.

Latents by cache_latents.py, with --cfg-options vae.from_pretrained=opensora/assets/shapes/vae.
"""
_base_ = "train.py"
model = dict(_delete_=True, type="STDiT3", from_pretrained="opensora/assets/shapes/transformer")
text_encoder = dict(
    _delete_=True, type="t5", from_pretrained="opensora/assets/shapes/text_encoder", model_max_length=32)
stages = [dict(until=6000, latent_frames=15, num_frames=51, batch=16)]
loop = dict(lr=1.5e-3, muon_lr=2e-3, decay_fraction=0.7)
out = "outputs/shapes/diffusion_on"
seed = 1
