"""Time denoising with and without a cache: `python scripts/benchmark.py CONFIG [--repeats 7] [--json FILE]`.

Runs alternate in one process; numbers are medians, ratios medians of the ratios of neighbouring runs.
`--batch N` denoises N held-out prompts together: computed steps are then means over the videos, and
efficiency tells what their different schedules cost (1: a video pays for its own computed steps alone).
CONFIG is an inference config; its AdaCache (or that of --adacache) is compared with computing every step.
`torchrun --nproc_per_node N scripts/benchmark.py CONFIG --scaling` compares one rank with all of them, which
make a video together: seconds of denoising and decoding, and the bytes that a rank sends.
"""
from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cache_choice import ALLOWED, take_cache_config
from denoising_time import Run, time_run
from exit_status import exit_status
from mmengine.config import DictAction
from rich.console import Console
from rich.table import Table
from scaling_time import scaling
from torch import nn

from adacache import AdaCacheConfig, Codebook
from opensora.datasets.shapes import held_out_prompts
from opensora.parallel import process_group, rank, world_size
from opensora.pipeline import Pipeline
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest, plan_samples

EVERY_STEP = Codebook(((1e9, 1),))  # decides at every step, and always to compute


def summary(runs: Mapping[str, list[Run]], num_steps: int) -> dict[str, Any]:
    """Medians over the runs of each kind: plain, deciding (computes all, decides all), cached."""
    plain, deciding, cached = (runs[kind] for kind in ("plain", "deciding", "cached"))
    step = statistics.median(s for run in plain for s in run.computed_seconds)
    computed = cached[0].computed
    reused = [s for run in cached for s in run.reused_seconds]

    def ratio(first: list[Run], second: list[Run]) -> float:
        return statistics.median(a.seconds / b.seconds for a, b in zip(first, second, strict=True))

    speed_up, ideal = ratio(plain, cached), num_steps / computed
    return {
        "videos": len(cached[0].computed_steps), "steps": num_steps, "computed_steps": computed,
        "threads": torch.get_num_threads(),
        "plain_seconds": statistics.median(run.seconds for run in plain),
        "cached_seconds": statistics.median(run.seconds for run in cached),
        "computed_step_ms": 1000 * step,
        "reused_step_ms": 1000 * statistics.median(reused) if reused else None,
        "reused_over_computed": statistics.median(reused) / step if reused else None,
        "bookkeeping": ratio(deciding, plain) - 1,
        "bookkeeping_clocked": statistics.median(run.bookkeeping for run in deciding),
        "speed_up": speed_up, "steps_over_computed": ideal, "efficiency": speed_up / ideal,
        "cache_bytes": cached[0].cache_bytes, "residual_bytes": cached[0].residual_bytes,
    }


def table(result: Mapping[str, Any]) -> Table:
    shown = Table("quantity", "value", title="denoising, medians of alternating runs")
    shares = {"reused_over_computed", "bookkeeping", "bookkeeping_clocked", "efficiency"}
    for name, value in result.items():
        text = "-" if value is None else f"{value:.2%}" if name in shares else \
            f"{value:.4g}" if isinstance(value, float) else str(value)
        shown.add_row(name.replace("_", " "), text)
    return shown


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@torch.no_grad()
def fill_zeros(model: nn.Module) -> None:
    """Of layers that a new model starts as zeros: products with zeros take a GPU less power, and time."""
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            weight.normal_(std=0.02)


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A rank's bytes: in a computed step, in a reused one, for a decision, to decode."""
    shown = Table("ranks", "cfg x sp", "plain s", "cached s", "decode s", "speed", "step MB", "reused MB",
                  "decision B", "decode MB", title="one video: seconds, medians; what a rank sends")
    alone = rows[0]["cached_seconds"] + rows[0]["decode_seconds"]
    for row in rows:
        total = row["cached_seconds"] + row["decode_seconds"]
        shown.add_row(str(row["ranks"]), f"{row['cfg_size']} x {row['sp_size']}",
                      *(f"{row[f'{stage}_seconds']:.3f}" for stage in ("plain", "cached", "decode")),
                      f"{alone / total:.2f}x", f"{row['computed_step_bytes'] / 1e6:.3f}",
                      f"{row['reused_step_bytes'] / 1e6:.3f}", str(row["decision_bytes"]),
                      f"{row['decode_bytes'] / 1e6:.3f}")
    return shown


def open_benchmark(args: argparse.Namespace) -> tuple[Pipeline, list[SampleRequest], AdaCacheConfig]:
    values = read_config(args.config, args.cfg_options).to_dict()
    cache = take_cache_config(values, args.adacache)
    if cache is None:
        raise ValueError(f"{args.config} has no adacache; allowed: one that has, or --adacache {ALLOWED}")
    config = InferenceConfig.from_dict(values, args.config)
    config = replace(config, compile=config.compile or args.compile)
    if args.batch:
        config = replace(config, prompt=held_out_prompts(args.batch), batch_size=args.batch)
    pipeline, count = Pipeline.load(config), 1 if args.scaling else config.batch_size
    requests = plan_samples(config)[:count]
    fill_zeros(pipeline.model)
    return pipeline, requests, cache


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    for name, value in (("repeats", args.repeats), ("batch", args.batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; allowed: 1 or more")
    if args.scaling and args.batch:
        raise ValueError(f"--batch {args.batch} with --scaling; allowed: one video")
    if args.scaling and world_size() == 1:
        raise ValueError("--scaling with 1 process; allowed: 2 or more, by torchrun --nproc_per_node N")
    pipeline, requests, cache = open_benchmark(args)
    if args.scaling:
        return {"config": args.config, "device": device_name(pipeline.device),
                "scaling": scaling(pipeline, requests, cache, args.repeats)}
    deciding = replace(cache.resolved(), codebook=EVERY_STEP, schedule=None)
    kinds = {"plain": None, "deciding": deciding, "cached": cache}
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for repeat in range(-1, args.repeats):  # the first round warms up
        for kind in kinds:
            run = time_run(pipeline, requests, kinds[kind])
            if repeat >= 0:
                runs[kind].append(run)
    return {"config": args.config, "device": device_name(pipeline.device),
            **summary(runs, pipeline.scheduler.num_sampling_steps)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, metavar="N", help="that many held-out prompts together")
    parser.add_argument("--compile", action="store_true", help="torch.compile every block")
    parser.add_argument("--scaling", action="store_true", help="one rank against all of a torchrun")
    parser.add_argument("--adacache", metavar="NAME", help=ALLOWED)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()

    def run() -> None:
        logging.getLogger("adacache").setLevel(logging.ERROR)  # one kind of run is meant to reuse nothing
        with process_group():
            result = benchmark(args)
            if rank() == 0:
                Console().print(scaling_table(result["scaling"]) if args.scaling else table(result))
                if args.json:
                    args.json.write_text(json.dumps(result, indent=2) + "\n")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
