"""First block cache: of ParaAttention (github.com/chengzeyi/ParaAttention), without a paper.

Also diffusers' FirstBlockCache, and F1B0 of cache-dit.

The first block is computed at every step.  Where the relative L1 change of its residual (output minus input)
since the last computed step is below the threshold, the stored residual of all other blocks is added;
otherwise they are computed.

There is no published setting for Open-Sora 1.2; diffusers' default threshold is 0.05.
"""
from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from opensora.models.stdit.stdit3 import STDiT3
from rivals.run import Reference, Run, check_from_0, stack_of
from rivals.span import Span, block_slots


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache:
    """threshold: of the change of the first block's residual."""

    name: ClassVar[str] = "first_block_cache"
    threshold: float = 0.05

    def __post_init__(self) -> None:
        check_from_0("first_block_cache.threshold", self.threshold)

    def start(self, num_steps: int) -> FirstBlockCacheRun:
        return FirstBlockCacheRun(self, num_steps)


class FirstBlockCacheRun(Run):
    def __init__(self, settings: FirstBlockCache, num_steps: int) -> None:
        super().__init__(num_steps)
        self.settings = settings
        self.first = Reference()  # the first block's residual at the last computed step

    def attach(self, model: STDiT3, undo: ExitStack) -> None:
        blocks = stack_of(model)
        slots = block_slots(blocks, undo)
        undo.enter_context(blocks[0].register_forward_hook(self._decide))
        self.others = Span(blocks[1:], slots[1:], undo)
        self.parts = [self.first, self.others]

    def _decide(self, block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        residual = (output - args[0]).detach()
        if self.step > 0:
            self.reused = self.first.change(residual) < self.settings.threshold  # waits, once a step
        self.others.skip(self.reused)
        if not self.reused:
            self.first.stored = residual
