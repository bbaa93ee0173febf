"""Distances worked out by hand."""
import pytest
import torch

from adacache.metric import residual_distance

CACHED = torch.tensor([[[3.0, -4.0]], [[0.0, 0.0]]])  # two rows of one token and two channels
NEW = torch.tensor([[[3.0, -1.0]], [[1.0, 0.0]]])


def test_l1_is_the_change_relative_to_what_was_stored():
    assert residual_distance(NEW, CACHED).item() == pytest.approx((3 + 1) / (3 + 4))


def test_l2():
    assert residual_distance(NEW, CACHED, "l2").item() == pytest.approx((9 + 1) ** 0.5 / 5)


def test_cosine():
    # <cached, new> = 9 + 4; norms 5 and sqrt(9 + 1 + 1)
    assert residual_distance(NEW, CACHED, "cosine").item() == pytest.approx(1 - 13 / (5 * 11**0.5))
    assert residual_distance(3 * CACHED, CACHED, "cosine").item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_equal_residuals_are_at_distance_zero_and_empty_ones_at_none(metric):
    assert residual_distance(CACHED, CACHED, metric).item() == pytest.approx(0, abs=1e-6)
    assert not residual_distance(NEW, torch.zeros_like(NEW), metric).isfinite()
    assert residual_distance(torch.zeros_like(NEW), torch.zeros_like(NEW), metric).isnan()


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_bf16_is_summed_in_fp32(metric):
    # 2^16 ones: a bf16 sum sticks at 256, where adding 1 changes nothing
    cached = torch.ones(1, 2**16, 1, dtype=torch.bfloat16)
    new = cached.clone()
    new[:, : 2**15] = 1.5
    distance = residual_distance(new, cached, metric)
    assert distance.dtype == torch.float32
    assert distance.item() == pytest.approx({"l1": 0.25, "l2": 0.125**0.5}[metric])
