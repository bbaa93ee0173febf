"""A fixed schedule for a number of computed steps, by dynamic programming on recorded runs.

With plain reuse what one gap between computed steps adds to the final error does not depend on the others,
as long as errors are small.  So the schedule with the least sum over its gaps is found exactly.  Of several
gaps' errors the squares are summed.

Legend: V videos with p rows each, K steps, D numbers that stand for a residual (see adacache.recording).
"""
from __future__ import annotations

import torch
from torch import Tensor

from adacache import FixedSchedule
from adacache.calibrate import check_count
from adacache.inner_products import guided_norm
from adacache.recording import Recording


def offline_schedule(recording: Recording, count: int, growth: Tensor) -> FixedSchedule:
    """The `count` steps to compute, for plain reuse.  growth: [K], see adacache.calibrate.growth_of_errors.

    Raises ValueError for a count that the run has not.
    """
    total = recording.num_steps
    check_count(count, total)
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
