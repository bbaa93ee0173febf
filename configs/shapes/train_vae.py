"""The embedded model's autoencoder: published layout, small widths."""
model = dict(
    type="OpenSoraVAE_V1_2",
    micro_batch_size=None,
    spatial_config=dict(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=8, sample_size=128,
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ),
    temporal_config=dict(filters=32, num_res_blocks=1, channel_multipliers=(1, 2, 2, 2), num_groups=8),
)
dataset = dict(type="ShapesDataset", length=1_000_000, seed=1)
stages = [
    dict(kind="spatial", steps=1000, lr=2e-3, warmup=50, decay_fraction=0.6, ema_decay=0.99,
         batch=dict(clips=4, frames=8, size=64), objective=dict(kl_weight=1e-5)),
    dict(kind="temporal", steps=600, lr=2e-3, warmup=50, decay_fraction=0.6, ema_decay=0.99,
         batch=dict(clips=8, frames=17, size=64), objective=dict(kl_weight=1e-5, decoded=2)),
]
statistics_clips = 200
out = "outputs/shapes/vae"
