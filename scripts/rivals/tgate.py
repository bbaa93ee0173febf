"""T-GATE: "Faster Diffusion via Temporal Attention Decomposition" (arXiv 2404.02747).

Semantics-planning phase, up to the gate step: with guidance; cross attention is computed, self attention
after a warm-up only every `sp_interval` steps.  Fidelity-improving phase, from the gate on: the text has had
its effect, so cross attention is replaced by the mean of its conditional and unconditional outputs at the
last step before the gate, and there is no guidance: the conditional rows run alone.  Self attention is
computed every `fi_interval` steps.

Published for PixArt-alpha, 25 steps: gate 15, sp_interval 3, fi_interval 1, warm_up 2.  There is no setting
of its authors for Open-Sora 1.2; those of PAB compare with gate 12 of 30 steps and sp_interval 2.

The published code also averages stored self attention over conditional and unconditional rows at the gate,
which matters where fi_interval is above 1; here it is the conditional rows' own.  Spatial and temporal
attention are both self attention.
"""
from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adacache.residual import Blocks
from adacache.rows import Rows
from opensora.models.stdit.stdit3 import STDiT3
from rivals.broadcast import Broadcast, whole
from rivals.run import Run, check_whole, stack_of


@dataclass(frozen=True, kw_only=True)
class TGate:
    """gate: the steps before it are guided.  sp_interval, fi_interval: of self attention, before and from the
    gate on; 1 computes it at every step.  warm_up: it is computed up to this step, counted from 0."""

    name: ClassVar[str] = "tgate"
    gate: int
    sp_interval: int = 3
    fi_interval: int = 1
    warm_up: int = 2

    def __post_init__(self) -> None:
        for key, least in (("gate", 1), ("sp_interval", 1), ("fi_interval", 1), ("warm_up", 0)):
            check_whole(f"tgate.{key}", getattr(self, key), least)

    def attends(self, step: int) -> bool:
        """Whether self attention is computed."""
        if step >= self.gate:
            return step % self.fi_interval == 0
        return step <= self.warm_up or step == self.gate - 1 or step % self.sp_interval == 0

    def start(self, num_steps: int) -> TGateRun:
        return TGateRun(self, num_steps)


class TGateRun(Run):
    """Raises ValueError for a gate after the run, and for a batch without unconditional rows."""

    def __init__(self, settings: TGate, num_steps: int) -> None:
        super().__init__(num_steps)
        check_whole("tgate.gate", settings.gate, 1, num_steps)
        self.settings = settings

    def attach(self, model: STDiT3, undo: ExitStack) -> None:
        blocks = stack_of(model)
        self.own = [Broadcast(block.attn, undo) for block in blocks]
        self.cross = [Broadcast(block.cross_attn, undo) for block in blocks]
        self.parts = [*self.own, *self.cross]

    def begin(self, timestep: Tensor) -> None:
        settings, step = self.settings, self.step
        before_gate = step == settings.gate - 1
        attends, gated = settings.attends(step), step >= settings.gate
        keep = None if settings.attends(step + 1) else conditional if before_gate else whole
        for attention in self.own:
            attention.reuse, attention.keep = not attends, keep
        for attention in self.cross:
            attention.reuse, attention.keep = gated, mean_of_both if before_gate else None
        self.reused = gated or not attends

    def run(self, x: Tensor, S: int, blocks: Blocks) -> Tensor:
        """From the gate on both kinds of rows get what the conditional ones come to."""
        videos, odd = divmod(len(x), 2)
        if odd:
            raise ValueError(f"tgate: the model is called with a batch of {len(x)}; allowed: conditional and "
                             "as many unconditional rows")
        if self.step < self.settings.gate:
            return blocks(x, None)
        out = blocks(x[:videos], Rows.on(x.device, range(videos)))
        return torch.cat([out, out])


def conditional(output: Tensor) -> Tensor:
    """[B n, N, C] -> [B n / 2, N, C], of the first half of the batch: a copy, for a view would keep all."""
    return output.chunk(2)[0].clone()


def mean_of_both(output: Tensor) -> Tensor:
    """[B, N, C] -> [B / 2, N, C]."""
    given, unconditional = output.chunk(2)
    return (given + unconditional) / 2
