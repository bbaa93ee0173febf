"""Blocks that are skipped together."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from adacache.residual import NO_PARTS
from rivals.run import fill


class BlockSlot:
    """In the slot of one block: lets it compute, or hands x on in its place.

    delta: what is added in passing, the Delta of a span that begins here.
    """

    def __init__(self) -> None:
        self.reuse = False
        self.delta: Tensor | None = None

    def add_to(self, x: Tensor) -> Tensor:
        return x if self.delta is None else x + self.delta

    def save(self, S: int, parts: Mapping[str, Tensor] = NO_PARTS, **residuals: Tensor) -> None:
        """Nothing: a span looks at what goes in and what comes out."""


def block_slots(blocks: Sequence[nn.Module], undo: ExitStack) -> list[BlockSlot]:
    """Fill the slots of all blocks."""
    slots = [BlockSlot() for _ in blocks]
    for block, slot in zip(blocks, slots, strict=True):
        fill(block, slot, undo)
    return slots


class Span:
    """Neighbouring blocks, in whose place their Delta can be added: output minus input, when last computed.

    stored: the Delta, [B, (T S), C].  recording: whether the running step's is to be stored.
    """

    def __init__(self, blocks: Sequence[nn.Module], slots: Sequence[BlockSlot], undo: ExitStack) -> None:
        self.slots = slots
        self.stored: Tensor | None = None
        self.recording = True
        self._input: Tensor | None = None
        undo.enter_context(blocks[0].register_forward_pre_hook(self._enter))
        undo.enter_context(blocks[-1].register_forward_hook(self._leave))

    def skip(self, wanted: bool) -> None:
        for slot in self.slots:
            slot.reuse, slot.delta = wanted, None
        if wanted:
            self.slots[0].delta = self.stored

    def forget(self) -> None:
        self.skip(False)  # a slot may hold the Delta, too
        self.stored = self._input = None

    def _enter(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        if self.recording and not self.slots[0].reuse:
            self.stored, self._input = None, args[0]  # old and new never coexist

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._input is not None:
            self.stored, self._input = (output - self._input).detach(), None
