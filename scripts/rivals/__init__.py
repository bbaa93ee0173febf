"""Rival caches, each as its paper has it, to be compared with AdaCache on one model.

Reading order: run, then span (teacache, first_block_cache, delta_dit) and broadcast (pab, tgate).
"""
from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import MISSING, asdict, fields
from types import MappingProxyType
from typing import Any

from adacache.config import field_names, known_keys
from opensora.models.stdit.stdit3 import STDiT3
from rivals.delta_dit import DeltaDiT
from rivals.first_block_cache import FirstBlockCache
from rivals.pab import PAB
from rivals.run import Run, opened
from rivals.teacache import TeaCache
from rivals.tgate import TGate

__all__ = ["PAB", "RIVALS", "DeltaDiT", "FirstBlockCache", "Rival", "Run", "TGate", "TeaCache", "open_rival",
           "read_rival", "rival_values"]

Rival = TeaCache | FirstBlockCache | PAB | TGate | DeltaDiT
RIVALS: Mapping[str, type[Rival]] = MappingProxyType({
    kind.name: kind for kind in (TeaCache, FirstBlockCache, PAB, TGate, DeltaDiT)})


def read_rival(values: Mapping[str, Any]) -> Rival:
    """Settings from `dict(type=..., ...)`.

    Raises ValueError for an unknown type and for a value that is not allowed, TypeError for an unknown or a
    missing key.
    """
    name = values.get("type")
    if name not in RIVALS:
        near = difflib.get_close_matches(str(name), RIVALS, n=3) or RIVALS
        raise ValueError(f"rival: type={name!r}; allowed: {', '.join(near)}")
    kind = RIVALS[name]
    given = known_keys(("type", *field_names(kind)), values, f"rival {name}")
    del given["type"]
    needed = [f.name for f in fields(kind) if f.default is MISSING]
    if missing := [key for key in needed if key not in given]:
        raise TypeError(f"rival {name}: {missing[0]} is missing; allowed: all of {', '.join(needed)}")
    return kind(**given)


def rival_values(settings: Rival) -> dict[str, Any]:
    """What `read_rival` reads."""
    return {"type": settings.name, **asdict(settings)}


def open_rival(settings: Rival, model: STDiT3, num_steps: int) -> AbstractContextManager[Run]:
    """The context of one denoising run: `num_steps` calls of the model, one for each step.

    Raises ValueError for settings that do not fit the model or the number of steps; RuntimeError for a model
    that is inside such a `with`, or AdaCache's, already, and for a run of another number of steps.
    """
    return opened(settings.start(num_steps), model)
