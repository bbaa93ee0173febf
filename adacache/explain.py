"""What a cache will do to a model, told before any run."""
from __future__ import annotations

import inspect
import math
import sys

import torch
from torch import nn

from adacache.attach import (
    STACK,
    cache_slots,
    check_num_steps,
    make_caches,
    probed_residuals,
    watched_places,
)
from adacache.codebook import Codebook
from adacache.config import AdaCacheConfig, is_whole
from adacache.schedule import AdaptiveSchedule
from adacache.session import FEW_STEPS, FEW_STEPS_DOUBT, Session, always_last
from adacache.signature import model_name


def explain(model: nn.Module, config: AdaCacheConfig, num_steps: int,
            residual_shape: tuple[int, int, int] | None = None) -> None:
    """Write `explanation` to standard output, for that is what one calls it for."""
    sys.stdout.write(explanation(model, config, num_steps, residual_shape) + "\n")


def explanation(model: nn.Module, config: AdaCacheConfig, num_steps: int,
                residual_shape: tuple[int, int, int] | None = None) -> str:
    """Blocks and probes in play, fewest and most computed steps, the cache's size, and what will not work.

    residual_shape: of one residual, rows x tokens x channels, for the size in bytes, taken to be of the dtype
    of the model's first parameter.
    """
    found = problems(model, config, num_steps)
    if not is_whole(num_steps, 1):  # then there is nothing else to tell
        return "\n".join(f"will not work: {problem}" for problem in found)
    try:
        slots, config = cache_slots(model), config.resolved()
    except ValueError:
        return "\n".join(f"will not work: {problem}" for problem in found)
    lines = [
        f"blocks: {len([path for path in slots if path != STACK])} with a slot"
        + (", and the model itself" if STACK in slots else ", none in the model itself"),
        steps_line(config, num_steps),
        f"decides: {decides(config)}",
        f"keeps: {keeps(config, slots, residual_shape, model)}",
        *(f"will not work: {problem}" for problem in found),
        *(f"beware: {doubt}" for doubt in doubts(num_steps)),
    ]
    return "\n".join(lines)


def steps_line(config: AdaCacheConfig, num_steps: int) -> str:
    if config.schedule is not None:
        lists = config.schedule.by_video or (config.schedule.steps,)
        return f"steps: {', '.join(str(len(steps)) for steps in lists)} of {num_steps}, known beforehand"
    codebook = config.codebook_for(num_steps)
    rates = [rate for _, rate in codebook.entries]
    guarded = config.guard < math.inf  # it may cap any rate to 1
    fewest, most = (count_computed(rate, num_steps, always_last(config.guard))
                    for rate in (max(rates), min(rates)))
    levels = ", ".join(f"{threshold:g}:{rate}" for threshold, rate in codebook.entries)
    guard = f", under a guard of {config.guard:g}" if guarded else ""
    most = num_steps if guarded else most
    return f"steps: {fewest} to {most} of {num_steps} computed, by the codebook {levels}{guard}"


def count_computed(rate: int, num_steps: int, last: int) -> int:
    """Computed steps where every decision comes to `rate`.  last: of those always computed at the end."""
    schedule, count = AdaptiveSchedule(Codebook(((1.0, rate),)), num_steps, last), 0
    for step in range(num_steps):
        if schedule.computes(step):
            count += 1
            schedule.plan(step, 0.0)
    return count


def decides(config: AdaCacheConfig) -> str:
    who = {"video": f"each video by itself ({config.rows_per_video} rows)", "row": "each row by itself",
           "batch": "the whole batch together"}[config.decide]
    if config.schedule is not None:
        return f"nothing; {who} follows its schedule"
    moreg = "with MoReg" if config.moreg else "without MoReg"
    return f"{who}, by {config.metric} at {', '.join(config.probes)}, {moreg}"


def keeps(config: AdaCacheConfig, slots: dict[str, nn.Module], shape: tuple[int, int, int] | None,
          model: nn.Module) -> str:
    blocks = {path: module for path, module in slots.items() if path != STACK}
    stored = 1 if config.granularity == "stack" else sum(
        len(getattr(block, "residual_names", (None,))) for block in blocks.values())
    extra, ahead = probes_apart(config, blocks), config.forecast
    parts = [f"{stored} to reuse", f"{extra} to compare", *([f"{ahead} to forecast"] if ahead else [])]
    stored += ahead
    count = f"{stored + extra} residuals ({', '.join(parts)})"
    if shape is None:
        return f"{count}, each rows x tokens x channels"
    rows, tokens, channels = shape
    size = next(model.parameters(), torch.empty(0)).element_size()
    return (f"{count} of {rows} x {tokens} x {channels} x {size} bytes: "
            f"{(stored + extra) * rows * tokens * channels * size:,} bytes")


def probes_apart(config: AdaCacheConfig, blocks: dict[str, nn.Module]) -> int:
    """Probed residuals that are kept for the comparison alone."""
    if config.schedule is not None:
        return 0
    if config.granularity == "stack":
        return len(config.probes)
    parts = [probe.rpartition(".") for probe in config.probes]
    return sum(name not in getattr(blocks.get(path), "residual_names", (name,)) for path, _, name in parts)


def problems(model: nn.Module, config: AdaCacheConfig, num_steps: int) -> list[str]:
    """Every error that the `with` would meet at its door."""
    slots = cache_slots(model)
    blocks = {path: module for path, module in slots.items() if path != STACK}
    signature = inspect.signature(model.forward)
    checks = [lambda: check_num_steps(config, num_steps),
              lambda: Session(config, num_steps, model_name(model)).check_made_for(None),
              lambda: make_caches(config.resolved(), slots, Session(config, num_steps)),
              lambda: watched_places(config.resolved(), signature)]
    if config.schedule is None:
        checks += [lambda probe=probe: probed_residuals((probe,), blocks) for probe in config.probes]
    found: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except ValueError as error:
            found[str(error)] = None
    return list(found)


def doubts(num_steps: int) -> list[str]:
    return [f"num_steps={num_steps}: {FEW_STEPS_DOUBT}"] if num_steps < FEW_STEPS else []
