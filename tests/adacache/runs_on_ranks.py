"""Runs of toy models alone or on the ranks of a torchrun; `test_ranks.py` starts and compares them.

Tokens are split by patches, as sequence parallelism does, and rows by their kind, as guidance on two ranks.
"""
from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from torchrun import counted, save_results  # noqa: E402
from toy_dit import ScriptedDiT, noise, play, sample, toy  # noqa: E402

from adacache import AdaCacheConfig, FixedSchedule, MoRegConfig, Ranks, adaptive_cache  # noqa: E402
from adacache.ranks import ALONE  # noqa: E402

STEPS, VIDEOS, T, S = 16, 4, 3, 5
# thresholds within the spread of the toy's distances, so that videos differ
CODEBOOK = [(0.105, 5), (0.112, 4), (0.12, 3), (0.14, 2), (9.0, 1)]
MOVING = [(0.15, 4), (0.2, 3), (0.24, 2), (9.0, 1)]
MOREG = MoRegConfig(window=(2, 14), scale=0.4, power=1, gradient=1, strides=(1, 2))
SETTINGS: dict[str, dict[str, Any]] = {
    "distance": {},
    "moreg": {"moreg": MOREG, "codebook": MOVING},
    "l2": {"metric": "l2"},
    "cosine": {"metric": "cosine", "codebook": [(0.005, 4), (0.006, 3), (0.008, 2), (9.0, 1)]},
    "every block": {"moreg": MOREG, "granularity": "block", "codebook": MOVING,
                    "probes": ["blocks.0.attn", "blocks.2.cross_mlp"]},
    "batch": {"decide": "batch", "forecast": 1},
    "guard": {"guard": 0.17},
    "forecast": {"forecast": 2, "guard": 0.05, "codebook": [(0.112, 6), (9.0, 4)]},
    "all": {"forecast": 2, "guard": 0.05, "moreg": MOREG, "codebook": [(0.15, 6), (9.0, 4)]},
    "replay": {"schedule": FixedSchedule((0, 1, 2, 5, 9, 12), STEPS), "forecast": 2},
}


@dataclass(frozen=True)
class Part:
    """What a rank has of a video: number `patches` of `of_patches` parts of its patches, so the rows."""

    patches: int = 0
    of_patches: int = 1
    rows: int = 0
    of_rows: int = 1

    def of(self, x: Tensor) -> Tensor:
        """x: [B, (T S), C], conditional rows first."""
        frames = rearrange(x.chunk(self.of_rows)[self.rows], "b (t s) c -> b t s c", t=T)
        return frames.tensor_split(self.of_patches, dim=2)[self.patches].flatten(1, 2)


WHOLE = Part()


def videos() -> Tensor:
    """[2 VIDEOS, (T S), C]; very different ones, and patches differ too."""
    of_videos = torch.linspace(0.3, 3.0, VIDEOS).repeat(2)[:, None, None]
    of_patches = torch.linspace(0.2, 2.0, S).repeat(T)[:, None]
    return noise(rows=2 * VIDEOS, tokens=T * S, seed=3) * of_videos * of_patches


def run(name: str, part: Part = WHOLE, ranks: Ranks = ALONE, x: Tensor | None = None) -> dict[str, Any]:
    x = part.of(videos() if x is None else x)
    model = toy(S=x.shape[1] // T)
    config = AdaCacheConfig(**{"codebook": CODEBOOK, "probes": ["blocks.1.attn"], **SETTINGS[name]})
    begun: list[None] = []
    told = replace(ranks, collective=lambda: nullcontext(begun.append(None)))
    with counted() as calls, adaptive_cache(model, config, STEPS, told) as session:
        out = sample(model, STEPS, x)
    return {"out": out, "trace": session.trace.to_json(), "calls": calls, "part": astuple(part),
            "begun": len(begun)}


def broken_on_one_rank(rank: int, ranks: Ranks) -> dict[str, Any]:
    """Residuals that never change, so that every second step would do; at step 3 one of rank 1 is NaN."""
    residuals = [torch.ones(2, T, 1) for _ in range(10)]
    if rank == 1:
        residuals[3] = torch.full((2, T, 1), math.nan)
    config = AdaCacheConfig(codebook=[(1.5, 2)], probes=["blocks.0.attn"], granularity="block",
                            decide="batch")
    model = ScriptedDiT(residuals)
    with adaptive_cache(model, config, 10, ranks) as session:
        play(model, 10)
    return session.trace.to_json()


def refused(ranks: Ranks, **settings: Any) -> str:
    try:
        with adaptive_cache(toy(), AdaCacheConfig(probes=["blocks.1.attn"], **settings), STEPS, ranks):
            return "opened"
    except ValueError as error:
        return str(error)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    everyone = dist.group.WORLD
    # rows on two halves of the ranks, patches on those of a half: ranks 0 and world / 2 have the same patches
    half, rows = world // 2, None
    for first in range(half):
        group = dist.new_group([first, first + half])
        rows = group if rank % half == first else rows
    pairs = [dist.new_group([first, first + 1]) for first in range(0, world, 2)]
    results: dict[str, Any] = {"patches": {}, "rows": {}}
    for name in SETTINGS:
        results["patches"][name] = run(name, Part(rank, world), Ranks(everyone))
        results["rows"][name] = run(name, Part(rank % half, half, rank // half, 2), Ranks(everyone, rows))
    # pairs of ranks with other videos each
    pair = rank // 2
    results["pairs"] = run("moreg", Part(rank % 2, 2), Ranks(pairs[pair]), videos()[pair::VIDEOS])
    results["broken"] = broken_on_one_rank(rank, Ranks(everyone))
    results["refused"] = [refused(Ranks(everyone, rows), decide="row"),
                          refused(Ranks(everyone, rows), rows_per_video=1)]
    save_results(results, folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
