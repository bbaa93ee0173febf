"""Codebook: distance between two residuals -> cache rate, the number of steps to the next computed one.

Paper: AdaCache (arXiv 2411.02397), section 3.2; tables of the published code for Open-Sora v1.2.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

Pairs = Mapping[float, int] | Iterable[tuple[float, int]]

# name: {number of steps: (threshold, rate), ...}
PUBLISHED = {
    "fast": {
        30: ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.00, 1)),
        100: ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.00, 3)),
    },
    "slow": {
        30: ((0.08, 3), (0.16, 2), (0.24, 1), (0.32, 1), (0.40, 1), (1.00, 1)),
    },
}


@dataclass(frozen=True)
class Preset:
    """A codebook for every number of steps, and the settings that go with it (docs/method.md)."""

    tables: Mapping[int, Pairs]
    forecast: int = 0
    guard: float = math.inf
    as_published: bool = False


PRESETS = {
    "fast": Preset(PUBLISHED["fast"], forecast=2, guard=0.2),
    "slow": Preset(PUBLISHED["slow"], forecast=2, guard=0.07),
    "published-fast": Preset(PUBLISHED["fast"], as_published=True),
    "published-slow": Preset(PUBLISHED["slow"], as_published=True),
}


@dataclass(frozen=True)
class Codebook:
    """(threshold, rate) pairs, thresholds ascending; any number of them, at least one.

    Thresholds are relative changes per step; rates are steps, 1 computes the very next one.
    Given as pairs or as a mapping threshold -> rate.
    Raises ValueError where it is empty, does not ascend or has a rate below 1.
    """

    entries: tuple[tuple[float, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", checked_entries(self.entries))

    def rate(self, distance: float) -> int:
        """The rate of the first threshold above the distance; past the last threshold, the last rate.

        A NaN or infinite distance says nothing about the next step, so that one is computed: rate 1.
        """
        if not math.isfinite(distance):
            return 1
        for threshold, rate in self.entries:
            if distance < threshold:
                return rate
        return self.entries[-1][1]

    def rescaled(self, from_steps: int, to_steps: int) -> Codebook:
        """The same codebook for another number of steps.

        Of twice as many steps each is half as long: a residual changes half as much in one (thresholds times
        from/to), and the same stretch of the way takes twice as many (rates times to/from, rounded, at least
        1).  Neighbouring levels that come to the same rate become one, up to the higher threshold.
        """
        if from_steps == to_steps:
            return self
        factor = to_steps / from_steps
        scaled = [(threshold / factor, max(1, round(rate * factor))) for threshold, rate in self.entries]
        merged = [level for level, following in pairwise(scaled) if level[1] != following[1]]
        return Codebook((*merged, scaled[-1]))

    @classmethod
    def preset(cls, name: str, num_steps: int) -> Codebook:
        """A published codebook; for a number of steps without one, that of the nearest number, rescaled."""
        check_preset(name)
        tables = PRESETS[name].tables
        nearest = nearest_steps(tables, num_steps)
        return cls(tables[nearest]).rescaled(nearest, num_steps)


def check_preset(name: str) -> None:
    if name not in PRESETS:
        raise ValueError(f"codebook={name!r}; allowed: {', '.join(PRESETS)}, or (threshold, rate) pairs")


def nearest_steps(published: Iterable[int], num_steps: int) -> int:
    """The published number of steps nearest to `num_steps`, as a ratio: 60 is nearer to 100 than to 30."""
    return min(published, key=lambda steps: abs(math.log(num_steps / steps)))


def checked_entries(entries: Pairs) -> tuple[tuple[float, int], ...]:
    given = entries.items() if isinstance(entries, Mapping) else entries
    try:
        # float: a mapping that went through JSON has strings for keys
        pairs = tuple((float(threshold), rate) for threshold, rate in given)
    except (TypeError, ValueError):
        raise ValueError(f"codebook={entries!r}; allowed: pairs such as [[0.1, 3], [1.0, 1]]") from None
    if not pairs:
        raise ValueError(f"codebook={entries!r} is empty; allowed: one (threshold, rate) pair or more")
    for threshold, rate in pairs:
        if not 0 < threshold < math.inf:
            raise ValueError(f"codebook threshold {threshold}; allowed: finite numbers above 0")
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise ValueError(f"codebook rate {rate!r} at {threshold}; allowed: whole numbers from 1")
    for (lower, _), (upper, _) in pairwise(pairs):
        if lower >= upper:
            raise ValueError(f"codebook threshold {upper} after {lower}; allowed: ascending thresholds")
    return pairs
