"""What a run with every step computed tells, kept small: enough to know what any cache would have made of it.

A cache adds sums of residuals, so all that it errs by follows from their inner products; a schedule follows
from the distances of probed residuals.  Both are numbers, K x K for each video.

Legend: V videos with p rows each (v, V+v, ... of the batch), K steps.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adacache.attach import STACK, cache_slots, probed_residuals
from adacache.config import AdaCacheConfig
from adacache.metric import residual_distance
from adacache.moreg import motion_score
from adacache.residual import NO_PARTS, Blocks


@dataclass(frozen=True)
class Recording:
    """products: of the stack's residuals, [V, p, K, p, K], fp64.

    distances: of every probe, from the residual of one step to that of another (c before it is divided by the
    steps between), [V, K, K], the later step first.  motion: score of the deepest probe, [V, K].
    """

    products: Tensor
    distances: Mapping[str, Tensor]
    motion: Tensor

    @property
    def num_steps(self) -> int:
        return self.products.shape[2]

    @property
    def videos(self) -> int:
        return len(self.products)

    @classmethod
    def joined(cls, recordings: Sequence[Recording]) -> Recording:
        """The videos of all of them, which must be of as many steps, rows and probes."""
        distances = {probe: torch.cat([recording.distances[probe] for recording in recordings])
                     for probe in recordings[0].distances}
        return cls(torch.cat([recording.products for recording in recordings]), distances,
                   torch.cat([recording.motion for recording in recordings]))


class Recorder:
    """Fills the slots of a model whose every step is computed."""

    def __init__(self, config: AdaCacheConfig) -> None:
        self.config = config.resolved()
        self.stack: list[Tensor] = []              # of each step: [V p, (T S), C]
        self.probes: dict[str, list[Tensor]] = {}  # in depth order
        self.patches = 0                           # per frame

    def recording(self) -> Recording:
        """After the run.  Raises RuntimeError where nothing was recorded."""
        if not self.stack or not all(len(each) == len(self.stack) for each in self.probes.values()):
            raise RuntimeError("nothing was recorded; allowed: a whole run inside of the `with`")
        videos = len(self.stack[0]) // self.config.rows_per_video
        rows = [slice(v, None, videos) for v in range(videos)]
        strides = self.config.moreg.strides if self.config.moreg else (1,)
        deepest = list(self.probes.values())[-1]
        motion = [torch.stack([motion_score(step[own], self.patches, strides) for step in deepest])
                  for own in rows]
        distances = {probe: torch.stack([self._distances(steps, own) for own in rows])
                     for probe, steps in self.probes.items()}
        return Recording(torch.stack([self._products(own) for own in rows]), distances,
                         torch.stack(motion).cpu())

    def _products(self, rows: slice) -> Tensor:
        """[p, K, p, K]."""
        vectors = torch.stack([step[rows].flatten(1) for step in self.stack], dim=1).flatten(0, 1).double()
        shape = (self.config.rows_per_video, len(self.stack))
        return (vectors @ vectors.T).cpu().unflatten(1, shape).unflatten(0, shape)

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
        offered = {**residuals, **parts}
        for name in self.names:
            self.recorder.probes[f"{self.path}.{name}"].append(offered[name].detach())


@contextmanager
def recorded(model: nn.Module, config: AdaCacheConfig) -> Iterator[Recorder]:
    """Record one sampling run of `model`, for simulations of any settings with these probes and this metric.

    Keeps the stack's and the probed residuals of all steps in memory until the recorder is dropped.
    Raises ValueError for a model without the slots, RuntimeError for one that is inside a `with` already.
    """
    slots = cache_slots(model)
    blocks = {path: module for path, module in slots.items() if path != STACK}
    if STACK not in slots:
        raise ValueError("the model itself has no slot; allowed: a model with an attribute `residual_cache`")
    if any(module.residual_cache is not None for module in slots.values()):
        raise RuntimeError("the model is inside a `with` of its cache already; allowed: one at a time")
    recorder = Recorder(config)
    probed = probed_residuals(recorder.config.probes, blocks)
    ordered = {path: names for path, names in ((path, probed.get(path)) for path in blocks) if names}
    recorder.probes = {f"{path}.{name}": [] for path, names in ordered.items() for name in names}
    try:
        model.residual_cache = StackSlot(recorder)
        for path, names in ordered.items():
            blocks[path].residual_cache = BlockSlot(recorder, path, names)
        yield recorder
    finally:
        for module in slots.values():
            module.residual_cache = None
