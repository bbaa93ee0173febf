"""What fills the slot of a module: the residuals it computed last, to be added where a step reuses them.

The protocol.  A module that can be cached has an attribute `residual_cache`, None outside a run.
A block with a cache in it asks `cache.reuse`: if true, its forward returns `cache.add_to(x)`; if not, it
computes and then calls `cache.save(S, name=residual, ...)`, S being the patches per frame, in the order in
which x got the residuals.  An attribute `residual_names` may tell their names, so that a wrong probe is found
before a run.
The model itself, with a cache in its own slot, returns `cache.run(x, S, blocks)` in place of the stack of its
blocks, where `blocks(x, rows)` is that stack for those rows of the batch (None: all), x being theirs already.

Legend: B rows, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

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
        self.residuals: dict[str, Tensor] = {}

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

    def save(self, S: int, **residuals: Tensor) -> None:
        """residuals: [b, (T S), C] each.  Raises ValueError where a probed one is not among them.

        They are handed over: nobody else may write into a residual once it is saved, and the cache does.
        """
        if missing := sorted(set(self.probed) - set(residuals)):
            raise ValueError(f"probe {self.path}.{missing[0]}; allowed: residuals {', '.join(residuals)}")
        for name, residual in residuals.items():
            if name in self.probed and name in self.residuals:
                self.measure(residual, self.residuals[name], S)
        # detached: where gradients are on, a residual would keep the graph of its step alive
        kept = {name: residual.detach() for name, residual in residuals.items()
                if self.stores or name in self.probed}
        if self.rows is None:
            self.residuals = kept
        else:
            for name, residual in kept.items():
                self.residuals[name].index_copy_(0, self.rows, residual)

    def forget_stored(self) -> None:
        """Before all rows are computed: keep the probed residuals only, so that old and new never coexist."""
        self.residuals = {name: self.residuals[name] for name in self.probed if name in self.residuals}

    def clear(self) -> None:
        self.residuals, self.rows = {}, None


class StackCache(ResidualCache):
    """Of the model itself: sends every row the way that its schedule wants.

    With `stores` it keeps one residual, the sum over all blocks; without, `blocks`, the caches of the blocks,
    keep theirs.  due, waiting: the rows that the running step computes, and the others.
    """

    def __init__(self, path: str, stores: bool, blocks: Collection[ResidualCache]) -> None:
        super().__init__(path, stores, (), measure=lambda new, cached, S: None)
        self.blocks = blocks
        self.due: Sequence[int] = ()
        self.waiting: Sequence[int] = ()

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
            self.save(S, stack=out - x)
        return out

    def _reuse(self, x: Tensor, blocks: Blocks, rows: list[int] | None) -> Tensor:
        self._turn(True, rows, x.device)
        return self.add_to(x) if self.stores else blocks(x, rows)

    def _turn(self, reuse: bool, rows: list[int] | None, device: torch.device) -> None:
        index = None if rows is None else torch.tensor(rows, device=device)
        for cache in (self, *self.blocks):
            cache.reuse, cache.rows = reuse, index
