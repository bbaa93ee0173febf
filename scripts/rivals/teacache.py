"""TeaCache: "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108).

How much the output of a step will differ is estimated from its timestep embedding modulated noisy input: the
input of the first block after norm, shift and scale.  Its relative L1 change from step to step is rescaled by
a polynomial, fitted beforehand, to the change of the model's output, and summed up since the last computed
step.  Below the threshold, the stored residual of the whole stack is added; otherwise the step is computed
and the sum starts again.  The first and the last step are always computed.

Published for Open-Sora 1.2, at 30 steps: the coefficients below, and thresholds 0.1 (slow) and 0.2 (fast).
"""
from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from adacache.config import as_tuple, is_list, is_number
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Block, modulate
from rivals.run import Reference, Run, check_from_0, stack_of
from rivals.span import Span, block_slots


@dataclass(frozen=True, kw_only=True)
class TeaCache:
    """threshold: of the summed-up change.  coefficients: of the polynomial, the highest power first.

    A fitted polynomial may fall below 0, as the published one does not: such a change counts as 0.
    """

    name: ClassVar[str] = "teacache"
    threshold: float = 0.1
    coefficients: tuple[float, ...] = (
        2.17546007e+02, -1.18329252e+02, 2.68662585e+01, -4.59364272e-02, 4.84426240e-02)

    def __post_init__(self) -> None:
        check_from_0("teacache.threshold", self.threshold)
        as_tuple(self, "coefficients")
        if not self.coefficients or not is_list(self.coefficients, is_number):
            raise ValueError(f"teacache.coefficients={self.coefficients}; allowed: numbers, the highest "
                             "power first")

    def rescaled(self, change: float) -> float:
        """Of the modulated input -> estimated, of the output."""
        estimate = float(np.polyval(self.coefficients, change))
        return 0.0 if estimate < 0 else estimate

    def start(self, num_steps: int) -> TeaCacheRun:
        return TeaCacheRun(self, num_steps)


class TeaCacheRun(Run):
    """distance: summed up since the last computed step."""

    reuses_all = True

    def __init__(self, settings: TeaCache, num_steps: int) -> None:
        super().__init__(num_steps)
        self.settings, self.distance = settings, 0.0
        self.before = Reference()  # the modulated input of the step before, computed or not

    def attach(self, model: STDiT3, undo: ExitStack) -> None:
        blocks = stack_of(model)
        slots = block_slots(blocks, undo)
        undo.enter_context(blocks[0].register_forward_pre_hook(self._decide))  # before the span's own
        self.span = Span(blocks, slots, undo)
        self.parts = [self.before, self.span]

    def _decide(self, block: STDiT3Block, args: tuple[Any, ...]) -> None:
        x, t, _, _, T, *_ = args
        now = modulated_input(block, x, t, T)
        if 0 < self.step < self.num_steps - 1:
            self.distance += self.settings.rescaled(self.before.change(now))  # waits, once a step
            self.reused = self.distance < self.settings.threshold
        self.before.stored = now.detach()
        self.span.skip(self.reused)
        if not self.reused:
            self.distance = 0.0


def modulated_input(block: STDiT3Block, x: Tensor, t: Tensor, T: int) -> Tensor:
    """What the block's attention gets.  x: [B, (T S), C]; t: [B, F, 6, C], F 1 or T.  Returns: as x."""
    shift, scale, *_ = (block.scale_shift_table + t).unsqueeze(3).unbind(dim=2)  # each [B, F, 1, C]
    return modulate(block.norm1(x), shift, scale, T)
