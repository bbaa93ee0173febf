"""Delta-DiT: "A Training-Free Acceleration Method Tailored for Diffusion Transformers" (arXiv 2406.01125).

Front blocks make the outline of a picture, rear blocks its details; sampling makes the outline first.  So
rear blocks are skipped in the early steps and front blocks in the later ones.  What is stored is the Delta of
the skipped blocks, output minus input, which unlike their output lets the running step's input through; it is
computed anew every `interval` steps.

The paper's settings are those of image models; there is none of its authors for Open-Sora 1.2.  Blocks count
in the order of the stack (spatial 0, temporal 0, spatial 1, ...), and each of the two phases begins with a
computed step.
"""
from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from opensora.models.stdit.stdit3 import STDiT3
from rivals.run import Run, check_whole, stack_of
from rivals.span import Span, block_slots


@dataclass(frozen=True, kw_only=True)
class DeltaDiT:
    """gate: the steps before it skip rear blocks, those from it on front blocks.  blocks: how many.
    interval: steps from one computed step to the next; 1 computes every step."""

    name: ClassVar[str] = "delta_dit"
    gate: int
    blocks: int
    interval: int = 2

    def __post_init__(self) -> None:
        for key, least in (("gate", 0), ("blocks", 1), ("interval", 1)):
            check_whole(f"delta_dit.{key}", getattr(self, key), least)

    def skips(self, step: int) -> bool:
        return (step - (self.gate if step >= self.gate else 0)) % self.interval > 0

    def start(self, num_steps: int) -> DeltaDiTRun:
        return DeltaDiTRun(self, num_steps)


class DeltaDiTRun(Run):
    """Raises ValueError for a gate after the run, and for as many blocks as the model has, or more."""

    def __init__(self, settings: DeltaDiT, num_steps: int) -> None:
        super().__init__(num_steps)
        check_whole("delta_dit.gate", settings.gate, 0, num_steps)
        self.settings = settings

    def attach(self, model: STDiT3, undo: ExitStack) -> None:
        blocks, count = stack_of(model), self.settings.blocks
        check_whole("delta_dit.blocks", count, 1, len(blocks) - 1)
        slots = block_slots(blocks, undo)
        self.front = Span(blocks[:count], slots[:count], undo)
        self.rear = Span(blocks[-count:], slots[-count:], undo)
        self.parts = [self.front, self.rear]

    def begin(self, timestep: Tensor) -> None:
        early = self.step < self.settings.gate
        ours, other = (self.rear, self.front) if early else (self.front, self.rear)
        other.forget()
        self.reused = self.settings.skips(self.step)
        ours.skip(self.reused)
        ours.recording, other.recording = self.settings.skips(self.step + 1), False
