"""The embedded model's transformer and text encoder: images, then short clips, then whole clips."""
model = dict(
    type="STDiT3", depth=4, hidden_size=192, num_heads=3, patch_size=(1, 4, 4), qk_norm=True,
    class_dropout_prob=0.1,
)
text_encoder = dict(type="t5-new", vocabulary="shapes", model_max_length=32, d_model=128, num_layers=2)
dataset = dict(type="LatentDataset", folder="outputs/shapes/latents")
flow = dict(use_timestep_transform=True, transform_scale=2.0)
objective = dict(
    train_text_encoder=True,
    mask_share=0.6,
    mask_ratios=dict(image_head=0.7, image_tail=0.15, quarter_head=0.15),
)
# batches per rank; trained on two ranks of one thread each
stages = [
    dict(until=1200, latent_frames=1, num_frames=1, batch=64),
    dict(until=2000, latent_frames=5, num_frames=17, batch=32),
    dict(until=7600, latent_frames=15, num_frames=51, batch=16),
]
loop = dict(lr=2e-3, muon_lr=3e-3, warmup=100, decay_fraction=0.35, ema_decay=0.998,
            log_every=20, ckpt_every=200)
sizes = dict(height=128, width=128, fps=24)
out = "outputs/shapes/diffusion"
seed = 0
