"""What settings would do to recorded runs, without the model: simulation, and the best steps to compute.

The simulation is the engine itself, run on short vectors with the inner products of the recorded residuals.
It follows the recorded trajectory: errors do not feed back, as long as they are small.  What they grow to by
the end of the run is measured once (`growth`), by runs that reuse a single step.

Legend: V videos with p rows each, K steps, D = p K.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from adacache.attach import check_num_steps, make_caches
from adacache.codebook import Codebook
from adacache.config import AdaCacheConfig
from adacache.inner_products import guided_norm
from adacache.recording import Recording
from adacache.rows import Rows
from adacache.schedule import FixedSchedule
from adacache.session import Session
from adacache.trace import Trace

TINY = 1e-30
LARGEST = 100.0  # factor of thresholds


@dataclass(frozen=True)
class Simulation:
    """trace: the schedules, one for each video.  errors: what every step would have added too
    much, as short vectors, [V, p, K, D]."""

    trace: Trace
    errors: Tensor

    @property
    def computed(self) -> Tensor:
        """Steps computed for each video: [V]."""
        return torch.tensor([len(self.trace.of_video(v).computed_steps) for v in range(len(self.errors))])

    def squared_error(self, growth: Tensor) -> Tensor:
        """Of what comes out at the end: [V].  growth: [K], see `growth_of_errors`."""
        total = torch.einsum("vpkd,k->vpd", self.errors, growth.to(self.errors))
        return guided_norm(total @ total.mT)


def simulate(recording: Recording, config: AdaCacheConfig) -> Simulation:
    """The steps that `config` would have computed, each video by itself, and the errors of the others.

    Watched arguments are taken not to change.  Raises ValueError for what was not recorded: other probes,
    another metric, other strides, another number of steps, decisions of single rows.
    """
    if config.decide == "row":
        raise ValueError("decide='row'; allowed: 'video', for distances are recorded of whole videos")
    check_num_steps(config, recording.num_steps)
    check_recorded(recording, config)
    # resolved first: by block there is neither forecast nor guard
    config = replace(config.resolved(), granularity="stack", decide="video", recompute_on=(),
                     any_signature=True, rows_per_video=recording.products.shape[1])
    residuals = recording.short
    model = Replayed(residuals, config.probes)
    session = ReplayedSession(recording, config)
    caches = make_caches(session.config, {"": model, **model.probed}, session)
    session.caches = list(caches.values())
    for path, filling in caches.items():
        (model.probed[path] if path else model).residual_cache = filling
    added, nothing = [], torch.zeros_like(residuals[0])
    for step in range(recording.num_steps):
        session.begin_step(nothing, {})
        added.append(model(nothing, step))
        session.end_step()
    session.release()
    errors = torch.stack(added) - residuals
    return Simulation(session.trace, errors[..., 0].unflatten(1, (-1, recording.videos)).permute(2, 1, 0, 3))


def check_recorded(recording: Recording, config: AdaCacheConfig) -> None:
    """Raise ValueError for settings whose numbers the recording has not."""
    if config.schedule is not None:
        return
    for probe in config.probes:
        if probe not in recording.distances:
            raise ValueError(f"probe {probe!r}; allowed: recorded ones, {', '.join(recording.distances)}")
    if config.metric != recording.metric:
        raise ValueError(f"metric={config.metric!r}; allowed: the recorded one, {recording.metric!r}")
    if config.moreg is not None and config.moreg.strides != recording.strides:
        raise ValueError(f"moreg.strides={config.moreg.strides}; allowed: recorded ones, {recording.strides}")


class Replayed(nn.Module):
    """A model whose stack adds recorded residuals, whatever its input is."""

    def __init__(self, residuals: Tensor, probes: Sequence[str]) -> None:
        super().__init__()
        self.residuals, self.residual_cache = residuals, None
        self.probed = {probe.rpartition(".")[0]: Slot() for probe in probes}
        self.names = [tuple(probe.rpartition(".")[::2]) for probe in probes]

    def forward(self, x: Tensor, step: int) -> Tensor:
        def blocks(x: Tensor, rows: Rows | None) -> Tensor:
            residual = self.residuals[step] if rows is None else self.residuals[step][rows.index]
            for path, slot in self.probed.items():
                if slot.residual_cache is not None:  # what is saved is never looked at: see ReplayedSession
                    slot.residual_cache.save(1, **{name: x.new_zeros(len(x), 1, 1)
                                                   for at, name in self.names if at == path})
            return x + residual

        return self.residual_cache.run(x, 1, blocks)


class Slot(nn.Module):
    """A probed block."""

    def __init__(self) -> None:
        super().__init__()
        self.residual_cache = None


class ReplayedSession(Session):
    """Looks distances up that a session measures."""

    def __init__(self, recording: Recording, config: AdaCacheConfig) -> None:
        super().__init__(config, recording.num_steps)
        self.recording, self.distance_of = recording, lambda sums: sums[..., 0]  # itself, not sums
        self.probes = [probe for probe in recording.distances if probe in config.probes]  # in depth order

    def measure(self, new: Tensor, cached: Tensor, S: int) -> None:
        for group in self.due:
            video, last = self.groups.index(group), group.record.computed_steps[-1]
            probe = self.probes[len(group.distances)]
            group.distances.append(self.recording.distances[probe][video, self.step, last][None])
            if self.moreg_now is not None:
                score = self.recording.motion[probe][video, self.step]
                group.motion_sums = torch.stack([score, torch.ones_like(score)])[None]


def growth_of_errors(recording: Recording, final: Mapping[int, Tensor]) -> Tensor:
    """How far an error of the guided residual at each step has grown by the end of the run: [K].

    final: step -> squared errors of what came out, [V], latents or decoded, in runs in which that step alone
    was reused.  Geometric mean over the videos, and between the steps that were tried.
    Raises ValueError for step 0, no step at all, errors of other videos, and errors that are no numbers.
    """
    tried = {}
    if not final:
        raise ValueError("no step was reused; allowed: one or more")
    for step, error in final.items():
        if not 0 < step < recording.num_steps:
            raise ValueError(f"step {step} reused; allowed: 1 to {recording.num_steps - 1}")
        if len(error) != recording.videos or not error.isfinite().all():
            raise ValueError(f"errors {error.tolist()} at step {step}; allowed: {recording.videos} finite "
                             "ones")
        now, before = recording.products[:, :, step], recording.products[:, :, step - 1]
        change = now[..., step] - now[..., step - 1] - before[..., step] + before[..., step - 1]  # [V, p, p]
        ratio = error.to(change).clamp(min=TINY) / guided_norm(change).clamp(min=TINY)
        tried[step] = (ratio.log().mean() / 2).item()
    steps = sorted(tried)
    return torch.tensor([math.exp(between(step, steps, [tried[s] for s in steps]))
                         for step in range(recording.num_steps)], dtype=torch.float64)


def between(at: int, places: Sequence[int], values: Sequence[float]) -> float:
    """Linear between neighbouring places; outside of them the nearest value."""
    if at <= places[0] or at >= places[-1]:
        return values[0] if at <= places[0] else values[-1]
    after = next(i for i, place in enumerate(places) if place >= at)
    share = (at - places[after - 1]) / (places[after] - places[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def steps_for_reuse(recording: Recording, count: int, growth: Tensor) -> FixedSchedule:
    """The `count` steps to compute, the same for all videos, for plain reuse: by dynamic programming.

    What one gap between computed steps adds to the final error does not depend on the others, as long as
    errors are small.  So the schedule with the least sum over its gaps is found exactly; of several gaps'
    errors the squares are summed.  growth: [K], see `growth_of_errors`.
    Raises ValueError for a count that the run has not, and a growth that is none of its steps.
    """
    total = recording.num_steps
    check_count(count, total)
    if growth.shape != (total,) or not growth.isfinite().all():
        raise ValueError(f"growth={growth.tolist()}; allowed: {total} finite numbers")
    costs = gap_costs(recording, growth)
    least = costs[0].clone()  # of one computed step, the first, and reuse to each end: [K + 1]
    chosen = []               # for each further one: the best step before each end
    for _ in range(count - 1):
        least, before = (least[:total, None] + costs).min(dim=0)
        chosen.append(before.tolist())
    steps, end = [], total
    for before in reversed(chosen):
        end = before[end]
        steps.append(end)
    return FixedSchedule((0, *reversed(steps)), total)


def gap_costs(recording: Recording, growth: Tensor) -> Tensor:
    """[K, K + 1]: squared error, mean over the videos, of reusing step i's residual until step j.

    Infinite where j is not after i.
    """
    residuals = recording.short[..., 0].unflatten(1, (-1, recording.videos)).transpose(1, 2)  # [K, V, p, D]
    grown = growth.to(residuals)
    weighted = (grown[:, None, None, None] * residuals).cumsum(dim=0)
    steps = recording.num_steps
    costs = torch.full((steps, steps + 1), torch.inf, dtype=residuals.dtype)
    for i in range(steps):
        span = grown[i + 1 :].cumsum(dim=0)[:, None, None, None]
        errors = span * residuals[i] - (weighted[i + 1 :] - weighted[i])  # [K - i - 1, V, p, D]
        each = guided_norm((errors @ errors.mT).flatten(0, 1)).unflatten(0, (-1, recording.videos))
        costs[i, i + 1], costs[i, i + 2 :] = 0, each.mean(dim=1)
    return costs


def best_steps(recording: Recording, count: int, config: AdaCacheConfig, growth: Tensor,
               reach: int = 4) -> FixedSchedule:
    """The `count` steps to compute, the same for all videos, that leave the least error, by local search.

    From those for plain reuse, single steps move by up to `reach`, and all that follow one by 1, as long as
    the mean of the log error falls.  config: its forecast is the one that the schedule is made for.
    """
    total, order = recording.num_steps, config.resolved().forecast

    @cache
    def loss(steps: frozenset[int]) -> float:
        fixed = FixedSchedule(tuple(sorted(steps)), total, forecast=order)
        return mean_log_error(recording, replace(config, schedule=fixed, guard=None), growth)

    best, least = frozenset(steps_for_reuse(recording, count, growth).steps), math.inf
    while (found := loss(best)) < least - 1e-6:
        least = found
        for index in range(1, count):
            best = min((best, *neighbours(best, index, total, reach)), key=loss)
    return FixedSchedule(tuple(sorted(best)), total, forecast=order)


def check_count(count: int, total: int) -> None:
    if not 2 <= count <= total:
        raise ValueError(f"{count} computed steps; allowed: 2 to num_steps={total}")


def guard_for(recording: Recording, count: float, config: AdaCacheConfig) -> float:
    """The tightest guard with which `config` computes at most `count` steps, in the mean over the videos.

    Raises ValueError where no guard does.
    """
    def computed(guard: float) -> float:
        return computed_steps(recording, replace(config, guard=guard))

    return smallest(computed, count, 1e-4, 10.0)


def fitted_codebook(recording: Recording, count: float, config: AdaCacheConfig, growth: Tensor) -> Codebook:
    """Thresholds and rates with which at most `count` steps are computed, in the mean over the videos.

    Those of the codebook of `config`: thresholds times one factor, rates up to a largest one.  For each of
    these the smallest factor that does, and of all the one that leaves the least error.
    Raises ValueError where none does.
    """
    given = config.codebook_for(recording.num_steps)

    def scaled(factor: float, most: int) -> AdaCacheConfig:
        return replace(config, guard=None, codebook=Codebook(
            (threshold * factor, min(rate, most)) for threshold, rate in given.entries))

    most_rates = sorted({rate for _, rate in given.entries})
    fewest = {most: computed_steps(recording, scaled(LARGEST, most)) for most in most_rates}
    if min(fewest.values()) > count:
        raise ValueError(f"{count:g} computed steps; allowed: {min(fewest.values()):g} or more, as the "
                         "codebook has it")
    found = [scaled(smallest(lambda by, most=most: computed_steps(recording, scaled(by, most)), count,
                             1 / LARGEST, LARGEST), most)
             for most in most_rates if fewest[most] <= count]
    return min(found, key=lambda settings: mean_log_error(recording, settings, growth)).codebook


def mean_log_error(recording: Recording, config: AdaCacheConfig, growth: Tensor) -> float:
    """Of what comes out at the end, squared, mean over the videos: as the mean PSNR has it."""
    return simulate(recording, config).squared_error(growth).clamp(min=TINY).log().mean().item()


def computed_steps(recording: Recording, config: AdaCacheConfig) -> float:
    """Mean over the videos."""
    return simulate(recording, config).computed.double().mean().item()


def smallest(computed: Callable[[float], float], count: float, low: float, high: float) -> float:
    """The smallest value, to 1 %, with which at most `count` steps are computed; more compute fewer.

    Raises ValueError where none up to `high` does.
    """
    if (fewest := computed(high)) > count:
        raise ValueError(f"{count:g} computed steps; allowed: {fewest:g} or more, as the codebook has it")
    if computed(low) <= count:
        return low
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if computed(middle) <= count else (middle, high)
    return high


def neighbours(steps: frozenset[int], index: int, total: int, reach: int) -> list[frozenset[int]]:
    """The schedules in which one step has moved by up to `reach`, or it and all later ones by 1."""
    ordered = sorted(steps)
    step, before, later = ordered[index], frozenset(ordered[:index]), ordered[index:]
    moved = [steps - {step} | {to} for to in range(max(1, step - reach), min(total, step + reach + 1))]
    shifted = [before | {each + by for each in later} for by in (-1, 1) if later[-1] + by < total]
    return [schedule for schedule in (*moved, *shifted) if len(schedule) == len(steps) and schedule != steps]
