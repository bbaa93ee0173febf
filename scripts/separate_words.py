"""Set words apart that a text encoder confuses: `python scripts/separate_words.py ENCODER OUT left right`.

Gives them new embeddings, orthogonal to one another, and writes the encoder to OUT.  Of many draws it takes
the one whose words are furthest apart in the encoder's output, in the caption given by --caption.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from exit_status import exit_status
from torch import Tensor

import opensora.models  # noqa: F401  registers "t5"
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.registry import MODELS, build_module

CAPTION = "a large red square moves {} on a black background"
LENGTH = 1.5  # of the new embeddings, in median lengths of all


@torch.no_grad()
def least_distance(encoder: T5Encoder, captions: list[str]) -> float:
    """Between the outputs of any two captions' tokens where they differ, relative to their length."""
    ids, mask = encoder.tokenize(captions)
    position = int((ids != ids[0]).any(dim=0).nonzero()[0])
    states = encoder.model(ids, attention_mask=mask).last_hidden_state[:, position].float()
    distances = torch.pdist(states) / states.norm(dim=1).mean()
    return float(distances.min())


def draw(embeddings: Tensor, count: int, seed: int) -> Tensor:
    """`count` orthogonal vectors: [count, C]."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(embeddings.shape[1], count, generator=generator))
    return basis.T * embeddings.norm(dim=1).median() * LENGTH


@torch.no_grad()
def separate(encoder: T5Encoder, words: list[str], caption: str, draws: int) -> float:
    """Returns the least distance that was reached."""
    captions = [caption.format(word) for word in words]
    ids = [int(encoder.tokenize([word])[0][0, 0]) for word in words]
    weight = encoder.model.get_input_embeddings().weight
    before = weight.clone()

    def reached(seed: int) -> float:
        weight[ids] = draw(before, len(words), seed).to(weight.dtype)
        return least_distance(encoder, captions)

    return reached(max(range(draws), key=reached))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--caption", default=CAPTION)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--draws", type=int, default=60)
    args = parser.parse_args()

    def run() -> None:
        encoder = build_module(dict(type="t5", from_pretrained=args.encoder, model_max_length=args.max_length,
                                    device="cpu"), MODELS)
        print(f"least distance: {separate(encoder, args.words, args.caption, args.draws):.2f}")
        encoder.save_pretrained(args.out)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
