"""Seconds for one video on 1 to 64 GPUs, from those of one: `python scripts/predict_scaling.py [FILE]`.

FILE (configs/benchmark/h200.json) holds what one GPU took.  Compute is divided as the tokens are: the rank
that has most of them counts.  What ranks send, as counted by `benchmark.py --scaling`, is divided by a rate
that is assumed (LINKS).  Ranks split a spatial attention by heads (the default) or frames (`sp_attention`).
Text is left out.  The paper's GPU is taken for the measured one made slower by one factor, such that one GPU
takes as long as the paper says; its rows for more are then a test of the model.
Prints Markdown.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Any

from exit_status import exit_status

from adacache.config import one_of

MEASURED = Path(__file__).resolve().parents[1] / "configs/benchmark/h200.json"
STEPS, CACHED = 30, 12      # of a run, and computed ones of a cached run (`fast` on the embedded model)
GPUS, NODE = (1, 2, 4, 8, 16, 32, 64), 8
# AdaCache's on A100s, 480p: seconds without and with it
PAPER = {1: (54.02, 24.16), 2: (29.28, 14.02), 4: (18.08, 9.56), 8: (12.95, 7.78)}
CHUNK = 17                  # frames that the temporal decoder takes at once
ORDER = 2                   # of the forecast
DECISION = 64               # bytes of its sums


@dataclass(frozen=True)
class Links:
    """Bytes per second and GPU that all-to-alls reach, and seconds before the first byte: inside a node, and
    across nodes."""

    inside: float
    across: float
    wait_inside: float = 20e-6
    wait_across: float = 50e-6


# two thirds of the one-way rate of NVLink 4 and 3 (450 and 300 GB/s); four fifths of 400 and 200 Gbit/s a GPU
LINKS = {"NVIDIA H200": Links(300e9, 40e9), "A100": Links(200e9, 20e9)}


@dataclass(frozen=True)
class Size:
    """One size of video on one GPU.

    Seconds: of a computed and a reused step, both rows together; of decoding, its temporal part and its
    frames.  shares_decoding: False where one rank decodes, as in Open-Sora.
    """

    latent: tuple[int, int, int]
    frames: int
    pixels: tuple[int, int]
    depth: int
    hidden_size: int
    num_heads: int
    bytes_per_value: int
    computed_step: float
    reused_step: float
    decode_time: float
    decode_frames: float
    shares_decoding: bool = True

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> Size:
        return cls(**values["model"], **values["sizes"][name])

    @property
    def patches(self) -> int:
        """S, of a frame."""
        return ceil(self.latent[1] / 2) * ceil(self.latent[2] / 2)

    def work(self, sp: int, by: str) -> float:
        """The busiest rank's part of a step's operations, where spatial attentions are split by heads or
        frames.

        For each token a spatial attention's q, k, v and output are 8 C^2 and its products 4 S C.  A temporal
        one has 15 keys at most, a block's cross-attention is 4 C^2, its MLP 16 C^2."""
        C, products = self.hidden_size, 4 * self.patches
        switched, part = ((products, most(self.num_heads, sp)) if by == "heads" else
                          (8 * C + products, most(self.latent[0], sp)))
        share = switched / (2 * 28 * C + products)
        return (1 - share) * most(self.patches, sp) + share * part

    def slower(self, factor: float) -> Size:
        times = ("computed_step", "reused_step", "decode_time", "decode_frames")
        return replace(self, **{name: factor * getattr(self, name) for name in times})


def most(count: int, ranks: int) -> float:
    """The share of the rank that has most of `count` things."""
    return ceil(count / ranks) / count


def sending(size_bytes: float, calls: int, ranks: int, links: Links, apart: int = 1) -> float:
    """Seconds of all-to-alls: the part that leaves the node by the slower link.  The ranks are every
    `apart`-th."""
    if ranks == 1:
        return 0.0
    outside = max(0, ranks - max(1, NODE // apart)) / (ranks - 1)
    wait = links.wait_across if outside else links.wait_inside
    return size_bytes * ((1 - outside) / links.inside + outside / links.across) + calls * wait


def step_bytes(size: Size, cfg: int, sp: int, by: str = "heads") -> int:
    """What a rank sends around the spatial attentions of a computed step: by heads q, k, v and the output, by
    frames tokens there and back."""
    T, s, C = size.latent[0], ceil(size.patches / sp), size.hidden_size
    values = (4 * T * s * ceil(size.num_heads / sp) * (C // size.num_heads) if by == "heads" else
              2 * ceil(T / sp) * s * C)
    return size.depth * (2 // cfg) * (sp - 1) * values * size.bytes_per_value


def output_bytes(size: Size, cfg: int, sp: int) -> int:
    """And at every step: what its tokens came to, 32 values each."""
    own_tokens = (2 // cfg) * size.latent[0] * ceil(size.patches / sp)
    return 32 * own_tokens * (sp - 1) * size.bytes_per_value


def prediction_bytes(size: Size, cfg: int) -> int:
    """And its row's prediction, in fp32."""
    return (cfg - 1) * 4 * 4 * prod(size.latent)


def forecast_bytes(size: Size, cfg: int, sp: int) -> int:
    """And in a computed step of a cached run, where the two rows are on two ranks: half of their tokens of
    change, differences and residual."""
    own_tokens = size.latent[0] * ceil(size.patches / sp)
    return (cfg - 1) * (2 + ORDER) * (own_tokens // 2) * size.hidden_size * size.bytes_per_value


def decode_bytes(size: Size, ranks: int) -> int:
    """What the first rank sends: latents of its chunks of time, then pixels of its frames."""
    chunks, pixels = ceil(size.frames / CHUNK), prod(size.pixels)
    latents = min(size.frames, ceil(chunks / ranks) * CHUNK) * 4 * (pixels // 64)
    frames = ceil(size.frames / ranks) * 3 * pixels
    return (ranks - 1) * (latents + frames) * size.bytes_per_value


def seconds(size: Size, computed: float, cfg: int, sp: int, links: Links, by: str = "heads") -> float:
    """Of one video on cfg x sp ranks."""
    step = size.computed_step * size.work(sp, by) / cfg
    step += sending(step_bytes(size, cfg, sp, by), 2 * size.depth, sp, links)
    if computed < STEPS:
        step += sending(DECISION, 1, cfg * sp, links)
        step += sending(forecast_bytes(size, cfg, sp), 2 + ORDER, cfg, links, apart=sp)
    reused = size.reused_step * most(size.patches, sp) / cfg
    every = sending(output_bytes(size, cfg, sp), 1, sp, links)
    every += sending(prediction_bytes(size, cfg), 1, cfg, links, apart=sp)
    return computed * step + (STEPS - computed) * reused + STEPS * every + decoding(size, cfg * sp, links)


def decoding(size: Size, ranks: int, links: Links) -> float:
    ranks = ranks if size.shares_decoding else 1
    return (size.decode_time * most(ceil(size.frames / CHUNK), ranks)
            + size.decode_frames * most(size.frames, ranks)
            + sending(decode_bytes(size, ranks), 2, ranks, links))


def best(size: Size, computed: float, gpus: int, links: Links) -> tuple[float, int, int]:
    """(seconds, cfg, sp) of the fastest way to share one video."""
    ways = [(1, gpus), *([(2, gpus // 2)] if gpus % 2 == 0 else [])]
    return min((seconds(size, computed, cfg, sp, links), cfg, sp) for cfg, sp in ways if sp <= size.patches)


def prediction(size: Size, name: str, card: str) -> list[str]:
    lines = [f"| GPUs | cfg x sp | {name}, every step computed, s | {CACHED} of {STEPS}, s | by frames, s | "
             "times one GPU | videos an hour, all GPUs on one | each on its own |", f"|{'---|' * 8}"]
    alone = seconds(size, CACHED, 1, 1, LINKS[card])
    for gpus in GPUS:
        cached, cfg, sp = best(size, CACHED, gpus, LINKS[card])
        plain = seconds(size, STEPS, cfg, sp, LINKS[card])
        by_frames = seconds(size, CACHED, cfg, sp, LINKS[card], "frames")
        lines.append(f"| {gpus} | {cfg} x {sp} | {plain:.2f} | {cached:.2f} | {by_frames:.2f} | "
                     f"{alone / cached:.1f} | {3600 / cached:,.0f} | {3600 * gpus / alone:,.0f} |")
    return lines


def factor_of_paper(size: Size) -> float:
    """How much slower the paper's GPU is."""
    return PAPER[1][0] / seconds(size, STEPS, 1, 1, LINKS["A100"])


def computed_in_paper(size: Size) -> float:
    """Computed steps with which one GPU takes the paper's AdaCache time."""
    plain, none = (seconds(size, computed, 1, 1, LINKS["A100"]) for computed in (STEPS, 0))
    return STEPS * (PAPER[1][1] - none) / (plain - none)


def beside_paper(size: Size) -> list[str]:
    size = size.slower(factor_of_paper(size))
    as_published, cached = replace(size, shares_decoding=False), computed_in_paper(size)
    lines = ["| GPUs | plain: paper, s | model, one rank decodes | model, all decode | AdaCache: paper, s | "
             "model, one rank decodes | model, all decode |", "|---|---|---|---|---|---|---|"]
    for gpus, measured in PAPER.items():
        cells = []
        for paper, computed in zip(measured, (STEPS, cached), strict=True):
            cells += [paper, *(seconds(each, computed, 1, gpus, LINKS["A100"])
                               for each in (as_published, size))]
        lines.append(f"| {gpus} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", nargs="?", type=Path, default=MEASURED, metavar="FILE")
    args = parser.parse_args()

    def run() -> None:
        values = json.loads(args.measured.read_text())
        one_of("card", values["card"], tuple(LINKS))
        sizes = {name: Size.of(values, name) for name in values["sizes"]}
        if "480p" not in sizes:
            raise ValueError(f"sizes={list(sizes)}; allowed: with 480p, the size of the paper's rows")
        parts = [prediction(size, name, values["card"]) for name, size in sizes.items()]
        print("\n\n".join("\n".join(part) for part in (*parts, beside_paper(sizes["480p"]))))

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
