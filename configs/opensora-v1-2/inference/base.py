"""Open-Sora v1.2 as released: 2 s, guidance 7.  Needs a resolution and a number of steps."""
aspect_ratio = "9:16"
num_frames = "2s"
fps = 24
multi_resolution = "STDiT2"
dtype = "bf16"
condition_frame_length = 5
align = 5
aes = 6.5

model = dict(type="STDiT3-XL/2", from_pretrained="hpcai-tech/OpenSora-STDiT-v3", qk_norm=True)
vae = dict(
    type="OpenSoraVAE_V1_2", from_pretrained="hpcai-tech/OpenSora-VAE-v1.2", micro_frame_size=17,
    micro_batch_size=4,
)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=300)
scheduler = dict(type="rflow", use_timestep_transform=True, cfg_scale=7.0)
