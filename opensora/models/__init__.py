"""The transformer, the autoencoder and the text encoder; importing this registers them."""
from opensora.models.vae import vae as vae
