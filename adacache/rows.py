"""Some rows of a batch, and small numbers of theirs on their way to the device; nothing waits for it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Some rows of the batch: their numbers, and the same on the device, to index with."""

    numbers: tuple[int, ...]
    index: Tensor

    @classmethod
    def on(cls, device: torch.device, numbers: Sequence[int]) -> Rows:
        return cls(tuple(numbers), on_device(torch.tensor(numbers, dtype=torch.long), device))


def of_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """rows: index, None for all."""
    return x if rows is None else x[rows]


def written(into: Tensor | None, rows: Tensor | None, values: Tensor) -> Tensor:
    """The whole batch, once `values` came for some rows, written into it, or for all (None), in its place."""
    return values if rows is None else into.index_copy_(0, rows, values)


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Host numbers as they are on the device; to CUDA from pinned memory, for a plain copy would wait."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def numbers_on(device: torch.device, table: Sequence[Sequence[float]]) -> Tensor:
    """A table of host numbers as it is on the device, in fp32."""
    return on_device(torch.tensor(table, dtype=torch.float32), device)
