"""MoReg, motion regularization: where a video moves, residuals are reused for fewer steps.

Paper: AdaCache (arXiv 2411.02397), section 3.3.
Legend: B rows that share a schedule, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from adacache.metric import l1_norm


def motion_score(residual: Tensor, S: int, strides: Sequence[int] = (1,)) -> Tensor:
    """Mean over the strides i of ||p[i:] - p[:-i]||_1 / (||p[i:]||_1 + ||p[:-i]||_1), p cut along frames.

    residual: [B, (T S), C].  Returns: [], fp32, 0 (still) to 1; NaN where a stride leaves no pair of frames.
    """
    return score_of(motion_sums(residual, S, strides))


def motion_sums(residual: Tensor, S: int, strides: Sequence[int]) -> Tensor:
    """Numerator and denominator for each of n strides: [n, 2], fp32.  Ranks that have some patches of all
    frames have their own; the score is that of the totals."""
    frames = rearrange(residual, "b (t s) c -> b t s c", s=S)

    def sums(stride: int) -> Tensor:
        later, earlier = frames[:, stride:], frames[:, :-stride]
        return torch.stack([l1_norm(later - earlier), l1_norm(later) + l1_norm(earlier)])

    return torch.stack([sums(stride) for stride in strides])


def score_of(sums: Tensor) -> Tensor:
    """[..., n, 2], totals of `motion_sums` -> [...]."""
    return (sums[..., 0] / sums[..., 1]).mean(dim=-1)


def motion_factor(score: Tensor, scale: float, power: float) -> Tensor:
    """m = (score / scale)^power: 1 for usual motion, 0 for a still video, large for a fast one."""
    return (score / scale) ** power


def motion_gradient(motion: float, motion_before: float, rate: int, gain: float) -> float:
    """g = gain (m - m_before) / rate: how much the factor changed per step since the last decision."""
    return gain * (motion - motion_before) / rate


def regularized_distance(distance: float, motion: float, gradient: float) -> float:
    """c (m + |g|)."""
    return distance * (motion + abs(gradient))
