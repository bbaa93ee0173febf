"""The processes of one `torchrun`: started here, asked here."""
from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)  # of a collective, in which all processes wait for the slowest


LAUNCHERS = ("torch", "colossalai")


def check_launcher(name: str) -> None:
    """Raise ValueError for one that is unknown or not installed."""
    if name not in LAUNCHERS:
        raise ValueError(f"launcher={name!r}; allowed: {', '.join(LAUNCHERS)}")
    if name == "colossalai" and importlib.util.find_spec("colossalai") is None:
        raise ValueError("launcher='colossalai' needs the optional package colossalai "
                         "(constraints/colossalai.txt tells how to install it); allowed without it: torch")


@contextmanager
def process_group(launcher: str = "torch") -> Iterator[None]:
    """Join the process group that torchrun announces in the environment; alone, do nothing.

    launcher: who joins it, `torch` or the optional package `colossalai`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if launcher == "colossalai":
        import colossalai

        colossalai.launch_from_torch(backend=backend, verbose=False)
    else:
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def training_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def of_all_processes(own: list[Any]) -> list[Any]:
    """The lists of all processes as one, the same everywhere.  Every process has to ask."""
    if world_size() == 1:
        return own
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, own)
    return [item for each in lists for item in each]
