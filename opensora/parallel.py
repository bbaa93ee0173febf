"""The processes of one `torchrun`: started here, asked here."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)  # of a collective, in which all processes wait for the slowest


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun announces in the environment; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
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
