"""What a forecast is fitted to: inner products of the last change and of the differences it is foretold by.

They are sums over tokens: ranks that have some tokens each add theirs up.

Legend: b rows, v videos with p rows each (with guidance 2, the conditional one first), m - 1 differences,
k sums, c results of guidance, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor

from adacache.rows import on_device

GUIDANCE = 5.0      # a usual scale; at any, what two rows do not have in common makes most of the error
AT_ONCE = 2**23     # numbers of a video that are summed at once, so that their fp32 copies stay small


@dataclass(frozen=True)
class Layout:
    """Which sums are needed, and in which order they go over the ranks.

    Of each row the inner products of the change and the differences among themselves; of each video, after
    guidance, the squared norms of what the forecast missed and of the new residual.  Of p rows and m - 1
    differences that is k = p m (m + 1) / 2 + 2 numbers for each video.
    wanted: places among all inner products, [p, m + 1, p, m + 1] flattened.  own: for [p, m, m] the number in
    `wanted`.  guided: what guidance makes of p rows, [c, p].  change: 1 for the change, 0 for the others,
    [m + 1].  truth: the new residual after guidance, by all tensors of all rows, [c, p (m + 1)].
    """

    wanted: Tensor
    own: Tensor
    guided: Tensor
    change: Tensor
    truth: Tensor

    @classmethod
    def of(cls, rows: int, tensors: int, device: torch.device, sums_device: torch.device) -> Layout:
        """rows: p.  tensors: m.  sums_device: where the sums will be read."""
        size = tensors + 1
        pairs = [(row, i, j) for row in range(rows)
                 for i, j in combinations_with_replacement(range(tensors), 2)]
        place = {pair: number for number, pair in enumerate(pairs)}
        own = [[[place[row, min(i, j), max(i, j)] for j in range(tensors)] for i in range(tensors)]
               for row in range(rows)]
        wanted = [((row * size + i) * rows + row) * size + j for row, i, j in pairs]
        guided, one_hot = guidance(rows), torch.eye(size, dtype=torch.float32)
        change, truth = one_hot[0], (guided[:, :, None] * one_hot[-1]).flatten(1)
        return cls(on_device(torch.tensor(wanted), device), on_device(torch.tensor(own), sums_device),
                   *(on_device(x, device) for x in (guided, change, truth)))

    def sums(self, tensors: Sequence[Tensor], used: Tensor, videos: int) -> Tensor:
        """Of change, differences and new residual, [b, (T S), C] each, the videos taking turns: [v, k].

        used: what the forecast multiplied the differences with, [b, m - 1].
        """
        products = inner_products(tensors, videos)
        missed = self.change - F.pad(used, (1, 1))  # [b, m + 1]
        missed = missed.unflatten(0, (-1, videos)).transpose(0, 1)[:, None]  # [v, 1, p, m + 1]
        missed = (missed * self.guided[:, :, None]).flatten(2)  # [v, c, (p (m + 1))]
        factors = torch.cat([missed, self.truth.expand(videos, -1, -1)], dim=1)
        squares = quadratic(products.flatten(3).flatten(1, 2), factors).unflatten(1, (2, -1)).sum(dim=2)
        return torch.cat([products.flatten(1)[:, self.wanted], squares], dim=1)

    def rows(self, sums: Tensor) -> Tensor:
        """Of every row its change and differences, all with all: [(p v), m, m]."""
        return sums[:, self.own].transpose(0, 1).flatten(0, 1)

    def missed(self, sums: Tensor) -> Tensor:
        """Squared norms of what the forecast missed and of the truth, after guidance: [v, 2]."""
        return sums[:, -2:].clamp(min=0)


def quadratic(matrices: Tensor, vectors: Tensor) -> Tensor:
    """vector^T matrix vector, [v, c].  matrices: [v, n, n]; vectors: [v, c, n]."""
    # no matrix product, which autocast or TF32 would make of fewer bits
    return ((vectors[..., None] * matrices[:, None]).sum(dim=2) * vectors).sum(dim=2)


def inner_products(tensors: Sequence[Tensor], videos: int) -> Tensor:
    """Of m tensors [b, (T S), C], all with all, video by video and in fp32: [v, p, m, p, m]."""
    kind, (b, _, C) = tensors[0].device.type, tensors[0].shape
    at_once = max(1, AT_ONCE // (b // videos * len(tensors) * C))  # the same whoever else is due
    autocasts = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if autocasts else nullcontext():
        pieces = zip(*(x.split(at_once, dim=1) for x in tensors), strict=True)
        # [(p v), m, tokens, C] -> [v, (p m), (tokens C)]
        matrices = (torch.stack(piece, dim=1).float().unflatten(0, (-1, videos)).transpose(0, 1)
                    .flatten(3).flatten(1, 2) for piece in pieces)
        products = sum(matrix @ matrix.mT for matrix in matrices)
    rows = (b // videos, len(tensors))
    return products.unflatten(2, rows).unflatten(1, rows)


def guidance(rows: int) -> Tensor:
    """What classifier-free guidance makes of a video's p rows, as factors of them: [c, p].

    Of a conditional row and an unconditional one, c and u, it makes u + s (c - u), s = GUIDANCE; of any other
    number each row counts for itself.
    """
    factors = [[GUIDANCE, 1 - GUIDANCE]] if rows == 2 else torch.eye(rows).tolist()
    return torch.tensor(factors, dtype=torch.float32)


def guided_norm(products: Tensor) -> Tensor:
    """Squared norm of what guidance makes of a video's rows, by their inner products [v, p, p]: [v]."""
    factors = guidance(products.shape[1]).to(products).expand(len(products), -1, -1)
    return quadratic(products, factors).sum(dim=1).clamp(min=0)
