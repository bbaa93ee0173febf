"""A small T5 encoder with a word-level tokenizer, to be trained together with the transformer."""
from __future__ import annotations

import torch
from transformers import T5Config, T5EncoderModel

from opensora.datasets.shapes import VOCABULARY
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.models.text_encoder.word_tokenizer import build_word_tokenizer
from opensora.registry import MODELS

VOCABULARIES = {"shapes": VOCABULARY}


@MODELS.register_module("t5-new")
def new_t5(vocabulary: str, model_max_length: int, d_model: int = 128, num_layers: int = 2,
           num_heads: int = 4, d_ff: int = 256, device: str | torch.device = "cpu") -> T5Encoder:
    """Random weights for the words of `vocabulary`.  Raises ValueError for an unknown one."""
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"text_encoder.vocabulary={vocabulary!r}; allowed: {', '.join(VOCABULARIES)}")
    tokenizer = build_word_tokenizer(VOCABULARIES[vocabulary], model_max_length)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=d_model, d_kv=d_model // num_heads, num_heads=num_heads, d_ff=d_ff,
        num_layers=num_layers, feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False,
        use_cache=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )
    return T5Encoder.from_parts(T5EncoderModel(config), tokenizer, model_max_length).to(device)
