"""Weights of a forecast's terms, fitted to the last change, and whether they are to be trusted.

Legend: b rows, p each of v videos that take turns; n terms.
"""
from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 1.2   # weight: further out is noise
ENOUGH = 0.2    # share of the last change that a forecast must explain; with less, reuse is safer


def fitted(terms: Tensor, along: Tensor) -> Tensor:
    """Weights [b, n] from 0 to LARGEST, one after the other: each fits what those before it left.

    terms e: their inner products, [b, n, n].  along: those with the change, [b, n].  Never worse than none.
    """
    weights: list[Tensor] = []
    for i in range(along.shape[1]):
        left = along[:, i]
        for j, weight in enumerate(weights):
            left = torch.addcmul(left, weight, terms[:, i, j], value=-1)
        weights.append((left / terms[:, i, i]).nan_to_num_(0, 0, 0).clamp_(0, LARGEST))
    return torch.stack(weights, dim=1)


def explained(weights: Tensor, terms: Tensor, along: Tensor) -> Tensor:
    """||change||^2 - ||change - sum of w e||^2, multiplied out: [b].  Arguments: as for `fitted`."""
    return (weights * (2 * along - (terms * weights[:, None]).sum(dim=2))).sum(dim=1)


def trusted(weights: Tensor, terms: Tensor, along: Tensor, changed: Tensor, videos: int) -> Tensor:
    """The weights of those videos whose change they explain well enough; 0 for the others.

    changed: ||change||^2, [b].  All rows of a video have a forecast, or none: guidance multiplies what they
    do not have in common.
    """
    surplus = torch.sub(explained(weights, terms, along), changed, alpha=ENOUGH)
    enough = surplus.unflatten(0, (-1, videos)).sum(dim=0) > 0
    return (weights.unflatten(0, (-1, videos)) * enough[:, None]).flatten(0, 1)
