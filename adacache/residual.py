"""What fills the slot of a module: the residuals it computed last, to be added where a step reuses them.

The protocol.  A module that can be cached has an attribute `residual_cache`, None outside a run.
A block with a cache in it asks `cache.reuse`: if true, its forward returns `cache.add_to(x)`; if not, it
computes and then calls `cache.save(S, name=residual, ...)`, S being the patches per frame, in the order in
which x got the residuals.  An attribute `residual_names` may tell their names, so that a wrong probe is found
before a run.  Parts of a residual that only a probe wants, such as the MLP's share, go into
`save(..., parts=)` and `part_names`.
The model itself, with a cache in its own slot, returns `cache.run(x, S, blocks)` in place of the stack of its
blocks, where `blocks(x, rows)` is that stack for some `Rows` of the batch, or all (None), x being theirs.

Legend: B rows, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import torch
from torch import Tensor

from adacache.forecast import Forecast, Gaps
from adacache.rows import Rows, of_rows, written

NO_PARTS: Mapping[str, Tensor] = MappingProxyType({})


Blocks = Callable[[Tensor, Rows | None], Tensor]  # x [b, (T S), C] and its rows of the batch -> x


class ResidualCache:
    """The residuals of one module.

    path: of the module, for messages.  stores: keep every residual, for reuse; if not, only the probed ones.
    probed: names of the residuals to compare with those of the computed step before, through
    `measure(new, cached, S)`.  rows: which of the batch the running forward has, as an index; None: all.
    """

    def __init__(self, path: str, stores: bool, probed: Collection[str],
                 measure: Callable[[Tensor, Tensor, int], None]) -> None:
        self.path, self.stores, self.probed, self.measure = path, stores, probed, measure
        self.reuse = False
        self.rows: Tensor | None = None
        self.residuals: dict[str, Tensor] = {}  # to be added
        self.probes: dict[str, Tensor] = {}     # to be compared with

    def tensors(self) -> list[Tensor]:
        return [*self.residuals.values(), *self.probes.values()]

    def add_to(self, x: Tensor) -> Tensor:
        """x: [b, (T S), C].  One after the other, in the order of computation: bitwise as published.

        Raises RuntimeError where the stored residuals are of another batch or size.
        """
        for name, residual in self.residuals.items():
            residual = of_rows(residual, self.rows)
            if residual.shape != x.shape:
                raise RuntimeError(f"residual {self.path}.{name} is {list(residual.shape)}, "
                                   f"x {list(x.shape)}; allowed: one batch and size during a run")
            x = x + residual
        return x

    def save(self, S: int, parts: Mapping[str, Tensor] = NO_PARTS, **residuals: Tensor) -> None:
        """residuals: [b, (T S), C] each.  parts: of them, to be probed, never added.

        They are handed over: nobody else may write into a residual once it is saved, and the cache does.
        Raises ValueError where a probed one is not among them.
        """
        offered = offered_residuals(self.path, self.probed, {**residuals, **parts})
        for name in self.probed:
            if name in self.probes:
                self.measure(offered[name], self.probes[name], S)
        # detached: where gradients are on, a residual would keep the graph of its step alive
        self.probes = self._stored(self.probes, {name: offered[name].detach() for name in self.probed})
        if self.stores:
            self.residuals = self._stored(self.residuals, {k: v.detach() for k, v in residuals.items()})

    def _stored(self, old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new rows in place of the old ones."""
        return {name: written(old.get(name), self.rows, residual) for name, residual in new.items()}

    def forget_stored(self) -> None:
        """Before all rows are computed: keep what is probed only, so that old and new never coexist."""
        self.residuals = {}

    def clear(self) -> None:
        self.residuals, self.probes, self.rows = {}, {}, None


def offered_residuals(path: str, probed: Collection[str],
                      offered: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`offered`, by the block at `path`.  Raises ValueError where a probed one is not among them."""
    if missing := sorted(set(probed) - set(offered)):
        raise ValueError(f"probe {path}.{missing[0]}; allowed: residuals {', '.join(offered)}")
    return offered


class StackCache(ResidualCache):
    """Of the model itself: sends every row the way that its schedule wants.

    With `stores` it keeps one residual, the sum over all blocks; without, `blocks`, the blocks' own caches,
    keep theirs.  due, waiting: the rows that the running step computes, and the others.
    forecast: None for plain reuse, of which nobody wants to know how wrong it was.  gaps: of each row of
    the batch, what `gap_numbers` makes of the steps since its computed ones.
    """

    def __init__(self, path: str, stores: bool, blocks: Collection[ResidualCache],
                 forecast: Forecast | None = None) -> None:
        super().__init__(path, stores, (), measure=lambda new, cached, S: None)
        self.blocks, self.forecast = blocks, forecast
        self.due: Sequence[int] = ()
        self.due_videos = 0  # whose rows take turns in it
        self.waiting: Sequence[int] = ()
        self.gaps: Gaps = ()
        self.measuring: Callable[[], AbstractContextManager] = nullcontext  # around what no plain model does

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *(self.forecast.differences if self.forecast else ())]

    def forget_stored(self) -> None:
        if self.forecast is None:
            super().forget_stored()

    def clear(self) -> None:
        super().clear()
        self.forecast = None

    def run(self, x: Tensor, S: int, blocks: Blocks) -> Tensor:
        """x: [B, (T S), C] -> the same, after the stack."""
        if not self.waiting:
            return self._compute(x, S, blocks, None)
        if not self.due:
            return self._reuse(x, blocks, None)
        due, waiting = (Rows.on(x.device, numbers) for numbers in (self.due, self.waiting))
        computed = self._compute(x[due.index], S, blocks, due)
        out = computed.new_empty(x.shape)
        out[due.index] = computed
        out[waiting.index] = self._reuse(x[waiting.index], blocks, waiting)
        return out

    def _compute(self, x: Tensor, S: int, blocks: Blocks, rows: Rows | None) -> Tensor:
        self._turn(False, rows)
        out = blocks(x, rows)
        if self.stores:
            new = (out - x).detach()
            if self.forecast is not None:
                with self.measuring():
                    self._observe(self.forecast, new, rows)
            self.save(S, stack=new)
        return out

    def _reuse(self, x: Tensor, blocks: Blocks, rows: Rows | None) -> Tensor:
        self._turn(True, rows)
        if not self.stores:
            return blocks(x, rows)
        x = self.add_to(x)
        if self.forecast is not None and self.forecast.order:
            for factor, difference in self.forecast.ahead(rows, self._gaps(rows)):
                x = torch.addcmul(x, factor, difference)
        return x

    def _turn(self, reuse: bool, rows: Rows | None) -> None:
        for cache in (self, *self.blocks):
            cache.reuse, cache.rows = reuse, None if rows is None else rows.index

    def _observe(self, forecast: Forecast, new: Tensor, rows: Rows | None) -> None:
        """What the forecast will learn from, once the sums of all ranks are known."""
        if not self.residuals:
            forecast.start(new, self.due_videos)
        else:
            last = of_rows(self.residuals["stack"], self.rows)
            forecast.observe(last, new, self.due_videos, rows, self._gaps(rows))

    def _gaps(self, rows: Rows | None) -> Gaps:
        return self.gaps if rows is None else [self.gaps[row] for row in rows.numbers]
