"""What a run with every step computed tells, kept small: enough to know what any cache would have made of it.

A cache adds sums of residuals, so all that it errs by follows from their inner products; a schedule follows
from the distances of probed residuals.  Both are numbers, K x K for each video.

Legend: V videos with p rows each (v, V+v, ... of the batch), K steps.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from adacache.attach import STACK, free_slots, probed_residuals
from adacache.config import AdaCacheConfig
from adacache.metric import residual_distance
from adacache.moreg import motion_score
from adacache.residual import NO_PARTS, Blocks, offered_residuals

CHUNK = 1 << 20  # numbers of each residual whose products are summed at once, so that fp64 copies stay small


@dataclass(frozen=True)
class Recording:
    """products: of the stack's residuals, [V, p, K, p, K], fp64.

    distances: of every probe in depth order, by `metric`, from the residual of one step to that of another (c
    before it is divided by the steps between), [V, K, K], the later step first.
    motion: of every probe, its score over `strides`, [V, K].
    """

    products: Tensor
    distances: Mapping[str, Tensor]
    motion: Mapping[str, Tensor]
    metric: str = "l1"
    strides: tuple[int, ...] = (1,)

    @property
    def num_steps(self) -> int:
        return self.products.shape[2]

    @property
    def videos(self) -> int:
        return len(self.products)

    @cached_property
    def short(self) -> Tensor:
        """Residuals [K, p V, D, 1] with these inner products, fp64; D = p K."""
        values, vectors = torch.linalg.eigh(self.products.flatten(3).flatten(1, 2))
        short = vectors * values.clamp(min=0).sqrt()[:, None]  # [V, p K, D]
        by_step = short.unflatten(1, self.products.shape[1:3]).permute(2, 1, 0, 3)
        return by_step.flatten(1, 2)[..., None]

    @classmethod
    def joined(cls, recordings: Sequence[Recording]) -> Recording:
        """The videos of all of them, which must be of as many steps, rows and probes."""
        first = recordings[0]
        distances, motion = ({probe: torch.cat([getattr(each, name)[probe] for each in recordings])
                              for probe in first.distances} for name in ("distances", "motion"))
        return replace(first, products=torch.cat([each.products for each in recordings]),
                       distances=distances, motion=motion)


class Recorder:
    """What the slots of a model, whose every step is computed, were given."""

    def __init__(self, config: AdaCacheConfig, num_steps: int) -> None:
        self.config, self.num_steps = config.resolved(), num_steps
        self.stack: list[Tensor] = []              # of each step: [V p, (T S), C]
        self.probes: dict[str, list[Tensor]] = {}  # as they are computed, so in depth order
        self.patches = 0                           # per frame

    def recording(self) -> Recording:
        """After the run.  Raises RuntimeError where it was not a whole one, ValueError for residuals that are
        not finite."""
        counts = {"the stack": len(self.stack),
                  **{probe: len(self.probes.get(probe, ())) for probe in self.config.probes}}
        if wrong := [f"{count} steps of {what}" for what, count in counts.items() if count != self.num_steps]:
            raise RuntimeError(f"{wrong[0]} recorded; allowed: a run of num_steps={self.num_steps} inside of "
                               "the `with`, in which every probed block saves")
        videos = len(self.stack[0]) // self.config.rows_per_video
        rows = [slice(v, None, videos) for v in range(videos)]
        strides = self.config.moreg.strides if self.config.moreg else (1,)
        motion = {probe: torch.stack([torch.stack([motion_score(step[own], self.patches, strides)
                                                   for step in steps]) for own in rows]).cpu()
                  for probe, steps in self.probes.items()}
        distances = {probe: torch.stack([self._distances(steps, own) for own in rows])
                     for probe, steps in self.probes.items()}
        products = torch.stack([self._products(own) for own in rows])
        if not products.isfinite().all():
            raise ValueError("a residual is not finite; allowed: a run that comes out well")
        return Recording(products, distances, motion, self.config.metric, strides)

    def _products(self, rows: slice) -> Tensor:
        """[p, K, p, K]."""
        pieces = zip(*(step[rows].flatten(1).split(CHUNK, dim=1) for step in self.stack), strict=True)
        vectors = (torch.stack(piece, dim=1).flatten(0, 1).double() for piece in pieces)
        shape = (self.config.rows_per_video, len(self.stack))
        return sum(x @ x.T for x in vectors).cpu().unflatten(1, shape).unflatten(0, shape)

    def _distances(self, steps: Sequence[Tensor], rows: slice) -> Tensor:
        found = torch.full((len(steps), len(steps)), torch.nan)
        for later in range(len(steps)):
            for earlier in range(later):
                found[later, earlier] = residual_distance(steps[later][rows], steps[earlier][rows],
                                                          self.config.metric)
        return found


class StackSlot:
    """In the model's slot: see `adacache.residual`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def run(self, x: Tensor, S: int, blocks: Blocks) -> Tensor:
        if len(x) % (rows := self.recorder.config.rows_per_video):
            raise ValueError(f"rows_per_video={rows}, but the model is called with a batch of {len(x)}; "
                             "allowed: a number that divides it")
        out = blocks(x, None)
        self.recorder.stack.append((out - x).detach())
        self.recorder.patches = S
        return out


class BlockSlot:
    """In the slot of a probed block."""

    reuse = False

    def __init__(self, recorder: Recorder, path: str, names: Sequence[str]) -> None:
        self.recorder, self.path, self.names = recorder, path, names

    def save(self, S: int, parts: Mapping[str, Tensor] = NO_PARTS, **residuals: Tensor) -> None:
        offered = offered_residuals(self.path, self.names, {**residuals, **parts})
        for name in self.names:
            self.recorder.probes.setdefault(f"{self.path}.{name}", []).append(offered[name].detach())


@contextmanager
def recorded(model: nn.Module, config: AdaCacheConfig, num_steps: int) -> Iterator[Recorder]:
    """Record one sampling run of `model`, for simulations of any settings with the probes, the metric and the
    strides of `config`.

    All rows and tokens have to be here: a run whose videos are shared among ranks cannot be recorded.
    Keeps the stack's and the probed residuals of all steps in memory until the recorder is dropped.
    Raises ValueError for a model without the slots, RuntimeError for one that is inside a `with` already.
    """
    slots = free_slots(model)
    blocks = {path: module for path, module in slots.items() if path != STACK}
    if STACK not in slots:
        raise ValueError("the model itself has no slot; allowed: a model with an attribute `residual_cache`")
    recorder = Recorder(config, num_steps)
    probed = probed_residuals(recorder.config.probes, blocks)
    try:
        model.residual_cache = StackSlot(recorder)
        for path, names in probed.items():
            blocks[path].residual_cache = BlockSlot(recorder, path, names)
        yield recorder
    finally:
        for module in slots.values():
            module.residual_cache = None
