"""The embedded model's autoencoder: published layout, small widths."""
model = dict(
    type="OpenSoraVAE_V1_2",
    micro_batch_size=None,
    spatial_config=dict(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=4,
        sample_size=128, block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ),
    temporal_config=dict(filters=32, num_res_blocks=1, channel_multipliers=(1, 2, 2, 2), num_groups=2),
)
dataset = dict(type="ShapesDataset", length=1_000_000, seed=1)
# per rank; trained on two ranks of one thread each
stages = [
    dict(kind="spatial", steps=4000, lr=1.5e-3, warmup=50, decay_fraction=0.5, ema_decay=0.99,
         dataset=dict(num_frames=1), batch=dict(clips=16, frames=1, size=64), objective=dict(kl_weight=1e-6)),
    dict(kind="temporal", steps=600, lr=1e-3, warmup=50, decay_fraction=0.6, ema_decay=0.99,
         dataset=dict(num_frames=17),
         batch=dict(clips=4, frames=17, size=64), objective=dict(kl_weight=1e-6, decoded=2)),
]
statistics_clips = 100
seed = 0
out = "outputs/shapes/vae"
