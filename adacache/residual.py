"""What fills the slot of a module: the residuals it computed last, to be added where a step reuses them.

The protocol.  A module that can be cached has an attribute `residual_cache`, None outside a run.  With a
cache in it, `forward` asks `cache.reuse`: if true, it returns `cache.add_to(x)`; if not, it computes and then
calls `cache.save(S, name=residual, ...)`, S being the patches per frame, in the order in which x got the
residuals.  An attribute `residual_names` may tell their names, so that a wrong probe is found before a run.

Legend: B rows, T frames, S patches per frame, C channels.
"""
from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor


class ResidualCache:
    """The residuals of one module.

    path: of the module, for messages.  stores: keep every residual, for reuse; if not, only the probed ones.
    probed: names of the residuals to compare with those of the computed step before, through
    `measure(new, cached, S)`.
    """

    def __init__(self, path: str, stores: bool, probed: Collection[str],
                 measure: Callable[[Tensor, Tensor, int], None]) -> None:
        self.path, self.stores, self.probed, self.measure = path, stores, probed, measure
        self.reuse = False
        self.residuals: dict[str, Tensor] = {}

    def add_to(self, x: Tensor) -> Tensor:
        """x: [B, (T S), C].  One after the other, in the order of computation: bitwise as published.

        Raises RuntimeError where the stored residuals are of another batch or size.
        """
        for name, residual in self.residuals.items():
            if residual.shape != x.shape:
                raise RuntimeError(f"residual {self.path}.{name} is {list(residual.shape)}, "
                                   f"x {list(x.shape)}; allowed: one batch and size during a run")
            x = x + residual
        return x

    def save(self, S: int, **residuals: Tensor) -> None:
        """residuals: [B, (T S), C] each.  Raises ValueError where a probed one is not among them.

        They are kept by reference, so a module must not write into a residual after it has saved it.
        """
        if missing := sorted(set(self.probed) - set(residuals)):
            raise ValueError(f"probe {self.path}.{missing[0]}; allowed: residuals {', '.join(residuals)}")
        for name, residual in residuals.items():
            if name in self.probed and name in self.residuals:
                self.measure(residual, self.residuals[name], S)
        # detached: where gradients are on, a residual would keep the graph of its step alive
        self.residuals = {name: residual.detach() for name, residual in residuals.items()
                          if self.stores or name in self.probed}

    def forget_stored(self) -> None:
        """Before a computed step: keep the probed ones only, so that old and new are not held at once."""
        self.residuals = {name: self.residuals[name] for name in self.probed if name in self.residuals}

    def clear(self) -> None:
        self.residuals = {}
