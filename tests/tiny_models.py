"""Random models of a few thousand weights, saved in the layout of the released ones."""
from __future__ import annotations

from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel

from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config, config_of
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.models.text_encoder.word_tokenizer import build_word_tokenizer
from opensora.models.vae.vae import OpenSoraVAE
from opensora.utils.weights import save_weights

WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "right", "."]
TEXT_WIDTH, TEXT_LENGTH = 8, 12
SPATIAL = dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=32,
    block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
TEMPORAL = dict(filters=4, num_res_blocks=1, channel_multipliers=(1, 1, 1, 1), num_groups=4)

CONFIG = """
image_size = (32, 48)
num_frames = 17
fps = 24
seed = 7
dtype = "fp32"
device = "cpu"
prompt = "a red circle moves left"
model = dict(type="STDiT3", from_pretrained="{folder}/transformer")
vae = dict(type="OpenSoraVAE_V1_2", from_pretrained="{folder}/vae")
text_encoder = dict(type="t5", from_pretrained="{folder}/text_encoder", model_max_length=12)
scheduler = dict(type="rflow", use_timestep_transform=True, num_sampling_steps=6, cfg_scale=3.0)
"""


def save_tiny_models(folder: Path) -> Path:
    """Write transformer (depth 2), autoencoder, text encoder, and `sample.py`, a config that names them."""
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(depth=2, hidden_size=32, num_heads=2, caption_channels=TEXT_WIDTH,
                                model_max_length=TEXT_LENGTH))
    for parameter in model.parameters():  # a new model starts as the identity; this one shall do something
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    save_weights(model, folder / "transformer", config_of(model))
    vae = OpenSoraVAE(SPATIAL, TEMPORAL)
    save_weights(vae, folder / "vae", {"model_type": "OpenSoraVAE_V1_2", "spatial_config": SPATIAL,
                                       "temporal_config": TEMPORAL})
    text_model = T5EncoderModel(T5Config(
        vocab_size=3 + len(WORDS), d_model=TEXT_WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu"))
    text_encoder = T5Encoder.from_parts(text_model, build_word_tokenizer(WORDS), TEXT_LENGTH)
    text_encoder.save_pretrained(folder / "text_encoder")
    (folder / "sample.py").write_text(CONFIG.format(folder=folder))
    return folder
