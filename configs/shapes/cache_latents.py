"""Training clips of the embedded model as latents."""
vae = dict(type="OpenSoraVAE_V1_2", from_pretrained="outputs/shapes/vae/vae", micro_batch_size=17)
dataset = dict(type="ShapesDataset", length=5_000, seed=2)
shard_size = 100
dtype = "bf16"
out = "outputs/shapes/latents"
