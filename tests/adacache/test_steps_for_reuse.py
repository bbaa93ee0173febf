"""Steps placed by dynamic programming: no schedule of as many has a smaller sum over its gaps."""
import itertools

import pytest
import torch

from adacache import AdaCacheConfig, FixedSchedule
from adacache.calibrate import gap_costs, simulate, steps_for_reuse
from adacache.recording import Recording

STEPS, VIDEOS = 7, 3
GROWTH = torch.linspace(2.0, 0.5, STEPS, dtype=torch.float64)


def recording() -> Recording:
    """Residuals of a random walk: the further apart, the more different."""
    draws = torch.randn(VIDEOS, 2, STEPS, 20, generator=torch.Generator().manual_seed(0))
    walk = draws.double().cumsum(dim=2)
    rows = walk.flatten(1, 2)
    products = (rows @ rows.mT).unflatten(2, (2, STEPS)).unflatten(1, (2, STEPS))
    return Recording(products, {}, {})


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_no_schedule_of_as_many_steps_costs_less(count):
    costs = gap_costs(recording(), GROWTH)

    def cost(steps: tuple[int, ...]) -> float:
        return sum(costs[i, j].item() for i, j in zip(steps, (*steps[1:], STEPS), strict=True))

    every = [(0, *others) for others in itertools.combinations(range(1, STEPS), count - 1)]
    found = steps_for_reuse(recording(), count, GROWTH)
    assert found.steps == min(every, key=cost) and found.forecast == 0


@pytest.mark.parametrize("i, j", [(0, 1), (0, 3), (2, 7), (4, 6)])
def test_a_gap_costs_what_a_run_with_that_gap_alone_errs_by(i, j):
    kept = tuple(step for step in range(STEPS) if not i < step < j)
    run = simulate(recording(), AdaCacheConfig(schedule=FixedSchedule(kept, STEPS), forecast=0))
    expected = run.squared_error(GROWTH).mean()
    torch.testing.assert_close(gap_costs(recording(), GROWTH)[i, j], expected)


def test_a_count_that_the_run_has_not_is_an_error():
    with pytest.raises(ValueError, match="8 computed steps; allowed: 2 to num_steps=7"):
        steps_for_reuse(recording(), 8, GROWTH)
