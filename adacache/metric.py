"""How much a residual changed between two computed steps.  Paper: AdaCache (arXiv 2411.02397), section 3.2.

Legend: B rows that share a schedule, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

import torch
from torch import Tensor


def l1_distance(new: Tensor, cached: Tensor) -> Tensor:
    """||cached - new||_1 / ||cached||_1."""
    return l1_norm(cached - new) / l1_norm(cached)


def l2_distance(new: Tensor, cached: Tensor) -> Tensor:
    """||cached - new||_2 / ||cached||_2."""
    new, cached = new.float(), cached.float()
    return ((cached - new).square().sum() / cached.square().sum()).sqrt()


def cosine_distance(new: Tensor, cached: Tensor) -> Tensor:
    """1 - <cached, new> / (||cached||_2 ||new||_2)."""
    new, cached = new.float(), cached.float()
    return 1 - (cached * new).sum() / (cached.square().sum() * new.square().sum()).sqrt()


def l1_norm(x: Tensor) -> Tensor:
    # fp32: a bf16 sum over 1e8 elements keeps 8 bits, coarser than the gap between codebook entries
    return x.abs().sum(dtype=torch.float32)


METRICS = {"l1": l1_distance, "l2": l2_distance, "cosine": cosine_distance}


def residual_distance(new: Tensor, cached: Tensor, metric: str = "l1") -> Tensor:
    """c_t, still to be divided by the steps between the two: relative change over all rows, tokens, channels.

    new, cached: [B, (T S), C].  metric: l1 (published), l2 or cosine (the paper's ablation).
    Returns: [], fp32, on the device; NaN or infinite where `cached` is all zero.
    """
    return METRICS[metric](new, cached)
