"""Extrapolation of a residual along the denoising steps, as far as it held so far.

Between computed steps plain reuse adds the last residual r.  A forecast of order 1 or 2 adds

    r + w1 j D1 + w2 j (j + g) D2,

j steps after the last computed one, g being the gap between the last two, D1 and D2 the divided differences
of the last residuals (Newton's form, uneven spacing).  With w = 1 that is the polynomial through them, which
overshoots wherever the trajectory bends.  So w is what would have been best at the last computed step, where
the true residual came to be known: the least squares fit of its change by what the forecast offered.  It is
small in the first steps, which nothing foretells, and near 1 where residuals drift steadily.

Legend: B rows, T frames, S patches per frame, C channels; b of the B rows; n terms, as many as the order.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

RIDGE = 0.05          # relative; keeps the fit of two nearly parallel terms from exploding
LARGEST = (1.2, 1.0)  # of w1 and w2: further out is noise
CHUNK = 4096          # tokens whose inner products are summed at once, so that fp32 copies stay small


class Forecast:
    """Differences of one residual, and the weights of their terms, row by row.

    order: 0 keeps nothing and only tells how wrong reuse was.  differences: D1, D2, each [B, (T S), C].
    weights: w1, w2, [B, n], fp32, on the device: nothing here waits for it.
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
        self.weights = torch.zeros(len(residual), self.order, device=residual.device, dtype=torch.float32)

    def ahead(self, rows: Tensor | None, clocks: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The terms to add to the last residual, as (factor [b, 1, 1], difference [b, (T S), C]).

        rows: index of b rows, None for all.  clocks: [b, 4], see `clock_numbers`.
        """
        factors = of_rows(self.weights, rows) * clocks[:, : self.order]
        return [(factor[:, None, None].to(difference.dtype), of_rows(difference, rows))
                for factor, difference in zip(factors.unbind(1), self.differences, strict=True)]

    def update(self, last: Tensor, new: Tensor, rows: Tensor | None, clocks: Tensor) -> None:
        """At a computed step.  last, new: of the due rows, [b, (T S), C].  rows, clocks: as in `ahead`."""
        change, spans = new - last, clocks[:, : self.order]
        known = [of_rows(difference, rows) for difference in self.differences]
        products = inner_products(change, *known, new)  # [b, 2 + n, 2 + n]
        terms = products[:, 1:-1, 1:-1] * spans[:, :, None] * spans[:, None, :]
        along = products[:, 0, 1:-1] * spans
        used = of_rows(self.weights, rows)
        missed = products[:, 0, 0] + objective(used, terms, along)
        self.missed = torch.stack([missed.clamp(min=0), products[:, -1, -1]], dim=1)
        store(self.weights, rows, fitted(terms, along))
        for old, difference in zip(self.differences, divided(change, known, clocks), strict=True):
            store(old, rows, difference)


def clock_numbers(reach: int, gap: int) -> tuple[float, float, float, float]:
    """j, j (j + g), 1 / j and 1 / (j + g); 0 for what there is no history for, which drops its term."""
    both = reach + gap if gap else 0
    return reach, reach * both, 1 / reach if reach else 0, 1 / both if both else 0


def divided(change: Tensor, known: Sequence[Tensor], clocks: Tensor) -> list[Tensor]:
    """The new divided differences: D1 over the last gap, D2 over the last two."""
    differences: list[Tensor] = []
    for order in range(len(known)):
        gained = change if order == 0 else differences[-1] - known[order - 1]
        differences.append(gained * clocks[:, 2 + order, None, None].to(change.dtype))
    return differences


def of_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def store(into: Tensor, rows: Tensor | None, values: Tensor) -> None:
    if rows is None:
        into.copy_(values)
    else:
        into.index_copy_(0, rows, values)


def inner_products(*tensors: Tensor) -> Tensor:
    """Of [b, (T S), C] tensors with one another, row by row and in fp32: [b, n, n]."""
    def of_row(*row: Tensor) -> Tensor:
        pieces = zip(*(x.split(CHUNK) for x in row), strict=True)
        matrices = (torch.stack(piece).flatten(1).float() for piece in pieces)
        return sum(matrix @ matrix.T for matrix in matrices)

    kind = tensors[0].device.type
    autocasts = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if autocasts else nullcontext():
        return torch.stack([of_row(*row) for row in zip(*tensors, strict=True)])


def objective(weights: Tensor, terms: Tensor, along: Tensor) -> Tensor:
    """||change - sum of w e||^2 - ||change||^2, multiplied out.  weights: [..., n].  Returns: [...]."""
    quadratic = torch.einsum("...i,...ij,...j->...", weights, terms, weights)
    return quadratic - 2 * (weights * along).sum(dim=-1)


def fitted(terms: Tensor, along: Tensor) -> Tensor:
    """Weights [b, n] from 0 to LARGEST that bring the terms nearest to the change: never worse than none.

    terms: their inner products, [b, n, n].  along: those with the change, [b, n].
    """
    order = along.shape[1]
    if order == 0:
        return along
    terms = terms + RIDGE * torch.diag_embed(terms.diagonal(dim1=1, dim2=2))
    own = terms.diagonal(dim1=1, dim2=2)
    none = torch.zeros_like(along[:, 0])
    first, second = along[:, 0] / own[:, 0], along[:, -1] / own[:, -1]
    if order == 1:
        candidates = [[none], [first]]
    else:
        mixed = terms[:, 0, 1]
        determinant = own[:, 0] * own[:, 1] - mixed * mixed
        both = [(own[:, 1] * along[:, 0] - mixed * along[:, 1]) / determinant,
                (own[:, 0] * along[:, 1] - mixed * along[:, 0]) / determinant]
        # the best inside, on each side of the box, and at its corner
        candidates = [[none, none], [first, none], [none, second], both,
                      [none + LARGEST[0], (along[:, 1] - mixed * LARGEST[0]) / own[:, 1]],
                      [(along[:, 0] - mixed * LARGEST[1]) / own[:, 0], none + LARGEST[1]]]
    chosen = torch.stack([torch.stack(pair, dim=1) for pair in candidates], dim=1)  # [b, candidates, n]
    chosen = torch.stack([weight.nan_to_num(0, 0, 0).clamp(0, largest)
                          for weight, largest in zip(chosen.unbind(2), LARGEST, strict=False)], dim=2)
    value = objective(chosen, terms[:, None], along[:, None]).nan_to_num(torch.inf)
    best = value.argmin(dim=1)
    return chosen.gather(1, best[:, None, None].expand(-1, 1, order))[:, 0]
