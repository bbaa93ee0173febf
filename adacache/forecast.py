"""Extrapolation of a residual along the denoising steps, as far as it held so far.

Between computed steps plain reuse adds the last residual r.  A forecast of order 1 or 2 adds

    r + w1 j D1 + w2 j (j + g) D2,

j steps after the last computed one, g being the gap between the last two, D1 and D2 the divided differences
of the last residuals (Newton's form, uneven spacing).  With w = 1 that is the polynomial through them, which
overshoots wherever the trajectory bends.  So w is what would have been best at the last computed step, where
the true residual came to be known: the least squares fit of its change by what the forecast offered.  It is
small in the first steps, which nothing foretells, and near 1 where residuals drift steadily.

Legend: B rows, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGE = 0.05               # relative; keeps the fit of two nearly parallel terms from exploding
LARGEST = (1.2, 1.0)       # of w1 and w2: further out is noise


class Forecast:
    """Differences of one residual, and the weights of their terms, row by row.

    order: 0 keeps nothing and only tells how wrong reuse was.  differences: D1, D2, each [B, (T S), C].
    weights: w1, w2, [B, order], fp32, on the device: nothing here waits for it.
    missed: of the rows computed last, squared error of the forecast and squared norm of the truth, [b, 2].
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.differences: list[Tensor] = []
        self.weights: Tensor | None = None
        self.missed: Tensor | None = None

    def start(self, residual: Tensor) -> None:
        """At the first computed step: nothing is known of the change, so what follows is plain reuse."""
        self.differences = [torch.zeros_like(residual) for _ in range(self.order)]
        self.weights = torch.zeros(len(residual), self.order, device=residual.device)
        self.missed = None

    def ahead(self, rows: Tensor | None, reach: Sequence[int],
              gap: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The terms to add to the last residual, as (factor [b, 1, 1], difference [b, (T S), C]).

        reach: j of each row.  gap: g of each row.
        """
        weights = of_rows(self.weights, rows)
        spans = spans_of(reach, gap, self.order, weights.device)
        return [(factor[:, None, None].to(difference.dtype), of_rows(difference, rows))
                for factor, difference in zip((weights * spans).unbind(1), self.differences, strict=True)]

    def update(self, last: Tensor, new: Tensor, rows: Tensor | None, reach: Sequence[int],
               gap: Sequence[int]) -> None:
        """At a computed step.  last, new: of the due rows, [b, (T S), C].  reach, gap: as in `ahead`."""
        change = new - last
        known = [of_rows(difference, rows) for difference in self.differences]
        products = gram(change, *known, new)  # [b, 2 + order, 2 + order]
        spans = spans_of(reach, gap, self.order, new.device)
        terms = products[:, 1:-1, 1:-1] * spans[:, :, None] * spans[:, None, :]
        along = products[:, 0, 1:-1] * spans
        used = of_rows(self.weights, rows)
        # ||change - sum of w e||^2, multiplied out
        quadratic = torch.einsum("bi,bij,bj->b", used, terms, used)
        missed = products[:, 0, 0] - 2 * (used * along).sum(1) + quadratic
        self.missed = torch.stack([missed.clamp(min=0), products[:, -1, -1]], dim=1)
        self._store(self.weights, rows, fitted(terms, along))
        for old, difference in zip(self.differences, divided(change, known, reach, gap), strict=True):
            self._store(old, rows, difference)

    def _store(self, into: Tensor, rows: Tensor | None, values: Tensor) -> None:
        if rows is None:
            into.copy_(values)
        else:
            into.index_copy_(0, rows, values)


def divided(change: Tensor, known: Sequence[Tensor], reach: Sequence[int],
            gap: Sequence[int]) -> list[Tensor]:
    """The new divided differences: D1 over the last gap, D2 over the last two (0 while there is but one)."""
    slope = change * column([1 / j for j in reach], change)
    if len(known) < 2:
        return [slope][: len(known)]
    over = [1 / (j + g) if g else 0.0 for j, g in zip(reach, gap, strict=True)]
    return [slope, (slope - known[0]) * column(over, change)]


def of_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """[b] -> [b, 1, 1], dtype and device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def spans_of(reach: Sequence[int], gap: Sequence[int], order: int, device: torch.device) -> Tensor:
    """j and j (j + g) of each row: [b, order], fp32."""
    spans = [(j, j * (j + g))[:order] for j, g in zip(reach, gap, strict=True)]
    return torch.tensor(spans, dtype=torch.float32, device=device).reshape(len(spans), order)


def gram(*tensors: Tensor) -> Tensor:
    """Inner products of [b, (T S), C] tensors, row by row and in fp32: [b, n, n]."""
    def of_row(*row: Tensor) -> Tensor:
        matrix = torch.stack(row).flatten(1).float()
        return matrix @ matrix.T

    return torch.stack([of_row(*row) for row in zip(*tensors, strict=True)])


def fitted(terms: Tensor, along: Tensor) -> Tensor:
    """Weights [b, n] that bring the terms nearest to the change, n = 0, 1 or 2; 0 for a term that is 0.

    terms: their inner products, [b, n, n].  along: those with the change, [b, n].
    """
    if along.shape[1] == 0:
        return along
    first, own = along[:, 0], terms.diagonal(dim1=1, dim2=2) * (1 + RIDGE)
    alone = (along / own).nan_to_num(0, 0, 0)[:, :1]
    if along.shape[1] == 1:
        return alone.clamp(0, LARGEST[0])
    mixed, second = terms[:, 0, 1], along[:, 1]
    determinant = own[:, 0] * own[:, 1] - mixed * mixed
    both = torch.stack([own[:, 1] * first - mixed * second, own[:, 0] * second - mixed * first], dim=1)
    both = (both / determinant[:, None]).nan_to_num(0, 0, 0)
    alone = torch.cat([alone, torch.zeros_like(alone)], dim=1)
    weights = torch.where((own[:, 1:] > 0), both, alone)
    return weights.clamp(min=0).minimum(torch.tensor(LARGEST, device=weights.device))
