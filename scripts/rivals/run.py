"""One sampling run under a rival: fill the model's slots, count its steps, and leave the model as it was.

Legend: B rows (with guidance: conditional, then unconditional ones), T frames, S patches per frame, C width.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, Protocol

from torch import Tensor, nn

from adacache import Trace, VideoTrace
from adacache.attach import free_slots
from adacache.config import is_number, is_whole
from adacache.metric import residual_distance
from adacache.residual import Blocks
from adacache.session import held_bytes
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Block


class Part(Protocol):
    """Whatever holds on to a tensor from one step to another."""

    stored: Tensor | None

    def forget(self) -> None: ...


class Run:
    """What one rival does, step by step; it fills the slot of the stack itself.

    trace: one entry, for every rival decides for the whole batch; its computed_steps are those in which every
    block computed everything.  partly: those in which something was reused and something computed.
    cache_bytes: held at most so far.  step: that runs, or comes next, from 0.
    parts: of the rival, which hold what it stores.  reused: whether the running step reuses anything.
    """

    reuses_all = False  # whether nothing is computed where anything is reused

    def __init__(self, num_steps: int) -> None:
        check_whole("num_steps", num_steps, 1)
        self.num_steps, self.step = num_steps, 0
        self.trace = Trace(num_steps, [VideoTrace()])
        self.partly: list[int] = []
        self.cache_bytes = 0
        self.parts: list[Part] = []
        self.reused = False

    def attach(self, model: STDiT3, undo: ExitStack) -> None:
        """Put into the model what reuses; `undo` takes it out again."""
        raise NotImplementedError

    def begin(self, timestep: Tensor) -> None:
        """What the step reuses, where that is known before it.  timestep: [B]."""

    def run(self, x: Tensor, S: int, blocks: Blocks) -> Tensor:
        """The stack of blocks, as `adacache.residual` has it.  x: [B, (T S), C]."""
        return blocks(x, None)

    def begin_step(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.step == self.num_steps:
            raise RuntimeError(f"num_steps={self.num_steps}, but the model is called once more; allowed: one "
                               "call for each step, conditional and unconditional rows together")
        self.reused = False
        self.begin(kwargs["timestep"] if "timestep" in kwargs else args[1])

    def end_step(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self.reused:
            self.trace[0].computed_steps.append(self.step)
        elif not self.reuses_all:
            self.partly.append(self.step)
        self.cache_bytes = max(self.cache_bytes, held_bytes([self]))
        self.step += 1

    def tensors(self) -> list[Tensor]:
        return [part.stored for part in self.parts if part.stored is not None]

    def check_complete(self) -> None:
        if self.step != self.num_steps:
            raise RuntimeError(f"num_steps={self.num_steps}, but the model was called {self.step} times; "
                               "allowed: the sampler's number of steps")

    def release(self) -> None:
        """Free every tensor; the trace stays."""
        for part in self.parts:
            part.forget()


class Reference:
    """A tensor of an earlier step, for the next ones to be compared with."""

    def __init__(self) -> None:
        self.stored: Tensor | None = None

    def change(self, new: Tensor) -> float:
        """||new - stored||_1 / ||stored||_1.  Waits for the device."""
        return residual_distance(new, self.stored).item()

    def forget(self) -> None:
        self.stored = None


@contextmanager
def opened(run: Run, model: STDiT3) -> Iterator[Run]:
    """`run`, in the model's slots; see `rivals.open_rival`."""
    free_slots(model)
    with ExitStack() as undo:
        undo.callback(run.release)
        fill(model, run, undo)
        run.attach(model, undo)
        undo.enter_context(model.register_forward_pre_hook(run.begin_step, with_kwargs=True))
        undo.enter_context(model.register_forward_hook(run.end_step))
        yield run
        run.check_complete()


def fill(module: nn.Module, filling: Any, undo: ExitStack) -> None:
    """Put `filling` into the module's slot."""
    module.residual_cache = filling
    undo.callback(setattr, module, "residual_cache", None)


def stack_of(model: STDiT3) -> list[STDiT3Block]:
    """All blocks in the order in which they run: spatial 0, temporal 0, spatial 1, ..."""
    return list(chain.from_iterable(zip(model.spatial_blocks, model.temporal_blocks, strict=True)))


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    if not is_whole(value, least) or (most is not None and value > most):
        upper = "" if most is None else f" to {most}"
        raise ValueError(f"{name}={value!r}; allowed: whole numbers from {least}{upper}")


def check_from_0(name: str, value: Any) -> None:
    if not is_number(value) or not value >= 0:
        raise ValueError(f"{name}={value!r}; allowed: a number from 0")
