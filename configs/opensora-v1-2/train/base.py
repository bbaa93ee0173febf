"""Training Open-Sora v1.2 on captioned videos: a CSV with columns path, text, num_frames, height, width."""
model = dict(type="STDiT3-XL/2", from_pretrained="hpcai-tech/OpenSora-STDiT-v3", qk_norm=True,
             grad_checkpoint=True)
vae = dict(
    type="OpenSoraVAE_V1_2", from_pretrained="hpcai-tech/OpenSora-VAE-v1.2", micro_frame_size=17,
    micro_batch_size=4,
)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=300)
dataset = dict(type="VariableVideoTextDataset", data_path="data/videos.csv", transform_name="resize_crop",
               substitute=True)
flow = dict(use_timestep_transform=True, sample_method="logit-normal")
objective = dict(
    mask_ratios=dict(
        random=0.05, interpolate=0.005, quarter_random=0.005, quarter_head=0.005, quarter_tail=0.005,
        quarter_head_tail=0.005, image_random=0.025, image_head=0.05, image_tail=0.025, image_head_tail=0.025,
    ),
)
loop = dict(lr=1e-4, warmup=1000, decay_fraction=0.0, ema_decay=0.99, log_every=10, ckpt_every=200)
workers = 8
seed = 42
