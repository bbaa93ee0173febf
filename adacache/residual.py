"""What fills the slot of a module: the residuals it computed last, to be added where a step reuses them.

The protocol.  A module that can be cached has an attribute `residual_cache`, None outside a run.
A block with a cache in it asks `cache.reuse`: if true, its forward returns `cache.add_to(x)`; if not, it
computes and then calls `cache.save(S, name=residual, ...)`, S being the patches per frame, in the order in
which x got the residuals.  An attribute `residual_names` may tell their names, so that a wrong probe is found
before a run.  Parts of a residual that only a probe wants, such as the MLP's share, go into
`save(..., parts=)` and `part_names`.
The model itself, with a cache in its own slot, returns `cache.run(x, S, blocks)` in place of the stack of its
blocks, where `blocks(x, rows)` is that stack for those rows of the batch (None: all), x being theirs already.

Legend: B rows, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from adacache.forecast import Forecast

NO_PARTS: Mapping[str, Tensor] = MappingProxyType({})
Blocks = Callable[[Tensor, "list[int] | None"], Tensor]  # x [b, (T S), C] and its rows of the batch -> x


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
            if self.rows is not None:
                residual = residual[self.rows]
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
        offered = {**residuals, **parts}
        if missing := sorted(set(self.probed) - set(offered)):
            raise ValueError(f"probe {self.path}.{missing[0]}; allowed: residuals {', '.join(offered)}")
        for name in self.probed:
            if name in self.probes:
                self.measure(offered[name], self.probes[name], S)
        # detached: where gradients are on, a residual would keep the graph of its step alive
        self.probes = self._stored(self.probes, {name: offered[name].detach() for name in self.probed})
        if self.stores:
            self.residuals = self._stored(self.residuals, {k: v.detach() for k, v in residuals.items()})

    def _stored(self, old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new rows in place of the old ones."""
        if self.rows is None:
            return new
        for name, residual in new.items():
            old[name].index_copy_(0, self.rows, residual)
        return old

    def forget_stored(self) -> None:
        """Before all rows are computed: keep what is probed only, so that old and new never coexist."""
        self.residuals = {}

    def clear(self) -> None:
        self.residuals, self.probes, self.rows = {}, {}, None


class StackCache(ResidualCache):
    """Of the model itself: sends every row the way that its schedule wants.

    With `stores` it keeps one residual, the sum over all blocks; without, `blocks`, the blocks' own caches,
    keep theirs.  due, waiting: the rows that the running step computes, and the others.
    forecast: None for plain reuse, of which nobody wants to know how wrong it was.  reach, gap: of each row
    of the batch, steps since the last computed one, and between the last two.
    """

    def __init__(self, path: str, stores: bool, blocks: Collection[ResidualCache],
                 forecast: Forecast | None = None) -> None:
        super().__init__(path, stores, (), measure=lambda new, cached, S: None)
        self.blocks, self.forecast = blocks, forecast
        self.due: Sequence[int] = ()
        self.waiting: Sequence[int] = ()
        self.reach: Sequence[int] = ()
        self.gap: Sequence[int] = ()

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *(self.forecast.differences if self.forecast else ())]

    def forget_stored(self) -> None:
        if self.forecast is None:
            super().forget_stored()

    def clear(self) -> None:
        super().clear()
        if self.forecast is not None:
            self.forecast = Forecast(self.forecast.order)

    def run(self, x: Tensor, S: int, blocks: Blocks) -> Tensor:
        """x: [B, (T S), C] -> the same, after the stack."""
        if not self.waiting:
            return self._compute(x, S, blocks, None)
        if not self.due:
            return self._reuse(x, blocks, None)
        due, waiting = list(self.due), list(self.waiting)
        computed = self._compute(x[due], S, blocks, due)
        out = computed.new_empty(x.shape)
        out[due] = computed
        out[waiting] = self._reuse(x[waiting], blocks, waiting)
        return out

    def _compute(self, x: Tensor, S: int, blocks: Blocks, rows: list[int] | None) -> Tensor:
        self._turn(False, rows, x.device)
        out = blocks(x, rows)
        if self.stores:
            new = (out - x).detach()
            self._learn(new, rows)
            self.save(S, stack=new)
        return out

    def _learn(self, new: Tensor, rows: list[int] | None) -> None:
        """What the forecast missed, and with which weights it would not have."""
        if self.forecast is None:
            return
        if not self.residuals:
            self.forecast.start(new)
            return
        last = self.residuals["stack"]
        self.forecast.update(last if rows is None else last[self.rows], new, self.rows,
                             *self._clocks(rows))

    def _clocks(self, rows: list[int] | None) -> tuple[list[int], list[int]]:
        chosen = range(len(self.reach)) if rows is None else rows
        return [self.reach[row] for row in chosen], [self.gap[row] for row in chosen]

    def _reuse(self, x: Tensor, blocks: Blocks, rows: list[int] | None) -> Tensor:
        self._turn(True, rows, x.device)
        if not self.stores:
            return blocks(x, rows)
        x = self.add_to(x)
        if self.forecast is not None and self.forecast.order:
            for factor, difference in self.forecast.ahead(self.rows, *self._clocks(rows)):
                x = torch.addcmul(x, factor, difference)
        return x

    def _turn(self, reuse: bool, rows: list[int] | None, device: torch.device) -> None:
        index = None if rows is None else torch.tensor(rows, device=device)
        for cache in (self, *self.blocks):
            cache.reuse, cache.rows = reuse, index
