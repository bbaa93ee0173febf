"""One sampling run: the clock, the decisions, and all state there is.  Made by `adaptive_cache`.

A step goes: `begin_step` (who computes, who reuses?), the model's forward, in which probed blocks call
`measure`, and `end_step`, where the decisions fall.  Steps count from 0 to K-1.

Legend: B rows (with guidance two for each video: v and n+v of n videos), T frames, S patches per frame,
C channels.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adacache.config import AdaCacheConfig
from adacache.metric import residual_distance
from adacache.moreg import motion_factor, motion_gradient, motion_score, regularized_distance
from adacache.residual import ResidualCache, StackCache
from adacache.schedule import AdaptiveSchedule, FixedSchedule, longest_rate
from adacache.signature import Signature
from adacache.step_clock import StepClock
from adacache.trace import Decision, Trace, VideoTrace

logger = logging.getLogger(__name__)

FEW_STEPS = 12
FEW_STEPS_DOUBT = (f"with fewer than {FEW_STEPS} steps there is little to reuse, for the first two and the "
                   "last two are always computed and neighbouring ones differ much")


class Group:
    """Rows of the batch that share one schedule, and what is remembered of them between computed steps.

    rows: every n-th of the batch, from the group's own number on, where there are n groups.
    """

    def __init__(self, rows: slice, schedule: AdaptiveSchedule | FixedSchedule) -> None:
        self.rows = rows
        self.schedule = schedule
        self.due = False        # in the running step
        self.unplanned = False  # due only because watched arguments changed
        self.motion = 1.0       # m of the last decision
        self.distances: list[Tensor] = []        # of the running step, one for each probe: [], on the device
        self.motion_now: Tensor | None = None    # m of the running step's deepest probe: [], on the device
        self.stored_under: dict[str, Any] = {}   # watched arguments of its last computed step
        self.record = VideoTrace()

    def clocks(self, step: int) -> tuple[int, int]:
        """Steps from the last computed one before `step`, and between the last two; 0 where there is none."""
        before = [-1, -1, *(done for done in self.record.computed_steps if done < step)][-2:]
        return (step - before[1] if before[1] >= 0 else 0), (before[1] - before[0] if before[0] >= 0 else 0)


class Session:
    """trace: the record of the run.  step: that runs, or comes next.  cache_bytes: held at most so far."""

    def __init__(self, config: AdaCacheConfig, num_steps: int, model: str = "") -> None:
        self.config = config = config.resolved()
        self.model = model  # its name, for the signature
        self.num_steps = num_steps
        self.step = 0
        self.cache_bytes = 0
        self.caches: list[ResidualCache] = []  # those in the model's slots
        self.rows = 0                          # of the batch, known once the model is called
        self.groups: list[Group] = []
        self.trace = Trace(num_steps, [], forecast=config.forecast)
        self._running = False  # between begin_step and end_step

    def begin_step(self, x: Tensor, watched: Mapping[str, Any]) -> None:
        """Who computes, who reuses?

        x: the model's input, [B, ...].  watched: those arguments of this call that `recompute_on` names.
        """
        if self.step == self.num_steps:
            raise RuntimeError(f"num_steps={self.num_steps}, but the model is called once more; allowed: one "
                               "call for each step, conditional and unconditional rows together")
        if self._running:
            raise RuntimeError(f"step {self.step} began and never ended; allowed: a new `with`")
        if not self.groups:
            self.start(x)
        rows = len(x)
        if rows != self.rows:
            raise RuntimeError(f"a batch of {rows} rows after one of {self.rows}; allowed: one batch and "
                               "size during a run")
        self._running = True
        changed = self._changed(watched)
        for group, is_changed in zip(self.groups, changed, strict=True):
            planned = group.schedule.computes(self.step)
            group.unplanned = is_changed and not planned
            group.due = planned or is_changed
            if group.due:
                group.stored_under = {name: own_copy(value, group, rows) for name, value in watched.items()}
        self._prepare_caches()
        self._began = self.clock.mark()

    def start(self, x: Tensor) -> None:
        """At the first call, when the batch is known."""
        self.rows, self.clock = len(x), StepClock(x.device)
        self.trace.signature = Signature(self.model, self.num_steps, tuple(x.shape[1:]))
        self.groups = make_groups(self.config, self.rows, self.num_steps)
        if (schedule := self.config.schedule) is not None and not self.config.any_signature:
            schedule.check_signature(self.trace.signature)
        self.trace.videos += [group.record for group in self.groups]

    def _changed(self, watched: Mapping[str, Any]) -> list[bool]:
        """For each group, whether its stored residuals belong to other arguments.

        For tensors a device sync, the only one of a reused step: what to launch next depends on it.
        """
        if not watched or self.step == 0:
            return [False] * len(self.groups)
        answers = [[differs(own(value, group, self.rows), group.stored_under[name])
                    for name, value in watched.items()] for group in self.groups]
        return [any(bool(answer) for answer in of_group) for of_group in answers]

    def _prepare_caches(self) -> None:
        """Tell every cache which rows are due."""
        due = [row for group in self.groups if group.due for row in range(self.rows)[group.rows]]
        for cache in self.caches:
            cache.reuse, cache.rows = not due, None
            if isinstance(cache, StackCache):
                cache.due, cache.waiting = sorted(due), sorted(set(range(self.rows)) - set(due))
                # rows take turns between the groups: row r is of group r modulo their number
                clocks = [group.clocks(self.step) for group in self.groups]
                by_row = [clocks[row % len(clocks)] for row in range(self.rows)]
                cache.reach, cache.gap = zip(*by_row, strict=True)
            if len(due) == self.rows:
                cache.forget_stored()

    @property
    def due(self) -> list[Group]:
        return [group for group in self.groups if group.due]

    def measure(self, new: Tensor, cached: Tensor, S: int) -> None:
        """Called for each probe, in depth order.  Waits for nothing.

        new: the due rows, [b, (T S), C].  cached: all, [B, (T S), C].
        """
        due = self.due
        with self.clock.deciding():
            for i, group in enumerate(due):
                own_rows = new[i :: len(due)]
                group.distances.append(residual_distance(own_rows, cached[group.rows], self.config.metric))
                group.motion_now = self._motion(own_rows, S)

    def _motion(self, residual: Tensor, S: int) -> Tensor:
        """m of one group; 1 without MoReg and outside its window.  Returns: [], fp32."""
        moreg = self.config.moreg
        if moreg is None or not moreg.applies_to(self.step, self.num_steps):
            return torch.ones((), device=residual.device)
        return motion_factor(motion_score(residual, S, moreg.strides), moreg.scale, moreg.power)

    def end_step(self) -> None:
        due = self.due
        if len(due) in (0, len(self.groups)):
            self.clock.add("computed" if due else "reused", self._began)
        if due:
            check_saved(self.caches)
            for group in due:
                group.record.computed_steps.append(self.step)
            with self.clock.deciding():
                self._decide(due)
            self.cache_bytes = max(self.cache_bytes, held_bytes(self.caches))
        self._running = False
        self.step += 1

    def _decide(self, due: Sequence[Group]) -> None:
        """The decisions of a computed step: none at step 0, and never any under a fixed schedule."""
        if not due[0].distances:
            return
        found = [torch.cat([torch.stack([*group.distances, group.motion_now]),
                            *self._learnt(i, len(due), group)]) for i, group in enumerate(due)]
        probes = len(due[0].distances)
        # the device sync of a computed step, for all groups at once
        for group, numbers in zip(due, torch.stack(found).tolist(), strict=True):
            distances, motion, learnt = numbers[:probes], numbers[probes], numbers[probes + 1 :]
            self._plan(group, sum(distances) / probes, motion, *learnt)
            group.distances = []

    def _learnt(self, index: int, count: int, group: Group) -> list[Tensor]:
        """The forecast's squared error and its norm, and the weights: [2], [order], or nothing."""
        stack = next((cache for cache in self.caches if isinstance(cache, StackCache)), None)
        if stack is None or stack.forecast is None:
            return []
        return [stack.forecast.missed[index::count].sum(0), stack.forecast.weights[group.rows].mean(0)]

    def _plan(self, group: Group, change: float, motion: float, missed: float | None = None,
              norm: float = 0.0, *weights: float) -> None:
        """change: relative, since the last computed step, mean over the probes.  motion: m.

        missed, norm: squares, of the forecast's error and of the true residual.
        """
        moreg, schedule = self.config.moreg, group.schedule
        reach, _ = group.clocks(self.step)
        # as published, the planned rate, even where the run's last steps come before they are due
        steps = reach if group.unplanned else schedule.rate
        distance = change / steps
        gradient = motion_gradient(motion, group.motion, steps, moreg.gradient) if moreg else 0.0
        regularized = regularized_distance(distance, motion, gradient)
        if not math.isfinite(regularized):
            logger.warning("step %d: no finite distance (c %g, m %g, g %g), so the next step is computed",
                           self.step, distance, motion, gradient)
        error = None if missed is None else math.sqrt(missed / norm) if norm > 0 else math.nan
        most = math.inf if self.config.guard == math.inf else longest_rate(error, reach, self.config.guard)
        rate = schedule.plan(self.step, regularized, most)
        group.record.decisions.append(
            Decision(self.step, distance, motion, gradient, regularized, rate, error, tuple(weights)))
        group.motion = motion

    def check_complete(self) -> None:
        """After the run: raises RuntimeError where steps are missing; warns of a cache that does not pay."""
        if self.step != self.num_steps:
            raise RuntimeError(f"num_steps={self.num_steps}, but the model was called {self.step} times; "
                               "allowed: the sampler's number of steps")
        if self.num_steps < FEW_STEPS:
            logger.warning("num_steps=%d: %s", self.num_steps, FEW_STEPS_DOUBT)
        if self.config.schedule is None and (balance := self.clock.balance()) and balance[0] > balance[1]:
            logger.warning("caching cost more than it saved: decisions %.3g s, reused steps saved %.3g s",
                           *balance)
        for index, group in enumerate(self.groups):
            if len(group.record.computed_steps) == self.num_steps:
                which = f" for video {index}" if len(self.groups) > 1 else ""
                logger.warning("nothing was reused%s: %s", which,
                               why_nothing(group.record.decisions, self.num_steps))

    def release(self) -> None:
        """Free every tensor; the trace stays."""
        for cache in self.caches:
            cache.clear()
        for group in self.groups:
            group.distances, group.motion_now, group.stored_under = [], None, {}


def make_groups(config: AdaCacheConfig, rows: int, num_steps: int) -> list[Group]:
    """One for each video of a batch of `rows` rows, for each row, or for all, as `decide` has it.

    Raises ValueError for a batch or a schedule that does not divide so.
    """
    count = {"batch": 1, "row": rows, "video": rows // config.rows_per_video}[config.decide]
    if config.decide == "video" and (rows % config.rows_per_video or not count):
        raise ValueError(f"rows_per_video={config.rows_per_video}, but the model is called with a batch of "
                         f"{rows}; allowed: a number that divides it, or decide='batch'")
    if (fixed := config.schedule) is not None:
        fixed.check_count(count)
        return [Group(slice(i, None, count), fixed.of_video(i)) for i in range(count)]
    codebook = config.codebook_for(num_steps)
    return [Group(slice(i, None, count), AdaptiveSchedule(codebook, num_steps)) for i in range(count)]


def own(value: Any, group: Group, rows: int) -> Any:
    """A group's part of an argument: of a tensor with the batch's rows its own, anything else whole."""
    has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
    return value[group.rows] if has_rows else value


def own_copy(value: Any, group: Group, rows: int) -> Any:
    part = own(value, group, rows)
    return part.clone() if isinstance(part, Tensor) else part


def differs(value: Any, stored: Any) -> bool:
    """Tensors, numbers, texts and tuples by value, anything else by identity."""
    if isinstance(value, Tensor) and isinstance(stored, Tensor):
        return value.shape != stored.shape or not torch.equal(value, stored)
    plain = isinstance(value, bool | int | float | str | tuple)
    return value is not stored and not (plain and value == stored)


def check_saved(caches: Iterable[ResidualCache]) -> None:
    """After a computed step.  Raises RuntimeError for a module with a slot that forgot to save."""
    empty = [cache for cache in caches
             if (cache.stores and not cache.residuals) or (cache.probed and not cache.probes)]
    if empty:
        raise RuntimeError(f"{empty[0].path or 'the model itself'} has a slot, but its forward saved no "
                           "residual; allowed: what adacache.residual asks for")


def held_bytes(caches: Iterable[ResidualCache]) -> int:
    """Of the storages behind all residuals: a view counts as what it keeps alive, a shared storage once."""
    storages = [tensor.untyped_storage() for cache in caches for tensor in cache.tensors()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def why_nothing(decisions: list[Decision], num_steps: int) -> str:
    if num_steps < 5:
        return f"num_steps={num_steps}, and the first two and the last two steps are always computed"
    if not decisions:
        return "the schedule computes every step"
    if any(d.rate > 1 for d in decisions if d.step < num_steps - 3):
        return "steps would have been, but what `recompute_on` names changed at each of them"
    # a later decision has no step left to skip
    found = [d.regularized_distance for d in decisions if d.step < num_steps - 3]
    finite = [distance for distance in found if math.isfinite(distance)]
    if not finite:
        return "no distance was a finite number"
    least, most = min(finite), max(finite)
    return (f"distances from {least:.4g} to {most:.4g}; a codebook threshold above {least:.4g} with a rate "
            "of 2 or more would have fired")
