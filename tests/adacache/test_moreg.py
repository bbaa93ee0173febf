"""Motion regularization worked out by hand."""
import pytest
import torch

from adacache import MoRegConfig
from adacache.moreg import motion_factor, motion_gradient, motion_score, regularized_distance


def frames(*values: float, S: int = 2) -> torch.Tensor:
    """One row, a constant per frame: [1, (T S), 1]."""
    return torch.tensor(values).repeat_interleave(S)[None, :, None]


def test_the_score_compares_neighbouring_frames():
    # |3-1| + |2-3| over (3 + 2) + (1 + 3)
    assert motion_score(frames(1.0, 3.0, 2.0), S=2).item() == pytest.approx(3 / 9)
    assert motion_score(frames(5.0, 5.0, 5.0), S=2).item() == 0


def test_patches_of_one_frame_are_never_compared():
    checkered = torch.tensor([1.0, -7.0, 1.0, -7.0])[None, :, None]  # two equal frames of two patches
    assert motion_score(checkered, S=2).item() == 0
    assert motion_score(checkered, S=1).item() > 0


def test_strides_are_averaged():
    # stride 1 as above; stride 2: |2-1| / (2 + 1)
    score = motion_score(frames(1.0, 3.0, 2.0), S=2, strides=(1, 2))
    assert score.item() == pytest.approx((3 / 9 + 1 / 3) / 2)


def test_a_single_frame_has_no_score():
    assert motion_score(frames(1.0), S=2).isnan()


def test_factor_gradient_and_regularized_distance():
    assert motion_factor(torch.tensor(0.6), scale=0.3, power=3).item() == pytest.approx(8)
    assert motion_gradient(8.0, 2.0, rate=3, gain=10) == pytest.approx(20)
    assert regularized_distance(0.1, 8.0, -20.0) == pytest.approx(2.8)


@pytest.mark.parametrize("num_steps, window", [(30, (4, 26)), (100, (10, 90)), (60, (6, 54)), (15, (2, 13)),
                                               (3, (1, 3))])
def test_the_window_is_the_published_one_or_the_same_part_of_the_run(num_steps, window):
    assert MoRegConfig().window_for(num_steps) == window


def test_a_window_of_ones_own_is_kept():
    config = MoRegConfig(window=(4, 30))
    assert config.window_for(100) == (4, 30)
    # counted from 1, inclusive; steps count from 0
    assert [step for step in range(40) if config.applies_to(step, 100)] == list(range(3, 30))
