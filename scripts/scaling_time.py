"""One video on one rank and on all ranks of a torchrun: how long it takes, and what they send one another."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from bytes_sent import counted
from denoising_time import Run, time_run

from adacache import AdaCacheConfig
from opensora.parallel import ALONE, Mesh, of_all_processes, rank, world_size
from opensora.pipeline import Pipeline
from opensora.utils.sample_request import SampleRequest
from opensora.utils.stopwatch import Stopwatch


@dataclass(frozen=True)
class Sharing:
    """How many ranks share a video's rows (cfg) and tokens (sp)."""

    cfg: int
    sp: int

    @property
    def ranks(self) -> int:
        return self.cfg * self.sp

    @classmethod
    def all_of(cls, world: int) -> list[Sharing]:
        """One rank, all ranks along sp, and along both where they are even in number."""
        return [cls(1, 1), cls(1, world), *([cls(2, world // 2)] if world % 2 == 0 else [])]


def scaling(pipeline: Pipeline, requests: Sequence[SampleRequest], cache: AdaCacheConfig,
            repeats: int) -> list[dict[str, Any]]:
    """One entry for each sharing; runs of all of them take turns.

    pipeline: on this rank alone.  requests: one video.
    """
    shared = {sharing: on_mesh(pipeline, sharing) for sharing in Sharing.all_of(world_size())}
    seconds: dict[Sharing, list[dict[str, float]]] = {sharing: [] for sharing in shared}
    for repeat in range(-1, repeats):  # the first round warms up
        for sharing, own in shared.items():
            took = together(own, lambda own=own: stages(own, requests, cache))
            if repeat >= 0:
                seconds[sharing].append(took)
    return [{"ranks": sharing.ranks, "cfg_size": sharing.cfg, "sp_size": sharing.sp,
             **{stage: statistics.median(each[stage] for each in seconds[sharing])
                for stage in ("plain_seconds", "cached_seconds", "decode_seconds")},
             **together(own, lambda own=own: traffic(own, requests, cache))}
            for sharing, own in shared.items()]


def on_mesh(pipeline: Pipeline, sharing: Sharing) -> Pipeline:
    mesh = ALONE if sharing.ranks == 1 else Mesh.of(sharing.sp, sharing.cfg)
    config = replace(pipeline.config, cfg_size=sharing.cfg, sp_size=sharing.sp)
    return Pipeline(config, pipeline.scheduler, pipeline.model, pipeline.vae, pipeline.text_encoder, mesh)


def together(pipeline: Pipeline, work: Any) -> Any:
    """`work` on all ranks of the mesh, the first of all where that is one; what it came to there."""
    dist.barrier()
    own = [work()] if pipeline.mesh.video is not None or rank() == 0 else []
    return of_all_processes(own)[0]


def stages(pipeline: Pipeline, requests: Sequence[SampleRequest], cache: AdaCacheConfig) -> dict[str, float]:
    """Seconds of denoising with and without cache, and of decoding."""
    plain, cached = (time_run(pipeline, requests, choice).seconds for choice in (None, cache))
    watch = Stopwatch(pipeline.device)
    with watch("decode"):
        decode(pipeline, requests)
    return {"plain_seconds": plain, "cached_seconds": cached, "decode_seconds": watch.seconds["decode"]}


@torch.no_grad()
def decode(pipeline: Pipeline, requests: Sequence[SampleRequest]) -> None:
    """Noise, which takes as long as a video."""
    z = pipeline.noise(requests, clip=0).to(pipeline.vae.dtype)
    pipeline.vae.decode(z, pipeline.config.clip_frames, pipeline.mesh.video)


def traffic(pipeline: Pipeline, requests: Sequence[SampleRequest], cache: AdaCacheConfig) -> dict[str, int]:
    """Bytes that the first rank sends: around a computed and a reused step, for a decision, to decode."""
    with counted() as calls:
        marks: list[tuple[int, int]] = [(0, 0)]
        run = time_run(pipeline, requests, cache, after_step=lambda: marks.append(
            tuple(sum(calls[kind]) for kind in ("all_to_all", "all_reduce"))))
        moved, decided = ([after[i] - before[i] for before, after in zip(marks, marks[1:], strict=False)]
                          for i in (0, 1))
        before = sum(calls["all_to_all"])
        decode(pipeline, requests)
        return {**of_steps(run, moved, decided), "decode_bytes": sum(calls["all_to_all"]) - before}


def of_steps(run: Run, moved: Sequence[int], decided: Sequence[int]) -> dict[str, int]:
    """moved, decided: bytes of tokens and of decisions, for each step."""
    computed = set(run.computed_steps[0])
    of = {True: [], False: []}
    for step, sent in enumerate(moved):
        of[step in computed].append(sent)
    # the first computed step decides nothing
    return {"computed_step_bytes": max(of[True]), "reused_step_bytes": max(of[False], default=0),
            "decision_bytes": max(decided)}
