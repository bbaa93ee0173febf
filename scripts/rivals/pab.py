"""PAB: "Real-Time Video Generation with Pyramid Attention Broadcast" (arXiv 2408.12588).

In the middle of the diffusion process attention outputs change little from step to step: spatial attention
most, temporal less, cross attention least.  Inside a window of timesteps each is computed at every n-th step
of the run and broadcast to the steps between, with a range n of its own; MLPs are always computed.

Published for Open-Sora 1.2: timesteps between 450 and 930 of 1000; ranges (spatial, temporal, cross) of 2, 4,
6 (PAB246, the default), 3, 5, 7 (PAB357) and 5, 7, 9 (PAB579).

Two differences.  What the published code broadcasts of spatial and temporal attention has its gate applied;
here it is the output of the attention itself, and the gate is the running step's.  And the MLP broadcast, an
option of the published code at hand-picked timesteps of five blocks, is left out.
"""
from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adacache.config import as_tuple, is_list, is_number
from opensora.models.stdit.stdit3 import STDiT3
from rivals.broadcast import Broadcast, whole
from rivals.run import Run, check_whole, stack_of


@dataclass(frozen=True, kw_only=True)
class PAB:
    """spatial, temporal, cross: broadcast ranges; 1 computes every step.
    window: it broadcasts at timesteps above the first and below the second."""

    name: ClassVar[str] = "pab"
    spatial: int = 2
    temporal: int = 4
    cross: int = 6
    window: tuple[float, float] = (450, 930)

    def __post_init__(self) -> None:
        for kind in ("spatial", "temporal", "cross"):
            check_whole(f"pab.{kind}", getattr(self, kind), 1)
        as_tuple(self, "window")
        two = is_list(self.window, is_number) and len(self.window) == 2
        if not two or not self.window[0] < self.window[1]:
            raise ValueError(f"pab.window={self.window}; allowed: two timesteps, the lower one first")

    def start(self, num_steps: int) -> PABRun:
        return PABRun(self, num_steps)


class PABRun(Run):
    """Timesteps fall from step to step."""

    def __init__(self, settings: PAB, num_steps: int) -> None:
        super().__init__(num_steps)
        self.settings = settings

    def attach(self, model: STDiT3, undo: ExitStack) -> None:
        ranges, blocks = self.settings, stack_of(model)
        own = [(Broadcast(block.attn, undo), ranges.temporal if block.temporal else ranges.spatial)
               for block in blocks]
        cross = [(Broadcast(block.cross_attn, undo), ranges.cross) for block in blocks]
        self.attentions: list[tuple[Broadcast, int]] = own + cross
        self.parts = [attention for attention, _ in self.attentions]

    def begin(self, timestep: Tensor) -> None:
        (above, below), now = self.settings.window, timestep[0].item()  # waits, once a step
        for attention, steps in self.attentions:
            attention.reuse = above < now < below and self.step % steps > 0
            attention.keep = whole if now > above and steps > 1 else None
        self.reused = any(attention.reuse for attention, _ in self.attentions)
