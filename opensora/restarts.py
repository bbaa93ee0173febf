"""What torchrun remembers while it starts its processes again (`--max-restarts`), in the store that it keeps.

Of one node: with several, each node counts its own failures, and nobody knows which start is meant.
"""
from __future__ import annotations

import os
import time
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(seconds=120)  # with the store


def restarts() -> int:
    """How often the processes were started again, for one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def check_restarts() -> None:
    """Raise ValueError where restarts are asked for and cannot be."""
    nodes, most = (int(os.environ.get(name, default))
                   for name, default in (("GROUP_WORLD_SIZE", 1), ("TORCHELASTIC_MAX_RESTARTS", 0)))
    if nodes > 1 and most > 0:
        raise ValueError(f"--max-restarts {most} on {nodes} nodes; allowed: on one, for each counts its own")


def began() -> float:
    """When the run did: when this was first asked, before all restarts, in seconds since the epoch."""
    now, store = time.time(), kept_store()
    return now if store is None else float(store.compare_set("began", "", str(now)))


def end(status: int) -> None:
    """The run is over with this exit status, and a restart has nothing to do."""
    if (store := kept_store()) is not None:
        store.set("ended", str(status))


def ended() -> int | None:
    """The exit status, once the run is over."""
    store = kept_store()
    return int(store.get("ended")) if store is not None and store.check(["ended"]) else None


def kept_store() -> dist.Store | None:
    """None where torchrun keeps none: without it, or where the first process does."""
    return torchrun_store("run") if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None


def torchrun_store(part: str) -> dist.Store:
    """A connection of its own to the store that torchrun announces."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                          timeout=PATIENCE)
    return dist.PrefixStore(part, store)
