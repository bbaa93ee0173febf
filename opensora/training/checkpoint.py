"""Checkpoints of a training run: any number of ranks, sharded or not, goes on from what any other wrote.

    FOLDER/checkpoint-400/    in the format of torch.distributed.checkpoint; earlier ones are removed
"""
from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from opensora.parallel import rank


def newest_checkpoint(folder: Path) -> Path | None:
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")
             if path.suffix != ".part"}
    return found[max(found)] if found else None


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], together: bool) -> None:
    """Write aside, then rename.

    together: every rank holds a part and calls this; else rank 0, which holds all, calls it alone.
    """
    path = folder / f"checkpoint-{step}"
    partial = path.with_suffix(".part")
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed as it wrote
    if together:
        dist.barrier()
    with one_process_is_fine():
        dcp.save(state, checkpoint_id=partial, no_dist=not together)
    if rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        for earlier in folder.glob("checkpoint-*"):
            if earlier != path:
                shutil.rmtree(earlier)


def read_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Fill `state`, which has the structure of what was written, in place."""
    with one_process_is_fine():
        dcp.load(state, checkpoint_id=path)


@contextmanager
def one_process_is_fine() -> Iterator[None]:
    """Without the warning that a process saves or loads by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
