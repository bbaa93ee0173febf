"""How long one denoising run takes, step by step."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from cache_choice import open_cache

from adacache import AdaCacheConfig, Ranks
from opensora.pipeline import Pipeline
from opensora.utils.sample_request import SampleRequest


@dataclass(frozen=True)
class Run:
    """Wall time of every step, the steps computed for each video, and the most that the cache held.

    bookkeeping: measuring and deciding, as clocked inside of the run, over all else of computed steps.
    """

    step_seconds: list[float]
    computed_steps: list[list[int]]
    cache_bytes: int
    residual_bytes: int  # of one residual: rows x tokens x width
    bookkeeping: float | None = None

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds)

    @property
    def computed(self) -> float:
        """Computed steps, mean over the videos."""
        return sum(map(len, self.computed_steps)) / len(self.computed_steps)

    @property
    def computed_seconds(self) -> list[float]:
        """Of the steps that were computed for all videos."""
        return [self.step_seconds[step] for step in sorted(set.intersection(*map(set, self.computed_steps)))]

    @property
    def reused_seconds(self) -> list[float]:
        """Of the steps that were computed for none."""
        computed = set().union(*self.computed_steps)
        return [s for step, s in enumerate(self.step_seconds) if step not in computed]


@torch.no_grad()
def time_run(pipeline: Pipeline, requests: Sequence[SampleRequest], cache: AdaCacheConfig | None,
             after_step: Callable[[], object] = lambda: None) -> Run:
    """Denoise `requests` as one batch.  A step's time includes its share of the sampler's work."""
    z, captions, mask = pipeline.first_clip(requests)
    ranks, clock = Ranks(pipeline.mesh.video, pipeline.mesh.cfg), Clock(pipeline.device)

    def progress(step: int, steps: int, session: object) -> None:
        clock.tick()
        after_step()

    _, runs = pipeline.denoise(z, captions, mask, requests, 0,
                               lambda model, steps: open_cache(cache, model, steps, ranks), progress)
    session, num_steps = runs[0].context, pipeline.scheduler.num_sampling_steps
    computed = [list(range(num_steps))] if session is None else [
        list(video.computed_steps) for video in session.trace]
    weight, (T, h, w) = pipeline.model.x_embedder.proj.weight, pipeline.model.patch_grid(z.shape[2:])
    residual = 2 * len(z) * T * h * w * len(weight) * weight.element_size()
    held, spent = (session.cache_bytes, session.clock.bookkeeping()) if session else (0, None)
    return Run(clock.intervals(), computed, held, residual, spent)


class Clock:
    """Times between ticks, each after the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ticks: list[float] = []
        self.tick()

    def tick(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ticks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.ticks)]
