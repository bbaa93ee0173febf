"""Caching schedules: which steps are computed; the others reuse residuals.  Steps count from 0 to K-1."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adacache.codebook import Codebook
from adacache.trace import Trace


class AdaptiveSchedule:
    """The next computed step follows from the distance found at the last one.

    rate: the one in force, steps planned from the last computed step to the next.
    """

    def __init__(self, codebook: Codebook, num_steps: int) -> None:
        self.codebook = codebook
        self.num_steps = num_steps
        self.rate = 1  # step 1 is the first with something to compare
        self.next_step = 0

    def computes(self, step: int) -> bool:
        """Steps 0, 1, K-2 and K-1 always, the others as planned."""
        return step >= self.next_step or step < 2 or step >= self.num_steps - 2

    def plan(self, step: int, distance: float) -> int:
        """The decision at a computed step.  Returns the new rate."""
        self.rate = self.codebook.rate(distance)
        self.next_step = step + self.rate
        return self.rate


@dataclass(frozen=True)
class FixedSchedule:
    """Computed steps known beforehand: no distance is measured and nothing waits for the device.

    steps: out of 0 to num_steps-1.  Raises ValueError where step 0 is missing, after which alone there is
    something to reuse, or where a step lies outside the run.
    """

    steps: tuple[int, ...]
    num_steps: int

    def __post_init__(self) -> None:
        whole = isinstance(self.num_steps, int) and all(isinstance(step, int) for step in self.steps)
        if not whole:
            raise ValueError(f"schedule={list(self.steps)} of num_steps={self.num_steps!r}; "
                             "allowed: whole numbers")
        object.__setattr__(self, "steps", tuple(sorted(set(self.steps))))
        if not self.steps or self.steps[0] != 0:
            raise ValueError(f"schedule={list(self.steps)} lacks step 0; allowed: step 0 and later ones")
        if self.steps[-1] >= self.num_steps:
            raise ValueError(f"schedule step {self.steps[-1]}; allowed: 0 to {self.num_steps - 1}")

    def computes(self, step: int) -> bool:
        return step in self.steps

    @classmethod
    def uniform(cls, k: int, num_steps: int) -> FixedSchedule:
        """k computed steps, evenly spread, the first among them: the control for every other schedule."""
        if not 1 <= k <= num_steps:
            raise ValueError(f"k={k} computed steps; allowed: 1 to num_steps={num_steps}")
        return cls(tuple(i * num_steps // k for i in range(k)), num_steps)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> FixedSchedule:
        """The schedule of a recorded run, which all its videos share.  source: as in `Trace.from_json`."""
        trace = Trace.from_json(source)
        schedules = {tuple(video.computed_steps) for video in trace}
        if len(schedules) != 1:
            raise ValueError(f"schedule: the trace has {len(schedules)} different ones; allowed: one")
        return cls(schedules.pop(), trace.num_steps)
