"""How each rival finds its settings for a speed, on prompts of its own.

Thresholds: the smallest that is fast enough.  The offline schedule: the most steps that are.  The others: a
small grid, with the published settings in it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

from cache_choice import open_cache
from recorded_prompts import RecordedPrompts, as_options
from torch import nn
from trials import Outcome, Trials, say

from adacache import AdaCacheConfig
from adacache.calibrate import steps_for_reuse
from opensora.parallel import of_all_processes, rank, world_size
from opensora.pipeline import Pipeline
from opensora.utils.sample_request import SampleRequest
from rivals import PAB, RIVALS, DeltaDiT, FirstBlockCache, Rival, TeaCache, TGate, open_rival, rival_values
from rivals.teacache_fit import fitted, recorded_changes

LEAST, DOUBLINGS = 0.01, 10  # thresholds from 0.01 to 10.24
PRECISION = 1.05             # of a threshold: a smaller one by this factor is not fast enough
OFFLINE = "offline_schedule"  # AdaCache's own slots with given steps and plain reuse
NAMES = (*RIVALS, OFFLINE)

Settings = Rival | AdaCacheConfig


def opened(settings: Settings, model: nn.Module, num_steps: int) -> AbstractContextManager[Any]:
    if isinstance(settings, AdaCacheConfig):
        return open_cache(settings, model, num_steps)
    return open_rival(settings, model, num_steps)


def options_of(settings: Settings) -> dict[str, Any]:
    """As an evaluation's `adacache` or `rival` takes them."""
    return as_options(settings) if isinstance(settings, AdaCacheConfig) else rival_values(settings)


@dataclass(frozen=True)
class Tried:
    """Settings, and what they do."""

    settings: Settings
    outcome: Outcome

    @property
    def speed_up(self) -> float:
        return self.outcome.speed_up

    def __str__(self) -> str:
        values = {k: v for k, v in options_of(self.settings).items() if k != "coefficients"}
        return f"{values}, {self.outcome}"


class Bench:
    """Prompts on which settings are tried, each a video by itself, and what is learnt before from others."""

    def __init__(self, pipeline: Pipeline, learnt_on: Sequence[SampleRequest],
                 tried_on: Sequence[SampleRequest], base: AdaCacheConfig) -> None:
        self.pipeline, self.base = pipeline, base
        self.learnt_on = [[request] for request in learnt_on]
        self.trials = Trials(pipeline, [[request] for request in tried_on])
        self.known: dict[Settings, Tried] = {}

    @cached_property
    def coefficients(self) -> tuple[float, ...]:
        """TeaCache's."""
        changes = [self.trials.denoised(batch, lambda model, steps: recorded_changes(model))[1]
                   for batch in self.learnt_on[rank() :: world_size()]]
        return fitted(of_all_processes([pair for each in changes for pair in each.pairs]))

    @cached_property
    def recorded(self) -> RecordedPrompts:
        """What a schedule is placed by."""
        return RecordedPrompts.of(self.pipeline, self.learnt_on, self.base)

    def tried(self, settings: Settings) -> Tried:
        if settings not in self.known:
            self.known[settings] = Tried(settings, self.trials.of(partial(opened, settings)))
            say(str(self.known[settings]))
        return self.known[settings]


def least_threshold(bench: Bench, with_threshold: Callable[[float], Rival], target: float) -> Tried:
    """The smallest threshold that is fast enough, to PRECISION; the fastest of all where none is."""
    tried = []
    for high in (LEAST * 2**k for k in range(DOUBLINGS + 1)):
        tried.append(bench.tried(with_threshold(high)))
        if tried[-1].speed_up >= target:
            break
    else:
        return max(tried, key=lambda each: each.speed_up)
    low, best = high / 2, tried[-1]
    while high <= LEAST and low > LEAST / 2**DOUBLINGS:  # where even the first one is more than fast enough
        found = bench.tried(with_threshold(low))
        if found.speed_up < target:
            break
        high, low, best = low, low / 2, found
    while high / low > PRECISION:
        middle = float(f"{math.sqrt(low * high):.3g}")
        found = bench.tried(with_threshold(middle))
        if found.speed_up >= target:
            high, best = middle, found
        else:
            low = middle
    return best


def best_of(bench: Bench, grid: Sequence[Rival], target: float) -> Tried:
    """The best PSNR among those that are fast enough; the fastest of all where none is."""
    tried = [bench.tried(settings) for settings in grid]
    if fast := [each for each in tried if each.speed_up >= target]:
        return max(fast, key=lambda each: each.outcome.psnr.mean())
    return max(tried, key=lambda each: each.speed_up)


def most_steps(bench: Bench, target: float) -> Tried:
    """The offline schedule with the most computed steps that is fast enough; the fastest where none is."""
    most, recorded = math.ceil(bench.pipeline.scheduler.num_sampling_steps / target), bench.recorded
    for count in range(max(2, most), 1, -1):
        schedule = steps_for_reuse(recorded.recording, count, recorded.growth)
        found = bench.tried(AdaCacheConfig(probes=bench.base.probes, schedule=schedule, forecast=0))
        if found.speed_up >= target:
            break
    return found


def pab_grid() -> list[PAB]:
    """The published ranges, in the published window and in wider ones."""
    ranges, windows = ((2, 4, 6), (3, 5, 7), (5, 7, 9)), ((450, 930), (100, 930), (0, 1001))
    return [PAB(spatial=spatial, temporal=temporal, cross=cross, window=window)
            for (spatial, temporal, cross), window in product(ranges, windows)]


def tgate_grid(num_steps: int) -> list[TGate]:
    """Gates at 60 % of the steps, as published for PixArt-alpha, and at 40 %, as PAB's authors compare."""
    gates = sorted({max(1, round(share * num_steps)) for share in (0.6, 0.4, 0.25)})
    intervals = ((2, 1), (3, 1), (5, 1), (5, 3))
    return [TGate(gate=gate, sp_interval=before, fi_interval=after)
            for gate, (before, after) in product(gates, intervals)]


def delta_dit_grid(num_steps: int, blocks: int) -> list[DeltaDiT]:
    """blocks: of the model."""
    gates = sorted({round(share * num_steps) for share in (1 / 3, 2 / 3)})
    return [DeltaDiT(gate=gate, blocks=count, interval=interval)
            for gate, interval, count in product(gates, (2, 3, 5), sorted({blocks // 2, blocks - 1}))]


def tuned(name: str, bench: Bench, target: float) -> Tried:
    model, steps = bench.pipeline.model, bench.pipeline.scheduler.num_sampling_steps
    if name == TeaCache.name:
        return least_threshold(
            bench, lambda value: TeaCache(threshold=value, coefficients=bench.coefficients), target)
    if name == FirstBlockCache.name:
        return least_threshold(bench, lambda value: FirstBlockCache(threshold=value), target)
    if name == OFFLINE:
        return most_steps(bench, target)
    grids = {PAB.name: pab_grid, TGate.name: lambda: tgate_grid(steps),
             DeltaDiT.name: lambda: delta_dit_grid(steps, 2 * len(model.spatial_blocks))}
    return best_of(bench, grids[name](), target)
