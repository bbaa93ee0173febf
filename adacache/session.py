"""One sampling run: steps, decisions, and all state there is.  Made by `adaptive_cache`.

A step goes: `begin_step` (who computes, who reuses?), the model's forward, in which probed blocks call
`measure`, and `end_step`, where the decisions fall.  Steps count from 0 to K-1.

Legend: B rows (with guidance two for each video: v and n+v of n videos), T frames, S patches per frame,
C channels.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adacache.config import AdaCacheConfig, MoRegConfig
from adacache.forecast import gap_numbers
from adacache.metric import METRICS
from adacache.moreg import motion_factor, motion_gradient, motion_sums, regularized_distance, score_of
from adacache.ranks import ALONE, Ranks
from adacache.residual import ResidualCache, StackCache
from adacache.schedule import AdaptiveSchedule, FixedSchedule, longest_rate
from adacache.signature import Signature
from adacache.step_clock import StepClock
from adacache.trace import Decision, Trace, VideoTrace

logger = logging.getLogger(__name__)

FEW_STEPS = 12
FEW_STEPS_DOUBT = (f"with fewer than {FEW_STEPS} steps there is little to reuse, for the first two, and "
                   "without a guard the last two, are always computed and neighbouring ones differ much")


class Group:
    """Rows of the batch that share one schedule, and what is remembered of them between computed steps.

    rows: every n-th of the batch, from the group's own number on, where there are n groups.
    """

    def __init__(self, rows: slice, schedule: AdaptiveSchedule | FixedSchedule) -> None:
        self.rows = rows
        self.schedule = schedule
        self.due = False        # in the running step
        self.unplanned = False  # due only because watched arguments changed
        self.known_from = 0     # step since which watched arguments are what they are
        self.motion = 1.0       # m of the last decision
        # of the running step, on the device: what the metric sums, [n] for each probe; for the deepest one
        # what the motion score sums, [strides, 2], or nothing
        self.distances: list[Tensor] = []
        self.motion_sums: Sequence[Tensor] | Tensor = ()
        self.record = VideoTrace()

    def reach_and_gap(self, step: int) -> tuple[int, int]:
        """Steps from the last computed one before `step`, and between the last two.

        0 where there is none under the same watched arguments: across their change nothing can be foretold.
        """
        before = [done for done in self.record.computed_steps if self.known_from <= done < step]
        return (step - before[-1] if before else 0), (before[-1] - before[-2] if len(before) > 1 else 0)


@dataclass(frozen=True)
class Found:
    """What a computed step brought for one group, on the host.

    change: of the probed residuals since the last computed step, relative, mean over the probes.  motion: m.
    error: relative, of what reuse or forecast would have added, after guidance; None where nobody asked.
    weights: of the forecast, mean over the group's rows.
    """

    change: float
    motion: float
    error: float | None
    weights: tuple[float, ...]


class Session:
    """trace: the record of the run.  step: that runs, or comes next.  cache_bytes: held at most so far."""

    def __init__(self, config: AdaCacheConfig, num_steps: int, model: str = "", ranks: Ranks = ALONE) -> None:
        self.config = config = on_rank(config.resolved(), ranks)
        self.model, self.ranks = model, ranks  # the model's name, for the signature
        self.distance_of = METRICS[config.metric].distance
        self.num_steps = num_steps
        self.step = 0
        self.cache_bytes = 0
        self.caches: list[ResidualCache] = []  # those in the model's slots
        self.rows = 0                          # of the batch, known once the model is called
        self.groups: list[Group] = []
        self.trace = Trace(num_steps, [], forecast=config.forecast)  # its rows are known with the batch
        self._running = False  # between begin_step and end_step
        self._watched: dict[str, Any] = {}  # arguments under which all stored residuals were computed

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
        if self.step == 0 or any(changed):  # whoever has other ones now is due, so they hold for all
            self._watched = {name: kept(value) for name, value in watched.items()}
        for group, is_changed in zip(self.groups, changed, strict=True):
            planned = group.schedule.computes(self.step)
            group.unplanned = is_changed and not planned
            group.due = planned or is_changed
            if is_changed:
                group.known_from = self.step
                group.record.changed_steps.append(self.step)
        self._prepare_caches()
        self.clock.mixed = 0 < len(self.due) < len(self.groups)
        self._began = self.clock.mark()

    def start(self, x: Tensor) -> None:
        """At the first call, when the batch is known.  Raises ValueError where settings do not fit it."""
        signature = Signature(self.model, self.num_steps, tuple(x.shape[1:]))
        groups = make_groups(self.config, len(x), self.num_steps)
        self.check_made_for(signature.input_shape)
        self.rows, self.groups, self.clock = len(x), groups, StepClock(x.device)
        if self.config.decide == "row" and len(x) % self.config.rows_per_video == 0:
            self.trace.rows = self.config.rows_per_video
        if self.stack is not None:
            self.stack.measuring = self.clock.measuring
        self.trace.signature = signature
        self.trace.videos += [group.record for group in groups]

    def check_made_for(self, input_shape: tuple[int, ...] | None) -> None:
        """Raise ValueError for settings or a schedule of another run.

        input_shape: None before it is known.
        """
        settings, schedule = self.config.signature, self.config.schedule
        for made, what in ((settings, "settings"), (schedule and schedule.signature, "schedule")):
            if made is not None and not self.config.any_signature:
                shape = made.input_shape if input_shape is None else input_shape
                made.check(Signature(self.model, self.num_steps, shape), what)

    def _changed(self, watched: Mapping[str, Any]) -> list[bool]:
        """For each group, whether its stored residuals belong to other arguments, now or in the run replayed.

        For tensors a device sync, the only one of a reused step: what to launch next depends on it.
        """
        if (replayed := self.config.schedule) is not None and replayed.changes is not None:
            return [self.step in group.schedule.changes for group in self.groups]
        known = watched.items() if self.step > 0 else ()
        answers = [differing_rows(value, self._watched[name], self.rows) for name, value in known]
        return [any(any(answer[group.rows]) for answer in answers) for group in self.groups]

    def _prepare_caches(self) -> None:
        """Tell every cache which rows are due."""
        due = [row for group in self.due for row in range(self.rows)[group.rows]]
        for cache in self.caches:
            cache.reuse, cache.rows = not due, None
            if len(due) == self.rows:
                cache.forget_stored()
        if self.stack is not None:
            self.stack.due, self.stack.waiting = sorted(due), sorted(set(range(self.rows)) - set(due))
            together = 1 if self.config.decide == "row" else self.config.rows_per_video
            self.stack.due_videos = len(due) // (1 if len(due) % together else together)
            if self.stack.forecast is not None:
                # rows take turns between the groups: row r is of group r modulo their number
                gaps = [gap_numbers(*group.reach_and_gap(self.step)) for group in self.groups]
                self.stack.gaps = [gaps[row % len(gaps)] for row in range(self.rows)]

    @property
    def stack(self) -> StackCache | None:
        """The cache of the model itself, where it has one: always the last."""
        last = self.caches[-1] if self.caches else None
        return last if isinstance(last, StackCache) else None

    @property
    def due(self) -> list[Group]:
        return [group for group in self.groups if group.due]

    def measure(self, new: Tensor, cached: Tensor, S: int) -> None:
        """Called for each probe, in depth order.  Waits for nothing.

        new: the due rows, [b, (T S), C].  cached: all, [B, (T S), C].
        """
        due = self.due
        with self.clock.measuring():
            for i, group in enumerate(due):
                own_rows = new[i :: len(due)]
                group.distances.append(METRICS[self.config.metric].sums(own_rows, cached[group.rows]))
                if (moreg := self.moreg_now) is not None:
                    group.motion_sums = motion_sums(own_rows, S, moreg.strides)

    @property
    def moreg_now(self) -> MoRegConfig | None:
        """None also outside its window, where m is 1."""
        moreg = self.config.moreg
        return moreg if moreg is not None and moreg.applies_to(self.step, self.num_steps) else None

    def end_step(self) -> None:
        due = self.due
        self.clock.add("mixed" if self.clock.mixed else "computed" if due else "reused", self._began)
        if due:
            check_saved(self.caches)
            self._check_measured(due)
            for group in due:
                group.record.computed_steps.append(self.step)
            if self.step > 0 and (self.config.schedule is None or self.config.forecast):
                with self.clock.span("deciding"):
                    self._decide(due)
            self.cache_bytes = max(self.cache_bytes, held_bytes(self.caches))
        self._running = False
        self.step += 1

    def _check_measured(self, due: Sequence[Group]) -> None:
        """Raise RuntimeError for a probed block that saved nothing at this step."""
        count = sum(len(cache.probed) for cache in self.caches)
        if self.step > 0 and any(len(group.distances) < count for group in due):
            probes = ", ".join(f"{cache.path}.{name}" for cache in self.caches for name in cache.probed)
            raise RuntimeError(f"step {self.step}: not all of the probes {probes} saved a residual; allowed: "
                               "the same ones in every computed step")

    def _decide(self, due: Sequence[Group]) -> None:
        """For all due groups at once, by sums over all ranks: one all-reduce, one device sync."""
        forecast = self.stack.forecast if self.stack is not None else None
        measured = [torch.cat([*group.distances, *group.motion_sums]) for group in due if group.distances]
        own = [torch.stack(measured)] if measured else []
        if forecast is not None:
            own.append(forecast.observed.sums)
        decides = self.config.schedule is None
        totals = self.ranks.summed(own, on_host=decides)  # the device sync; from here all ranks do the same
        if forecast is not None:
            forecast.learn(totals.pop())
        if decides:
            for i, (group, sums) in enumerate(zip(due, totals[0], strict=True)):
                missed = None if forecast is None else forecast.missed[i :: len(due)].sum(dim=0).tolist()
                weights = () if forecast is None else forecast.weights[group.rows].mean(dim=0).tolist()
                self._plan(group, self._found(group, sums, missed and relative(*missed), tuple(weights)))

    def _found(self, group: Group, sums: Tensor, error: float | None, weights: tuple[float, ...]) -> Found:
        """sums: what was measured of one group on all ranks; on the host."""
        probed, motion = sums.split([len(sums) - 2 * len(group.motion_sums), 2 * len(group.motion_sums)])
        change = self.distance_of(probed.view(len(group.distances), -1)).mean().item()
        factor, moreg = 1.0, self.moreg_now
        if moreg is not None:
            factor = motion_factor(score_of(motion.view(-1, 2)), moreg.scale, moreg.power).item()
        group.distances, group.motion_sums = [], ()
        return Found(change, factor, error, weights)

    def _plan(self, group: Group, found: Found) -> None:
        moreg, schedule, guard = self.config.moreg, group.schedule, self.config.guard
        # as published, the planned rate, even where the run's last steps come before they are due
        steps = self.step - group.record.computed_steps[-2] if group.unplanned else schedule.rate
        distance, motion = found.change / steps, found.motion
        gradient = motion_gradient(motion, group.motion, steps, moreg.gradient) if moreg else 0.0
        regularized = regularized_distance(distance, motion, gradient)
        if not math.isfinite(regularized):
            logger.warning("step %d: no finite distance (c %g, m %g, g %g), so the next step is computed",
                           self.step, distance, motion, gradient)
        reach, _ = group.reach_and_gap(self.step)
        most = math.inf
        if guard < math.inf:
            most = longest_rate(found.error, reach, guard, self.config.forecast if any(found.weights) else 0)
        rate = schedule.plan(self.step, regularized, most)
        group.record.decisions.append(
            Decision(self.step, distance, motion, gradient, regularized, rate, found.error, found.weights))
        group.motion = motion

    def check_complete(self) -> None:
        """After the run: raises RuntimeError where steps are missing; warns of a cache that does not pay."""
        if self.step != self.num_steps:
            raise RuntimeError(f"num_steps={self.num_steps}, but the model was called {self.step} times; "
                               "allowed: the sampler's number of steps")
        if self.num_steps < FEW_STEPS:
            logger.warning("num_steps=%d: %s", self.num_steps, FEW_STEPS_DOUBT)
        if self.config.schedule is None and (balance := self.clock.balance()) and balance[0] > balance[1]:
            logger.warning("caching cost more than it saved: decisions %.3g s, reuse saved %.3g s",
                           *balance)
        for index, group in enumerate(self.groups):
            if len(group.record.computed_steps) == self.num_steps:
                which = f" for video {index}" if len(self.groups) > 1 else ""
                logger.warning("nothing was reused%s: %s", which,
                               why_nothing(group.record.decisions, self.num_steps, self.config.guard))

    def release(self) -> None:
        """Free every tensor; the trace stays."""
        for cache in self.caches:
            cache.clear()
        for group in self.groups:
            group.distances, group.motion_sums = [], ()
        self._watched = {}


def on_rank(config: AdaCacheConfig, ranks: Ranks) -> AdaCacheConfig:
    """The same for those rows of a video that are here.

    Raises ValueError where they do not divide, or where each would decide for itself.
    """
    parts = ranks.row_parts
    if config.rows_per_video % parts:
        raise ValueError(f"rows_per_video={config.rows_per_video}, but a video's rows are on {parts} ranks; "
                         f"allowed: multiples of {parts}")
    if parts > 1 and config.decide == "row":
        raise ValueError(f"decide='row', but a video's rows are on {parts} ranks; allowed: 'video', 'batch'")
    return replace(config, rows_per_video=config.rows_per_video // parts)


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
    codebook, last = config.codebook_for(num_steps), always_last(config.guard)
    return [Group(slice(i, None, count), AdaptiveSchedule(codebook, num_steps, last)) for i in range(count)]


def always_last(guard: float) -> int:
    """How many steps at the end are always computed: as published two; a guard sees how far it may go."""
    return 2 if guard == math.inf else 0


def kept(value: Any) -> Any:
    """As it is now, whatever becomes of it in place."""
    if isinstance(value, tuple | list):
        return (list if isinstance(value, list) else tuple)(map(kept, value))  # of a named one, its values
    return value.clone() if isinstance(value, Tensor) else value


def differing_rows(value: Any, stored: Any, rows: int) -> list[bool]:
    """Which of the batch's rows have another value.

    Tensors, numbers, texts, and tuples and lists of these by value, anything else by identity.
    """
    like = tuple if isinstance(value, tuple) else list
    if isinstance(value, like) and isinstance(stored, like) and len(value) == len(stored):
        each = [differing_rows(*pair, rows) for pair in zip(value, stored, strict=True)]
        return [any(of_row) for of_row in zip(*each, strict=True)] if each else [False] * rows
    if isinstance(value, Tensor) and isinstance(stored, Tensor):
        if value.shape != stored.shape:
            return [True] * rows
        if value.ndim > 0 and len(value) == rows:
            return (value != stored).reshape(rows, -1).any(dim=1).tolist()
        return [not torch.equal(value, stored)] * rows
    plain = not isinstance(stored, Tensor) and isinstance(value, bool | int | float | str | torch.device)
    return [not (value is stored or (plain and value == stored))] * rows


def relative(missed: float, norm: float) -> float:
    """From squares."""
    return math.sqrt(missed / norm) if norm > 0 else math.nan


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


def why_nothing(decisions: list[Decision], num_steps: int, guard: float) -> str:
    if num_steps < 3 + (last := always_last(guard)):
        always = "two and the last two" if last else "two"
        return f"num_steps={num_steps}, and the first {always} steps are always computed"
    if not decisions:
        return "the schedule computes every step"
    decisions = [d for d in decisions if d.step < num_steps - 1 - last]  # a later one has none to skip
    if any(d.rate > 1 for d in decisions):
        return "steps would have been, but what `recompute_on` names changed at each of them"
    found = [d.regularized_distance for d in decisions if math.isfinite(d.regularized_distance)]
    if not found:
        return "no distance was a finite number"
    least, guarded, larger = min(found), "", ""
    known = [d for d in decisions if d.error is not None and math.isfinite(d.error)
             and math.isfinite(d.regularized_distance)]
    if known and guard < math.inf:
        nearest = min(known, key=lambda d: d.error)  # both have to allow it, at one step
        least = nearest.regularized_distance
        guarded = f", under guard={guard:g} errors from {nearest.error:.4g}"
        larger = f" with a guard of {nearest.error:.4g} or more"
    return (f"distances from {min(found):.4g} to {max(found):.4g}{guarded}; a codebook threshold above "
            f"{least:.4g} with a rate of 2 or more would have fired{larger}")
