"""The coefficients of TeaCache for one model, from uncached runs."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from opensora.models.stdit.stdit3 import STDiT3, STDiT3Block
from rivals.run import Reference
from rivals.teacache import modulated_input

ORDER = 4  # of the polynomial, as published

Pairs = Sequence[tuple[float, float]]


class Changes:
    """pairs: relative L1 change of the first block's modulated input and of the velocity, step by step."""

    def __init__(self, channels: int) -> None:
        self.channels = channels  # of the velocity; with pred_sigma as many follow that nobody uses
        self.pairs: list[tuple[float, float]] = []
        self._last = Reference(), Reference()
        self._modulated: Tensor | None = None

    def on_input(self, block: STDiT3Block, args: tuple[Any, ...]) -> None:
        x, t, _, _, T, *_ = args
        self._modulated = modulated_input(block, x, t, T)

    def on_output(self, model: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        now = self._modulated, output[:, : self.channels]
        if self._last[0].stored is not None:
            self.pairs.append(tuple(last.change(new) for last, new in zip(self._last, now, strict=True)))
        for last, new in zip(self._last, now, strict=True):
            last.stored = new.detach()

    def release(self) -> None:
        """Free every tensor; the pairs stay."""
        self._modulated = None
        for last in self._last:
            last.forget()


@contextmanager
def recorded_changes(model: STDiT3) -> Iterator[Changes]:
    """Of one uncached sampling run."""
    changes = Changes(model.in_channels)
    with ExitStack() as undo:
        undo.callback(changes.release)
        undo.enter_context(model.spatial_blocks[0].register_forward_pre_hook(changes.on_input))
        undo.enter_context(model.register_forward_hook(changes.on_output))
        yield changes


def fitted(pairs: Pairs) -> tuple[float, ...]:
    """Least squares of the second over the first; the highest power first.

    Raises ValueError for too few of them.
    """
    if len(pairs) <= ORDER:
        raise ValueError(f"{len(pairs)} changes from step to step; allowed: {ORDER + 1} or more, of more "
                         "prompts or steps")
    return tuple(float(f"{value:.9g}") for value in np.polyfit(*zip(*pairs, strict=True), ORDER))
