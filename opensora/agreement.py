"""The processes of a torchrun agree on what they are to do, before any of them begins."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TypeVar

from safetensors import SafetensorError

from opensora.parallel import of_all_processes, world_size

Plan = TypeVar("Plan")
BAD_INPUT = (ValueError, TypeError, OSError, ImportError, SafetensorError)  # others are defects


def read_alike(read: Callable[[], Plan],
               describe: Callable[[Plan], Mapping[str, str]] = lambda plan: {}) -> Plan:
    """What `read` gives, once it is known that it gives the same on every rank.

    describe: key -> value of all that has to be the same.
    Where `read` raises bad input on some rank, or a value differs, every rank raises, and says the same.
    Raises ValueError, naming the rank, for what not all of them met.
    """
    if world_size() == 1:
        return read()
    try:
        plan, error = read(), None
        told = dict(describe(plan))
    except BAD_INPUT as caught:
        error = caught
    errors = of_all_processes([None if error is None else f"{type(error).__name__}: {error}"])
    if error is not None and len(set(errors)) == 1:
        raise met_by_all(error)
    for rank, text in enumerate(errors):
        if text is not None:
            raise met_by_all(ValueError(f"on rank {rank}: {text}"))
    check_same(told)
    return plan


def met_by_all(error: Exception) -> Exception:
    """Marked as one that every rank raises, so that it is said once."""
    error.met_by_all = True
    return error


def check_same(told: dict[str, str]) -> None:
    """Raise ValueError, on all ranks alike, naming the first key whose value is not the same on all."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    if len(set(of_all_processes([digest]))) == 1:
        return
    first, *others = of_all_processes([told])
    for rank, other in enumerate(others, start=1):
        for key in {**first, **other}:
            here, there = (values.get(key, "missing") for values in (first, other))
            if here != there:
                raise met_by_all(ValueError(f"{key}={there} on rank {rank}, but {here} on rank 0; "
                                            "allowed: the same on all ranks"))
