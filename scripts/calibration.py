"""What is known before settings are tried, and which are to be tried for a speed or a quality."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from cache_choice import open_cache
from recorded_prompts import Foretold, RecordedPrompts
from trials import Outcome

from adacache import AdaCacheConfig, FixedSchedule
from adacache.calibrate import best_steps, fitted_codebook, guard_for
from opensora.pipeline import Pipeline
from opensora.utils.sample_request import SampleRequest

TRIES = 4  # numbers of computed steps; for a quality, before they grow faster
ORDER = 2  # of the forecast

Choices = dict[str, tuple[AdaCacheConfig, Foretold]]  # by kind of settings


@dataclass(frozen=True)
class Found:
    """Settings, what simulation foretold, and what they do to other prompts."""

    kind: str
    settings: AdaCacheConfig
    foretold: Foretold
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.kind}, {self.outcome} (foretold {self.foretold.psnr.mean():.1f} dB)"


class Calibration:
    """What is known before any settings are tried.  reused_cost: of a reused step, part of a computed one."""

    def __init__(self, prompts: RecordedPrompts, reused_cost: float, base: AdaCacheConfig) -> None:
        self.prompts, self.reused_cost, self.base = prompts, reused_cost, base

    @property
    def num_steps(self) -> int:
        return self.prompts.recording.num_steps

    def speed_of(self, computed: np.ndarray) -> np.ndarray:
        """Foretold speed-up of denoising, by numbers of computed steps."""
        return self.num_steps / (computed + (self.num_steps - computed) * self.reused_cost)

    def count_for(self, speed_up: float) -> int:
        """Computed steps with which denoising is that much faster.  Raises ValueError where none are few
        enough."""
        steps, cost = self.num_steps, self.reused_cost
        count = int((steps / speed_up - steps * cost) / (1 - cost)) if cost < 1 else 0
        if count < 2:
            most = max(1.0, steps / (2 + (steps - 2) * cost))
            raise ValueError(f"target_speedup={speed_up:g}; allowed: above 1, to {most:.1f}")
        return min(count, steps - 1)

    def choices(self, count: int) -> Choices:
        """Settings that compute so many steps, at most in the mean, and what they are foretold."""
        forecast = replace(self.base, codebook="fast", forecast=ORDER)
        recording, growth = self.prompts.recording, self.prompts.growth
        fixed = replace(forecast, schedule=best_steps(recording, count, forecast, growth))
        choices = {"fixed steps": fixed}
        with suppress(ValueError):  # of a codebook that computes more whatever the guard is
            choices["guard"] = replace(forecast, guard=guard_for(recording, count, forecast))
        with suppress(ValueError):  # or whatever the thresholds are
            fitted = fitted_codebook(recording, count, forecast, growth)
            choices["codebook"] = replace(forecast, codebook=fitted)
        return {kind: (settings, self.prompts.foretold(settings)) for kind, settings in choices.items()}


def reused_cost(pipeline: Pipeline, requests: Sequence[SampleRequest]) -> float:
    """Of a reused step, as part of a computed one."""
    steps, seconds = pipeline.scheduler.num_sampling_steps, []
    for computed in ((0,), range(steps), (0,)):  # the first to warm up
        cache = AdaCacheConfig(schedule=FixedSchedule(tuple(computed), steps), forecast=0)
        seconds.append(pipeline.generate(requests, partial(open_cache, cache))[0].seconds["denoise"])
    _, whole, once = seconds
    return max(0.0, (once - whole / steps) / (steps - 1) / (whole / steps))


@dataclass(frozen=True)
class Target:
    """value: of the denoising's speed-up, or of the mean PSNR in dB."""

    value: float
    of_speed: bool

    def met_by(self, found: Found) -> bool:
        return (found.outcome.speed_up if self.of_speed else found.outcome.psnr.mean()) >= self.value

    def worth(self, found: Found) -> float:
        """Of two that meet the target, which is better?"""
        return found.outcome.psnr.mean() if self.of_speed else -found.outcome.computed.mean()

    def choices(self, known: Calibration) -> Iterator[Choices]:
        """For a speed with fewer and fewer computed steps; for a quality with more and more, from as many as
        are foretold to be enough, in strides that grow."""
        if self.of_speed:
            most = known.count_for(self.value)
            yield from (known.choices(count) for count in range(most, max(1, most - TRIES), -1))
            return
        count, tried = 2, 0
        while count < known.num_steps:
            choices = known.choices(count)
            if tried or max(foretold.psnr.mean() for _, foretold in choices.values()) >= self.value:
                yield choices
                tried += 1
            count += max(1, tried - TRIES + 1)
