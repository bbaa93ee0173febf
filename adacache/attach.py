"""`with adaptive_cache(...)`: fill the model's slots, count the steps, and leave the model as it was."""
from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from adacache.config import AdaCacheConfig, is_whole
from adacache.forecast import Forecast
from adacache.ranks import ALONE, Ranks
from adacache.residual import ResidualCache, StackCache
from adacache.session import Session
from adacache.signature import model_name

STACK = ""  # the model's own path: the slot of the whole stack of blocks


@contextmanager
def adaptive_cache(model: nn.Module, config: AdaCacheConfig, num_steps: int,
                   ranks: Ranks = ALONE) -> Iterator[Session]:
    """Cache the residuals of one sampling run: `num_steps` calls of the model, one for each denoising step.

    model: any with slots (protocol: `adacache.residual`) in blocks and, for granularity="stack", in itself.
    ranks: that make the same videos together, each with some patches of all frames or some rows.  All enter
    such a `with`, with the same settings, and take the same decisions.
    Raises ValueError for a probe that names no block, a missing slot, or settings made for another run;
    RuntimeError for a model that is inside such a `with` already, and for a run of another number of steps.
    """
    slots = free_slots(model)
    check_num_steps(config, num_steps)
    session = Session(config, num_steps, model_name(model), ranks)
    session.check_made_for(None)
    config = session.config
    caches = make_caches(config, slots, session)
    session.caches = list(caches.values())
    watched = watched_places(config, inspect.signature(model.forward))

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        session.begin_step(input_of(args, kwargs), {
            name: args[place] if place is not None and place < len(args) else kwargs.get(name)
            for name, place in watched.items()})

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        session.end_step()

    hooks = []
    try:
        hooks += [model.register_forward_pre_hook(begin, with_kwargs=True), model.register_forward_hook(end)]
        for path, cache in caches.items():
            slots[path].residual_cache = cache
        yield session
        session.check_complete()
    finally:
        for hook in hooks:
            hook.remove()
        for path in caches:
            slots[path].residual_cache = None
        session.release()


def cache_slots(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module, for all with a slot; the model's own path is STACK."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "residual_cache")}


def free_slots(model: nn.Module) -> dict[str, nn.Module]:
    """The same.  Raises RuntimeError where they are filled."""
    slots = cache_slots(model)
    if any(module.residual_cache is not None for module in slots.values()):
        raise RuntimeError("the model is inside a `with adaptive_cache(...)`, or another cache's, already; "
                           "allowed: one at a time")
    return slots


def check_num_steps(config: AdaCacheConfig, num_steps: int) -> None:
    if not is_whole(num_steps, 1):
        raise ValueError(f"num_steps={num_steps!r}; allowed: whole numbers from 1")
    decides = config.schedule is None
    if decides and config.moreg is not None and (window := config.moreg.window_for(num_steps))[0] > num_steps:
        raise ValueError(f"moreg.window={window} begins after step {num_steps}, the last; allowed: a first "
                         f"step from 1 to {num_steps}")
    if config.num_steps not in (None, num_steps):
        raise ValueError(f"num_steps={num_steps}; allowed: {config.num_steps}, as of the settings")
    if config.schedule is not None and config.schedule.num_steps != num_steps:
        raise ValueError(f"num_steps={num_steps}; allowed: {config.schedule.num_steps}, as of the schedule")


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The first tensor that the model is called with: the batch, [B, ...]."""
    tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 0)
    if (first := next(tensors, None)) is None:
        raise ValueError("the model is called without a tensor; allowed: a batch as its first one")
    return first


def make_caches(config: AdaCacheConfig, slots: Mapping[str, nn.Module],
                session: Session) -> dict[str, ResidualCache]:
    """What goes into which slot: caches that store, those that only probe, and the stack's own.

    The stack's own is last, and needed where it stores or where videos go different ways.
    """
    blocks = {path: module for path, module in slots.items() if path != STACK}
    if config.granularity == "stack" and STACK not in slots:
        raise ValueError("granularity='stack', but the model itself has no slot; allowed: granularity="
                         "'block', or a model with an attribute `residual_cache` (see adacache.residual)")
    if config.granularity == "block" and not blocks:
        raise ValueError("granularity='block', but no block has a slot; allowed: granularity='stack', or "
                         "blocks with an attribute `residual_cache` (see adacache.residual)")
    if config.decide != "batch" and STACK not in slots:
        raise ValueError(f"decide={config.decide!r}, but the model itself has no slot; allowed: decide="
                         "'batch', or a model with an attribute `residual_cache` (see adacache.residual)")
    by_block = config.granularity == "block"
    probed = {} if config.schedule is not None else probed_residuals(config.probes, blocks)
    caches = {path: ResidualCache(path, by_block, probed.get(path, ()), session.measure)
              for path in blocks if by_block or path in probed}
    if STACK in slots:
        decides = config.schedule is None
        wanted = config.forecast or (decides and config.guard < math.inf)
        caches[STACK] = StackCache(STACK, not by_block, tuple(caches.values()),
                                   Forecast(config.forecast, session.ranks, decides) if wanted else None)
    return caches


def probed_residuals(probes: tuple[str, ...], blocks: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Path of a block -> names of its probed residuals.

    Raises ValueError for a path that is no block's, and for a residual that the block says it has not.
    """
    probed: dict[str, list[str]] = {}
    for probe in probes:
        path, _, name = probe.rpartition(".")
        if path not in blocks:
            raise ValueError(f"probe {probe!r}: no block {path or probe}; blocks with a cache slot: "
                             f"{', '.join(blocks)}")
        block = blocks[path]
        names = (*getattr(block, "residual_names", (name,)), *getattr(block, "part_names", ()))
        if name not in names:
            raise ValueError(f"probe {probe!r}: no residual {name}; allowed: {', '.join(names)}")
        probed.setdefault(path, []).append(name)
    return probed


def watched_places(config: AdaCacheConfig, signature: inspect.Signature) -> dict[str, int | None]:
    """The arguments of `forward` to watch, and their places among the positional ones.

    None where a schedule tells when they change, no x_mask where the model has none.  Raises ValueError for
    any other name that `forward` does not take.
    """
    if config.schedule is not None and config.schedule.changes is not None:
        return {}
    known = signature.parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    unknown = [name for name in config.recompute_on if name not in known]
    if not takes_any and (wrong := [name for name in unknown if name != "x_mask"]):
        raise ValueError(f"recompute_on={wrong[0]!r}; allowed: arguments of forward: {', '.join(known)}")
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in known.values() if p.kind in by_place]
    return {name: positional.index(name) if name in positional else None
            for name in config.recompute_on if takes_any or name in known}
