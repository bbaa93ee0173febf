"""Extrapolation of a residual along the denoising steps, as far as it held so far.

Between computed steps plain reuse adds the last residual r.  A forecast of order 1 or 2 adds

    r + w1 j D1 + w2 j (j + g) D2,

j steps after the last computed one, g being the gap between the last two, D1 and D2 the divided differences
of the last residuals (Newton's form, uneven spacing).  With w = 1 that is the polynomial through them, which
overshoots wherever the trajectory bends.  So w is what would have been right at the last computed step, where
the true residual came to be known: each term in turn is fitted, by least squares, to what those before it
left of the change.  Where that explains little, as in the first steps, w is 0; it is near 1 where residuals
drift steadily.

Legend: B rows, T frames, S patches per frame, C channels; b of the B rows, p each of v videos; n terms, as
many as the order; R ranks that the rows of a video are on, usually 1.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from adacache.ranks import ALONE, Ranks

LARGEST = 1.2   # weight: further out is noise
ENOUGH = 0.2    # share of the last change that a forecast must explain; with less, reuse is safer
GUIDANCE = 5.0  # a usual scale; at any, what two rows do not have in common makes most of the error
CHUNK = 512     # tokens whose inner products are summed at once, so that fp32 copies stay small


@dataclass(frozen=True)
class Observed:
    """What a computed step showed of its rows.

    products: inner products of change, differences and new residual, all with all, over the tokens that are
    here: [v, R p, 2 + n, R p, 2 + n].
    rows: index among all R B, None for all.  spans: j and j (j + g), [R b, n].
    """

    products: Tensor
    rows: Tensor | None
    spans: Tensor


class Forecast:
    """Differences of one residual, and the weights of their terms, row by row.

    order: 0 keeps nothing and only tells how wrong reuse was.  differences: D1, D2, each [B, (T S), C].
    weights: w1, w2, [R B, n], fp32, on the device: nothing here waits for it.
    observed: at the running step; `learn` makes weights and `missed` of it.
    missed: of the videos computed last, squared error of the forecast and squared norm of the truth, [v, 2].
    """

    def __init__(self, order: int, ranks: Ranks = ALONE) -> None:
        self.order, self.ranks = order, ranks
        self.differences: list[Tensor] = []
        self.weights: Tensor | None = None
        self.observed: Observed | None = None
        self.missed: Tensor | None = None

    def start(self, residual: Tensor) -> None:
        """At the first computed step: nothing is known of the change, so what follows is plain reuse."""
        self.differences = [torch.zeros_like(residual) for _ in range(self.order)]
        self.weights = torch.zeros(self.ranks.row_parts * len(residual), self.order, device=residual.device,
                                   dtype=torch.float32)

    def ahead(self, rows: Tensor | None, clocks: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The terms to add to the last residual, as (factor [b, 1, 1], difference [b, (T S), C]).

        rows: index of b rows, None for all.  clocks: [b, 4], see `clock_numbers`.
        """
        factors = of_rows(self.ranks.own_rows(self.weights), rows) * clocks[:, : self.order]
        return [(factor[:, None, None].to(difference.dtype), of_rows(difference, rows))
                for factor, difference in zip(factors.unbind(1), self.differences, strict=True)]

    def observe(self, last: Tensor, new: Tensor, videos: int, rows: Tensor | None, clocks: Tensor) -> None:
        """At a computed step; the new differences are known at once, their weights after `learn`.

        last, new: residuals of the due rows, [b, (T S), C], in which the videos take turns.  rows, clocks: as
        in `ahead`.
        """
        change, ranks = new - last, self.ranks
        known = [of_rows(difference, rows) for difference in self.differences]
        products = inner_products([ranks.by_tokens(x) for x in (change, *known, new)], videos)
        every = ranks.all_rows(rows, len(self.weights) // ranks.row_parts)
        self.observed = Observed(products, every, clocks[:, : self.order].repeat(ranks.row_parts, 1))
        self.differences = [stored(old, rows, difference) for old, difference
                            in zip(self.differences, divided(change, known, clocks), strict=True)]

    def learn(self, products: Tensor) -> None:
        """What the forecast missed, and with which weights it would not have.

        products: as observed, summed over all ranks.
        """
        rows, spans = self.observed.rows, self.observed.spans
        errors = of_errors(products, of_rows(self.weights, rows) * spans)
        self.missed = torch.stack([guided_norm(errors), guided_norm(products[:, :, -1, :, -1])], dim=1)
        if self.order:
            own = products.diagonal(dim1=1, dim2=3).permute(3, 0, 1, 2).flatten(0, 1)  # [R b, 2 + n, 2 + n]
            terms = own[:, 1:-1, 1:-1] * spans[:, :, None] * spans[:, None, :]
            along = own[:, 0, 1:-1] * spans
            weights = trusted(fitted(terms, along), terms, along, own[:, 0, 0], len(products))
            self.weights = stored(self.weights, rows, weights)


def clock_numbers(reach: int, gap: int) -> tuple[float, float, float, float]:
    """j, j (j + g), 1 / j and 1 / (j + g); 0 for what there is no history for, which drops its term."""
    both = reach + gap if gap else 0
    return reach, reach * both, 1 / reach if reach else 0, 1 / both if both else 0


def divided(change: Tensor, known: Sequence[Tensor], clocks: Tensor) -> list[Tensor]:
    """The new divided differences: D1 over the last gap, D2 over the last two."""
    differences: list[Tensor] = []
    for order in range(len(known)):
        gained = change if order == 0 else differences[-1] - known[order - 1]
        difference = gained * clocks[:, 2 + order, None, None].to(change.dtype)
        # of large residuals fp16 has no difference, and a weight of 0 would not take an infinite one away
        differences.append(difference.nan_to_num(0.0) if difference.dtype == torch.float16 else difference)
    return differences


def of_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def stored(into: Tensor | None, rows: Tensor | None, values: Tensor) -> Tensor:
    """The whole batch, once `values` came for some rows, written into it, or for all (None), in its place."""
    return values if rows is None else into.index_copy_(0, rows, values)


def inner_products(tensors: Sequence[Tensor], videos: int) -> Tensor:
    """Of m tensors [b, (T S), C], all with all, video by video and in fp32: [v, p, m, p, m]."""
    def by_video(x: Tensor) -> Tensor:  # [v, p, (T S), C]
        return x.unflatten(0, (-1, videos)).transpose(0, 1)

    kind = tensors[0].device.type
    autocasts = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if autocasts else nullcontext():
        pieces = zip(*(by_video(x).split(CHUNK, dim=2) for x in tensors), strict=True)
        matrices = (torch.stack(piece, dim=2).flatten(3).flatten(1, 2).float() for piece in pieces)
        products = sum(matrix @ matrix.mT for matrix in matrices)
    rows = (len(tensors[0]) // videos, len(tensors))
    return products.unflatten(2, rows).unflatten(1, rows)


def of_errors(products: Tensor, used: Tensor) -> Tensor:
    """Inner products of the errors of a video's rows, change - sum of used D: [v, p, p].

    products: of change, differences, truth.  used: what the differences were multiplied with, [b, n].
    """
    factors = torch.cat([used.new_ones(len(used), 1), -used], dim=1)
    factors = factors.unflatten(0, (-1, len(products))).transpose(0, 1)  # [v, p, 1 + n]
    return (products[:, :, :-1, :, :-1] * factors[..., None, None] * factors[:, None, None]).sum(dim=(2, 4))


def guided_norm(products: Tensor) -> Tensor:
    """Squared norm of what guidance makes of a video's rows, by their inner products [v, p, p]: [v].

    Of a conditional row c and an unconditional one u that is u + s (c - u), s = GUIDANCE; otherwise every row
    counts for itself.
    """
    own = products.diagonal(dim1=1, dim2=2)
    if products.shape[1] != 2:
        return own.sum(dim=1)
    s = GUIDANCE
    squared = s * s * own[:, 0] + (1 - s) * (1 - s) * own[:, 1] + 2 * s * (1 - s) * products[:, 0, 1]
    return squared.clamp(min=0)


def explained(weights: Tensor, terms: Tensor, along: Tensor) -> Tensor:
    """||change||^2 - ||change - sum of w e||^2, multiplied out.

    weights: [b, n].  terms e: their inner products, [b, n, n].  along: those with the change, [b, n].
    Returns: [b].
    """
    squared = (terms * weights[:, :, None] * weights[:, None]).sum(dim=(1, 2))
    return 2 * (weights * along).sum(dim=1) - squared


def fitted(terms: Tensor, along: Tensor) -> Tensor:
    """Weights [b, n] from 0 to LARGEST, one after the other: each fits what those before it left.

    Never worse than none.  Arguments: as for `explained`.
    """
    weights: list[Tensor] = []
    for i in range(along.shape[1]):
        left = along[:, i] - sum(weight * terms[:, i, j] for j, weight in enumerate(weights))
        weights.append((left / terms[:, i, i]).nan_to_num(0, 0, 0).clamp(0, LARGEST))
    return torch.stack(weights, dim=1)


def trusted(weights: Tensor, terms: Tensor, along: Tensor, changed: Tensor, videos: int) -> Tensor:
    """The weights of those videos whose change they explain well enough; 0 for the others.

    changed: ||change||^2, [b].  All rows of a video have a forecast, or none: guidance multiplies what they
    do not have in common.
    """
    gained, total = (x.unflatten(0, (-1, videos)).sum(dim=0)
                     for x in (explained(weights, terms, along), changed))
    enough = gained > ENOUGH * total
    return weights * enough.repeat(len(weights) // videos)[:, None]
