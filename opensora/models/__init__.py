"""The transformer, the autoencoder and the text encoder; importing this registers them."""
from opensora.models.stdit import stdit3 as stdit3
from opensora.models.text_encoder import t5 as t5
from opensora.models.vae import vae as vae
