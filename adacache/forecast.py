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
many as the order; k sums; R ranks that the rows of a video are on, usually 1.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adacache.fit import fitted, trusted
from adacache.inner_products import Layout
from adacache.ranks import ALONE, Ranks
from adacache.rows import Rows, numbers_on, of_rows, on_device, written

HOST = torch.device("cpu")
Gaps = Sequence[tuple[float, float, float, float]]  # of each of some rows, see `gap_numbers`


@dataclass(frozen=True)
class Observed:
    """What a computed step showed.

    sums: over the tokens that are here, [v, k], see `Layout`.  index: of the videos' rows among all weights,
    [R b], None for all.  spans: theirs, [R b, n].
    """

    sums: Tensor
    index: Tensor | None
    spans: Tensor


class Forecast:
    """Differences of one residual, and the weights of their terms, row by row.

    order: 0 keeps nothing and only tells how wrong reuse was.  on_host: weights are fitted there, where
    decisions are taken; otherwise on the device, and nothing waits for it.
    differences: D1, D2, each [B, (T S), C].  weights: w1, w2, [R B, n], fp32.
    observed: at the running step; `learn` makes weights and `missed` of it.
    missed: of the videos computed last, squared error of the forecast and squared norm of the truth, [v, 2].
    """

    def __init__(self, order: int, ranks: Ranks = ALONE, on_host: bool = False) -> None:
        self.order, self.ranks, self.on_host = order, ranks, on_host
        self.differences: list[Tensor] = []
        self.weights: Tensor | None = None
        self.layout: Layout | None = None
        self.observed: Observed | None = None
        self.missed: Tensor | None = None

    def start(self, residual: Tensor, videos: int) -> None:
        """At the first computed step: nothing is known of the change, so what follows is plain reuse."""
        self.differences = [torch.zeros_like(residual) for _ in range(self.order)]
        rows, device = self.ranks.row_parts * len(residual), HOST if self.on_host else residual.device
        self.weights = torch.zeros(rows, self.order, device=device, dtype=torch.float32)
        self.layout = Layout.of(rows // videos, 1 + self.order, residual.device, device)

    def ahead(self, rows: Rows | None, gaps: Gaps) -> list[tuple[Tensor, Tensor]]:
        """The terms to add to the last residual, as (factor [b, 1, 1], difference [b, (T S), C]).

        rows: b of them, None for all; gaps: theirs.
        """
        weights = of_rows(self.ranks.own_rows(self.weights), self._index(rows))
        factors = on_device(weights * self._spans(gaps), self.differences[0].device)
        return [(factor[:, None, None].to(difference.dtype), of_rows(difference, rows and rows.index))
                for factor, difference in zip(factors.unbind(1), self.differences, strict=True)]

    def observe(self, last: Tensor, new: Tensor, videos: int, rows: Rows | None, gaps: Gaps) -> None:
        """At a computed step; the new differences are known at once, their weights after `learn`.

        last, new: residuals of the due rows, [b, (T S), C], in which the videos take turns.  rows, gaps: as
        in `ahead`.
        """
        change, index, parts = new - last, rows and rows.index, self.ranks.row_parts
        known = [of_rows(difference, index) for difference in self.differences]
        everywhere = self.ranks.all_rows(self._index(rows), len(self.weights) // parts)
        spans = self._spans([*gaps] * parts)
        used = on_device(of_rows(self.weights, everywhere) * spans, new.device)
        sums = self.layout.sums([self.ranks.by_tokens(x) for x in (change, *known, new)], used, videos)
        self.observed = Observed(sums, everywhere, spans)
        on_new = numbers_on(new.device, gaps) if known else None
        self.differences = [written(old, index, difference) for old, difference
                            in zip(self.differences, divided(change, known, on_new), strict=True)]

    def learn(self, sums: Tensor) -> None:
        """What the forecast missed, and with which weights it would not have.

        sums: as observed, summed over all ranks, on the device of the weights.
        """
        observed, self.missed = self.observed, self.layout.missed(sums)
        if self.order:
            spans, inner = observed.spans, self.layout.rows(sums)  # [R b, 1 + n, 1 + n]
            terms, along = inner[:, 1:, 1:] * (spans[:, :, None] * spans[:, None]), inner[:, 0, 1:] * spans
            weights = trusted(fitted(terms, along), terms, along, inner[:, 0, 0], len(sums))
            self.weights = written(self.weights, observed.index, weights)

    def _index(self, rows: Rows | None) -> Tensor | None:
        """Where the weights are."""
        return torch.tensor(rows.numbers) if rows is not None and self.on_host else rows and rows.index

    def _spans(self, gaps: Gaps) -> Tensor:
        """j and j (j + g): [b, n]."""
        return numbers_on(self.weights.device, [of_row[: self.order] for of_row in gaps])


def gap_numbers(reach: int, gap: int) -> tuple[float, float, float, float]:
    """j, j (j + g), 1 / j and 1 / (j + g); 0 for what there is no history for, which drops its term."""
    both = reach + gap if gap else 0
    return reach, reach * both, 1 / reach if reach else 0, 1 / both if both else 0


def divided(change: Tensor, known: Sequence[Tensor], gaps: Tensor | None) -> list[Tensor]:
    """The new divided differences: D1 over the last gap, D2 over the last two.  gaps: [b, 4]."""
    differences: list[Tensor] = []
    for order in range(len(known)):
        gained = change if order == 0 else differences[-1] - known[order - 1]
        difference = gained * gaps[:, 2 + order, None, None].to(change.dtype)
        # of large residuals fp16 has no difference, and a weight of 0 would not take an infinite one away
        differences.append(difference.nan_to_num(0.0) if difference.dtype == torch.float16 else difference)
    return differences
