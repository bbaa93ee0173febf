"""The embedded model, every step computed."""
image_size = (128, 128)
num_frames = 51
fps = 24
seed = 1024
dtype = "fp32"
align = 5

prompt = "a large yellow circle moves left quickly on a gray background"

model = dict(type="STDiT3", from_pretrained="opensora/assets/shapes/transformer")
vae = dict(type="OpenSoraVAE_V1_2", from_pretrained="opensora/assets/shapes/vae", micro_batch_size=17)
text_encoder = dict(type="t5", from_pretrained="opensora/assets/shapes/text_encoder", model_max_length=32)
scheduler = dict(type="rflow", use_timestep_transform=True, num_sampling_steps=30, cfg_scale=5.0)
