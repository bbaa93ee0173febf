"""One sampling run: the clock, the decisions, and all state there is.  Made by `adaptive_cache`.

A step goes: `begin_step` (compute or reuse?), the model's forward, in which probed blocks call `measure`, and
`end_step`, where the decision falls.  Steps count from 0 to K-1.

Legend: B rows (two for each video, with guidance), T frames, S patches per frame, C channels.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adacache.config import AdaCacheConfig
from adacache.metric import residual_distance
from adacache.moreg import motion_factor, motion_gradient, motion_score, regularized_distance
from adacache.residual import ResidualCache
from adacache.schedule import AdaptiveSchedule, FixedSchedule
from adacache.trace import Decision, Trace, VideoTrace

logger = logging.getLogger(__name__)


class Group:
    """Rows of the batch that share one schedule, and what is remembered of them between computed steps."""

    def __init__(self, rows: slice, schedule: AdaptiveSchedule | FixedSchedule) -> None:
        self.rows = rows
        self.schedule = schedule
        self.motion = 1.0  # m of the last decision
        self.distances: list[Tensor] = []  # of the running step, one for each probe: [], on the device
        self.record = VideoTrace()


class Session:
    """trace: the record of the run.  step: that runs, or comes next.  cache_bytes: held at most so far."""

    def __init__(self, config: AdaCacheConfig, num_steps: int) -> None:
        self.config = config
        self.num_steps = num_steps
        self.step = 0
        self.cache_bytes = 0
        self.caches: list[ResidualCache] = []  # those in the model's slots
        schedule = config.schedule or AdaptiveSchedule(config.codebook_for(num_steps), num_steps)
        self.groups = [Group(slice(None), schedule)]
        self.trace = Trace(num_steps, [group.record for group in self.groups])
        self._running = False  # between begin_step and end_step
        self._computing = False
        self._unplanned = False  # computed only because watched arguments changed
        self._stored_under: dict[str, Any] = {}  # watched arguments of the last computed step
        self._last_probed: tuple[Tensor, int] | None = None  # the deepest probe's residual, and S

    def begin_step(self, watched: Mapping[str, Any]) -> None:
        """Compute or reuse?  watched: those arguments of this call that `recompute_on` names."""
        if self.step == self.num_steps:
            raise RuntimeError(f"num_steps={self.num_steps}, but the model is called once more; allowed: one "
                               "call for each step, conditional and unconditional rows together")
        if self._running:
            raise RuntimeError(f"step {self.step} began and never ended; allowed: a new `with`")
        self._running = True
        due = any(group.schedule.computes(self.step) for group in self.groups)
        self._unplanned = not due and self._changed(watched)
        self._computing = due or self._unplanned
        for cache in self.caches:
            cache.reuse = not self._computing
        if self._computing:
            self._stored_under = {k: v.clone() if isinstance(v, Tensor) else v for k, v in watched.items()}
            for cache in self.caches:
                cache.forget_stored()

    def _changed(self, watched: Mapping[str, Any]) -> bool:
        """Whether the stored residuals belong to other arguments.

        For tensors a device sync, the only one of a reused step: what to launch next depends on it.
        """
        return not all(same(value, self._stored_under[name]) for name, value in watched.items())

    def measure(self, new: Tensor, cached: Tensor, S: int) -> None:
        """Called for each probe, in depth order.  new, cached: [B, (T S), C].  Waits for nothing."""
        for group in self.groups:
            distance = residual_distance(new[group.rows], cached[group.rows], self.config.metric)
            group.distances.append(distance)
        self._last_probed = new, S

    def end_step(self) -> None:
        if self._computing:
            check_saved(self.caches)
            for group in self.groups:
                group.record.computed_steps.append(self.step)
            if self._last_probed is not None:  # not at step 0, and never under a fixed schedule
                self._decide()
            self.cache_bytes = max(self.cache_bytes, held_bytes(self.caches))
        self._running = False
        self.step += 1

    def _decide(self) -> None:
        """The decision of a computed step, for all groups at once."""
        found = [torch.stack([*group.distances, self._motion(group)]) for group in self.groups]
        numbers = torch.stack(found).tolist()  # the device sync of a computed step
        for group, (*distances, motion) in zip(self.groups, numbers, strict=True):
            self._plan(group, sum(distances) / len(distances), motion)
            group.distances = []
        self._last_probed = None

    def _motion(self, group: Group) -> Tensor:
        """m, of the deepest probe's residual; 1 without MoReg and outside its window.  Returns: [], fp32."""
        residual, S = self._last_probed
        moreg = self.config.moreg
        if moreg is None or not moreg.applies_to(self.step, self.num_steps):
            return torch.ones((), device=residual.device)
        return motion_factor(motion_score(residual[group.rows], S, moreg.strides), moreg.scale, moreg.power)

    def _plan(self, group: Group, change: float, motion: float) -> None:
        """change: relative, since the last computed step, mean over the probes.  motion: m."""
        moreg, schedule = self.config.moreg, group.schedule
        # as published, the planned rate, even where the run's last steps come before they are due
        steps = self.step - group.record.computed_steps[-2] if self._unplanned else schedule.rate
        distance = change / steps
        gradient = motion_gradient(motion, group.motion, steps, moreg.gradient) if moreg else 0.0
        regularized = regularized_distance(distance, motion, gradient)
        if not math.isfinite(regularized):
            logger.warning("step %d: no finite distance (c %g, m %g, g %g), so the next step is computed",
                           self.step, distance, motion, gradient)
        rate = schedule.plan(self.step, regularized)
        group.record.decisions.append(Decision(self.step, distance, motion, gradient, regularized, rate))
        group.motion = motion

    def check_complete(self) -> None:
        """After the run: raises RuntimeError where steps are missing; warns where nothing was reused."""
        if self.step != self.num_steps:
            raise RuntimeError(f"num_steps={self.num_steps}, but the model was called {self.step} times; "
                               "allowed: the sampler's number of steps")
        for group in self.groups:
            if len(group.record.computed_steps) == self.num_steps:
                logger.warning("nothing was reused: %s", why_nothing(group.record.decisions, self.num_steps))

    def release(self) -> None:
        """Free every tensor; the trace stays."""
        for cache in self.caches:
            cache.clear()
        for group in self.groups:
            group.distances = []
        self._stored_under, self._last_probed = {}, None


def check_saved(caches: Iterable[ResidualCache]) -> None:
    """After a computed step.  Raises RuntimeError for a module with a slot that forgot to save."""
    if empty := [cache.path or "the model itself" for cache in caches if not cache.residuals]:
        raise RuntimeError(f"{empty[0]} has a slot, but its forward saved no residual; allowed: a call of "
                           "residual_cache.save at every computed step (see adacache.residual)")


def same(value: Any, stored: Any) -> bool:
    """Tensors, numbers, texts and tuples by value, anything else by identity."""
    if isinstance(value, Tensor) and isinstance(stored, Tensor):
        return value.shape == stored.shape and torch.equal(value, stored)
    return value is stored or (isinstance(value, bool | int | float | str | tuple) and value == stored)


def held_bytes(caches: Iterable[ResidualCache]) -> int:
    """Of the storages behind all residuals: a view counts as what it keeps alive, a shared storage once."""
    storages = [r.untyped_storage() for cache in caches for r in cache.residuals.values()]
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
