"""Caching schedules: which steps are computed; the others reuse residuals.  Steps count from 0 to K-1."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from adacache.codebook import Codebook
from adacache.signature import Signature
from adacache.trace import Trace


class AdaptiveSchedule:
    """The next computed step follows from the distance found at the last one.

    last: how many steps at the end are always computed; as published two.  rate: the one in force, steps
    planned from the last computed step to the next.
    """

    def __init__(self, codebook: Codebook, num_steps: int, last: int = 2) -> None:
        self.codebook = codebook
        self.num_steps = num_steps
        self.last = last
        self.rate = 1  # step 1 is the first with something to compare
        self.next_step = 0

    def computes(self, step: int) -> bool:
        """The first two steps and the last ones always, the others as planned."""
        return step >= self.next_step or step < 2 or step >= self.num_steps - self.last

    def plan(self, step: int, distance: float, most: float = math.inf) -> int:
        """The decision at a computed step: the codebook's rate, `most` at most.  Returns the new rate."""
        self.rate = min(self.codebook.rate(distance), most)
        self.next_step = step + self.rate
        return self.rate


def longest_rate(error: float, reach: int, bound: float, order: int) -> float:
    """The largest rate on whose way no reused step is expected to err by more than `bound`.

    error: relative, of what was added `reach` steps after the computed step before.  order: of the forecasts
    to come; of plain reuse errors grow with the reach, of a forecast with its square.  A rate's last reused
    step has a reach of rate - 1.  Not finite: 1.
    """
    if not math.isfinite(error):
        return 1
    return math.inf if error == 0 else 1 + math.floor(reach * (bound / error) ** (1 / min(order + 1, 2)))


@dataclass(frozen=True, repr=False)
class FixedSchedule:
    """Computed steps known beforehand: no distance is measured and nothing waits for the device.

    steps: out of 0 to num_steps-1; or a list of such lists, one for each video of a batch.
    signature: of the run in which they were recorded; another run is refused.  forecast: that run's order.
    changes: those of the steps at which arguments that `recompute_on` names changed in a recorded run, in as
    many lists; the replay takes them as given.  None: not recorded; such arguments are watched, and a step at
    which they change is computed, too (for tensors, this alone waits for the device).
    rows: lists of each video, above 1 where each row had a schedule of its own, see `Trace`.
    Raises ValueError where step 0 is missing, after which alone there is something to reuse, or where a step
    lies outside the run.
    """

    steps: tuple[int, ...] | tuple[tuple[int, ...], ...]
    num_steps: int
    signature: Signature | None = None
    forecast: int = 0
    changes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    rows: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.steps, list | tuple):
            raise ValueError(f"schedule={self.steps!r}; allowed: a list of steps, or one for each video")
        each = self.steps and all(isinstance(video, list | tuple) for video in self.steps)
        lists = [checked_steps(video, self.num_steps) for video in (self.steps if each else [self.steps])]
        object.__setattr__(self, "steps", tuple(lists) if each else lists[0])
        if self.changes is not None:
            object.__setattr__(self, "changes", checked_changes(self.changes, self.steps))

    def __repr__(self) -> str:
        """Without what only the replay of a run has, where there is nothing of it."""
        shown = [each.name for each in fields(self)
                 if each.name not in ("changes", "rows") or getattr(self, each.name) != each.default]
        return f"FixedSchedule({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def by_video(self) -> tuple[tuple[int, ...], ...] | None:
        """The steps of each video, or None where all have the same."""
        return self.steps if isinstance(self.steps[0], tuple) else None

    def of_video(self, index: int) -> FixedSchedule:
        if self.by_video is None:
            return self
        changes = None if self.changes is None else self.changes[index]
        return FixedSchedule(self.by_video[index], self.num_steps, changes=changes)

    def computes(self, step: int) -> bool:
        return step in self.steps

    def check_count(self, videos: int) -> None:
        if self.by_video is not None and len(self.by_video) != videos:
            raise ValueError(f"schedule of {len(self.by_video)} videos in a run that needs {videos}; "
                             "allowed: as many")

    @classmethod
    def uniform(cls, k: int, num_steps: int) -> FixedSchedule:
        """k computed steps, evenly spread, the first among them: the control for every other schedule."""
        if not 1 <= k <= num_steps:
            raise ValueError(f"k={k} computed steps; allowed: 1 to num_steps={num_steps}")
        return cls(tuple(i * num_steps // k for i in range(k)), num_steps)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> FixedSchedule:
        """The schedules of a recorded run, video by video.  source: as in `Trace.from_json`."""
        trace = Trace.from_json(source)
        lists = [tuple(video.computed_steps) for video in trace]
        known = all(video.changed_steps is not None for video in trace)
        changes = [tuple(video.changed_steps) for video in trace] if known else [()] * len(lists)
        if len(set(zip(lists, changes, strict=True))) == 1:  # for any number of videos
            lists, changes = lists[0], changes[0]
        return cls(lists, trace.num_steps, trace.signature, trace.forecast, changes if known else None,
                   trace.rows)


def checked_changes(changes: Sequence[Any], steps: Sequence[Any]) -> tuple[Any, ...]:
    """As many lists as there are of `steps`, each of some of these."""
    if isinstance(steps[0], tuple):
        if len(changes) != len(steps) or not all(isinstance(each, list | tuple) for each in changes):
            raise ValueError(f"changes={changes!r} of {len(steps)} videos; allowed: a list of steps for each")
        return tuple(checked_changes(*pair) for pair in zip(changes, steps, strict=True))
    if wrong := [step for step in changes if step not in steps]:
        raise ValueError(f"changes={changes!r}: {wrong[0]!r}; allowed: computed steps")
    return tuple(changes)


def checked_steps(steps: Iterable[int], num_steps: int) -> tuple[int, ...]:
    if not isinstance(num_steps, int) or not all(isinstance(step, int) for step in steps):
        raise ValueError(f"schedule={list(steps)} of num_steps={num_steps!r}; allowed: whole numbers")
    found = tuple(sorted(set(steps)))
    if outside := [step for step in found if not 0 <= step < num_steps]:
        raise ValueError(f"schedule step {outside[-1]}; allowed: 0 to {num_steps - 1}")
    if not found or found[0] != 0:
        raise ValueError(f"schedule={list(steps)} lacks step 0; allowed: step 0 and later ones")
    return found
