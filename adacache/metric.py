"""How much a residual changed between two computed steps.  Paper: AdaCache (arXiv 2411.02397), section 3.2.

Legend: B rows that share a schedule, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """A distance by sums over rows, tokens and channels: where these are on several ranks, each has its own.

    sums: (new, cached), [B, (T S), C] each -> [n], fp32.  distance: their totals [..., n] -> [...].
    """

    sums: Callable[[Tensor, Tensor], Tensor]
    distance: Callable[[Tensor], Tensor]


def l1_sums(new: Tensor, cached: Tensor) -> Tensor:
    """||cached - new||_1, ||cached||_1."""
    return torch.stack([l1_norm(cached - new), l1_norm(cached)])


def l2_sums(new: Tensor, cached: Tensor) -> Tensor:
    """||cached - new||_2^2, ||cached||_2^2."""
    new, cached = new.float(), cached.float()
    return torch.stack([(cached - new).square().sum(), cached.square().sum()])


def cosine_sums(new: Tensor, cached: Tensor) -> Tensor:
    """<cached, new>, ||cached||_2^2, ||new||_2^2."""
    new, cached = new.float(), cached.float()
    return torch.stack([(cached * new).sum(), cached.square().sum(), new.square().sum()])


def l1_norm(x: Tensor) -> Tensor:
    # fp32: a bf16 sum over 1e8 elements keeps 8 bits, coarser than the gap between codebook entries
    return x.abs().sum(dtype=torch.float32)


METRICS = {
    "l1": Metric(l1_sums, lambda sums: sums[..., 0] / sums[..., 1]),
    "l2": Metric(l2_sums, lambda sums: (sums[..., 0] / sums[..., 1]).sqrt()),
    "cosine": Metric(cosine_sums, lambda sums: 1 - sums[..., 0] / (sums[..., 1] * sums[..., 2]).sqrt()),
}


def residual_distance(new: Tensor, cached: Tensor, metric: str = "l1") -> Tensor:
    """c_t, still to be divided by the steps between the two: relative change over all rows, tokens, channels.

    new, cached: [B, (T S), C].  metric: l1 (published), ||cached - new||_1 / ||cached||_1; l2, the same with
    the 2-norm, or cosine, 1 - <cached, new> / (||cached||_2 ||new||_2) (the paper's ablation).
    Returns: [], fp32, on the device; NaN or infinite where `cached` is all zero.
    """
    return METRICS[metric].distance(METRICS[metric].sums(new, cached))
