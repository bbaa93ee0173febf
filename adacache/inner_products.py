"""What a forecast is fitted to: inner products of the last change and of the differences it is foretold by.

They are sums over tokens: ranks that have some tokens each add theirs up, and that is all they exchange.

Legend: b rows, v videos with p rows each (with guidance 2, the conditional one first), m - 1 differences,
k sums, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from adacache.rows import on_device

GUIDANCE = 5.0      # a usual scale; at any, what two rows do not have in common makes most of the error
AT_ONCE = 2**23     # numbers of a video that are summed at once, so that their fp32 copies stay small


@dataclass(frozen=True)
class Layout:
    """Which inner products are needed, and in which order they are summed over the ranks.

    Of each row the change and the differences among themselves; with 2 rows also one row's with the other's;
    last the squared norm of the new residual, as guidance makes it.  Of p rows and m - 1 differences that is
    p m (m + 1) / 2 numbers for each video, with 2 rows m^2 more, and one.
    wanted: places among all inner products, [p, m + 1, p, m + 1] flattened.  own: for [p, m, m] of the rows
    themselves, the number in `wanted`; across: for [m, m] of one row with the other.
    """

    wanted: Tensor
    own: Tensor
    across: Tensor | None

    @classmethod
    def of(cls, rows: int, tensors: int, device: torch.device, sums_device: torch.device) -> Layout:
        """rows: p.  tensors: m.  sums_device: where the sums will be read."""
        size = tensors + 1
        pairs = [(row, i, row, j) for row in range(rows)
                 for i, j in combinations_with_replacement(range(tensors), 2)]
        place = {pair: number for number, pair in enumerate(pairs)}
        own = [[[place[row, min(i, j), row, max(i, j)] for j in range(tensors)] for i in range(tensors)]
               for row in range(rows)]
        across = None
        if rows == 2:
            across = [[len(pairs) + i * tensors + j for j in range(tensors)] for i in range(tensors)]
            pairs += [(0, i, 1, j) for i, j in product(range(tensors), repeat=2)]
        wanted = [((row * size + i) * rows + other) * size + j for row, i, other, j in pairs]
        return cls(*(None if places is None else on_device(torch.tensor(places), where)
                     for places, where in ((wanted, device), (own, sums_device), (across, sums_device))))

    def sums(self, tensors: Sequence[Tensor], videos: int) -> Tensor:
        """Of change, differences and new residual, [b, (T S), C] each, the videos taking turns: [v, k]."""
        products = inner_products(tensors, videos)
        truth = guided_norm(products[:, :, -1, :, -1])
        return torch.cat([products.flatten(1)[:, self.wanted], truth[:, None]], dim=1)

    def rows(self, sums: Tensor) -> Tensor:
        """Of every row its change and differences, all with all: [(p v), m, m]."""
        return sums[:, self.own].transpose(0, 1).flatten(0, 1)

    def missed(self, sums: Tensor, inner: Tensor, used: Tensor) -> Tensor:
        """Squared norm of what a forecast missed, change - sum of used x difference, and the truth's: [v, 2].

        inner: the sums as `rows` has them.  used: what differences are multiplied with, [(p v), m - 1].
        """
        factors = torch.cat([used.new_ones(len(used), 1), -used], dim=1).unflatten(0, (-1, len(sums)))
        own = quadratic(factors, inner.unflatten(0, (-1, len(sums))), factors)  # [p, v]
        both = quadratic(factors[0], sums[:, self.across], factors[1]) if self.across is not None else None
        return torch.stack([guided(own.T, both), sums[:, -1]], dim=1)


def quadratic(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    """left^T matrix right.  left, right: [..., m]; matrix: [..., m, m]."""
    return ((matrix @ right[..., None])[..., 0] * left).sum(dim=-1)


def inner_products(tensors: Sequence[Tensor], videos: int) -> Tensor:
    """Of m tensors [b, (T S), C], all with all, video by video and in fp32: [v, p, m, p, m]."""
    kind, (b, _, C) = tensors[0].device.type, tensors[0].shape
    at_once = max(1, AT_ONCE // (b // videos * len(tensors) * C))  # the same whoever else is due
    autocasts = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if autocasts else nullcontext():
        pieces = zip(*(x.split(at_once, dim=1) for x in tensors),
                     strict=True)
        # [(p v), m, tokens, C] -> [v, (p m), (tokens C)]
        matrices = (torch.stack(piece, dim=1).float().unflatten(0, (-1, videos)).transpose(0, 1)
                    .flatten(3).flatten(1, 2) for piece in pieces)
        products = sum(matrix @ matrix.mT for matrix in matrices)
    rows = (b // videos, len(tensors))
    return products.unflatten(2, rows).unflatten(1, rows)


def guided_norm(products: Tensor) -> Tensor:
    """Squared norm of what guidance makes of a video's rows, by their inner products [v, p, p]: [v]."""
    return guided(products.diagonal(dim1=1, dim2=2), products[:, 0, 1] if products.shape[1] == 2 else None)


def guided(own: Tensor, both: Tensor | None) -> Tensor:
    """The same, of squared norms [v, p] and, with 2 rows, their inner product [v].

    Of a conditional row c and an unconditional one u guidance makes u + s (c - u), s = GUIDANCE; otherwise
    every row counts for itself.
    """
    if both is None:
        return own.sum(dim=1)
    s, k = GUIDANCE, (1 - GUIDANCE) / GUIDANCE  # s^2 (c + k u)^2
    squared = torch.add(torch.add(own[:, 0], own[:, 1], alpha=k * k), both, alpha=2 * k)
    return (s * s * squared).clamp(min=0)
