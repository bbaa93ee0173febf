"""How near the uncached video each method comes: `[torchrun ...] scripts/reuse_quality.py CONFIG`.

CONFIG is an inference config of the embedded model with `methods`: {name: dict(steps=..., adacache=...)}.
`steps` are those of the sampler (default: the config's); without `adacache` every one is computed.  With
`replay=NAME` each video computes the steps that it did under that method, before this one.  PSNR is
that of the decoded video against the one with all steps, also the worst, the one that a tenth of the prompts
does not reach, and that of the squared error of all (pooled); a method's gain is the mean of the differences,
prompt by prompt, to the method that its `against` names.  Intervals are 95 %.
"""
from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from cache_choice import checked_settings, open_cache
from exit_status import exit_status
from prompt_flags import add_json_flag, add_prompt_flags
from rich.console import Console
from rich.table import Table
from skimage.metrics import peak_signal_noise_ratio

from adacache import AdaCacheConfig, FixedSchedule, Trace, VideoTrace
from opensora.datasets.shapes import held_out_prompts
from opensora.parallel import process_group, rank, world_size
from opensora.pipeline import Pipeline
from opensora.utils.config import check_keys, read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest, plan_samples

KEYS = ("steps", "adacache", "against", "replay")


@dataclass(frozen=True)
class Method:
    """steps: of the sampler.  cache: None computes each.  against: the method to compare with, or None.
    replay: the method whose schedules it takes, video by video, or None."""

    steps: int
    cache: AdaCacheConfig | None
    against: str | None = None
    replay: str | None = None


def read_methods(given: Mapping[str, Mapping[str, Any]], steps: int) -> dict[str, Method]:
    """Raises ValueError or TypeError naming what is wrong."""
    methods = {}
    for name, values in given.items():
        check_keys(values, KEYS, f"methods.{name}")
        settings, against, replay = (values.get(key) for key in ("adacache", "against", "replay"))
        for key, other, allowed in (("against", against, given), ("replay", replay, methods)):
            if other is not None and other not in allowed:
                raise ValueError(f"methods.{name}.{key}={other!r}; allowed: {', '.join(allowed) or 'none'}")
        cache = None if settings is None else checked_settings(settings)
        methods[name] = Method(values.get("steps", steps), cache, against, replay)
    return methods


def sample(pipeline: Pipeline, requests: list[SampleRequest],
           cache: AdaCacheConfig | None, steps: int) -> tuple[list[np.ndarray], Trace]:
    """Videos and trace of one batch."""
    pipeline.scheduler.num_sampling_steps = steps
    samples = pipeline.generate(requests, partial(open_cache, cache))
    session = samples[0].runs[0].context
    every = Trace(steps, [VideoTrace(list(range(steps)))])
    return [made.video.clamp(-1, 1).numpy() for made in samples], session.trace if session else every


def measure(pipeline: Pipeline, requests: list[SampleRequest], methods: Mapping[str, Method], steps: int,
            batch: int) -> dict[str, list[tuple[float, int]]]:
    """Method -> (PSNR in dB, computed steps) of every request, those of this process."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in methods}
    for start in range(0, len(requests), batch):
        chunk = requests[start : start + batch]
        truth, _ = sample(pipeline, chunk, None, steps)
        traces: dict[str, Trace] = {}
        for name, method in methods.items():
            cache = method.cache
            if method.replay is not None:
                cache = replace(cache, schedule=FixedSchedule.from_json(traces[method.replay].to_json()))
            videos, traces[name] = sample(pipeline, chunk, cache, method.steps)
            counts = [len(traces[name].of_video(i).computed_steps) for i in range(len(chunk))]
            found[name] += [(psnr(*pair), count)
                            for *pair, count in zip(truth, videos, counts, strict=True)]
    return found


def psnr(truth: np.ndarray, video: np.ndarray) -> float:
    """In dB, of values in [-1, 1]; 100 where nothing differs."""
    with np.errstate(divide="ignore"):
        return min(100.0, float(peak_signal_noise_ratio(truth, video, data_range=2)))


def interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean."""
    if len(values) < 2:
        return 0.0
    return NormalDist().inv_cdf(0.975) * values.std(ddof=1) / len(values) ** 0.5


def summary(found: Mapping[str, list[tuple[float, int]]], methods: Mapping[str, Method]) -> dict[str, Any]:
    result = {}
    for name, method in methods.items():
        quality, counts = (np.array(values, float) for values in zip(*found[name], strict=True))
        result[name] = {
            "computed": counts.mean(), "computed_least": counts.min(), "computed_most": counts.max(),
            "psnr": quality.mean(), "psnr_interval": interval(quality), "psnr_worst": quality.min(),
            "psnr_tenth": np.quantile(quality, 0.1),
            "psnr_pooled": -10 * np.log10((10 ** (-quality / 10)).mean())}
        if method.against:
            other = np.array([value for value, _ in found[method.against]])
            gain = quality - other
            if counts.std() and other.std():  # below 0: it computes more where the other is worse
                result[name]["steps_follow"] = np.corrcoef(counts, other)[0, 1]
            result[name] |= {"against": method.against, "gain": gain.mean(), "gain_interval": interval(gain),
                             "gain_worst": gain.min(), "gain_best": gain.max()}
    return {name: {k: float(v) if not isinstance(v, str) else v for k, v in row.items()}
            for name, row in result.items()}


def table(result: Mapping[str, Mapping[str, Any]], prompts: int) -> Table:
    shown = Table("method", "computed steps", "PSNR, dB", "worst tenth", "worst", "pooled", "gain, dB",
                  "worst to best", "against", title=f"{prompts} held-out prompts")
    for name, row in result.items():
        steps = f"{row['computed']:.1f} ({row['computed_least']:.0f} to {row['computed_most']:.0f})"
        gain = ("", "", "") if "against" not in row else (
            f"{row['gain']:+.2f} ± {row['gain_interval']:.2f}",
            f"{row['gain_worst']:+.1f} to {row['gain_best']:+.1f}", row["against"])
        shown.add_row(name, steps, f"{row['psnr']:.2f} ± {row['psnr_interval']:.2f}",
                      *(f"{row[f'psnr_{name}']:.1f}" for name in ("tenth", "worst", "pooled")), *gain)
    return shown


def evaluate(args: argparse.Namespace) -> None:
    values = read_config(args.config, args.cfg_options).to_dict()
    given = values.pop("methods", None)
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{args.config} has no methods; allowed: methods = {{name: dict(adacache=...)}}")
    config = InferenceConfig.from_dict(values, args.config)
    steps = config.scheduler["num_sampling_steps"]
    methods = read_methods(given, steps)
    prompts = held_out_prompts(args.prompts, args.prompt_seed)
    config = replace(config, prompt=prompts, batch_size=args.batch)
    pipeline, requests = Pipeline.load(config), plan_samples(config)
    parts = [measure(pipeline, requests[rank() :: world_size()], methods, steps, args.batch)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, parts[0])
    ranks = len(parts)
    found = {name: [parts[i % ranks][name][i // ranks] for i in range(len(requests))] for name in methods}
    result = summary(found, methods)
    if rank() == 0:
        Console(width=160).print(table(result, args.prompts))
        if args.json:
            videos = {name: [dict(zip(("psnr", "computed"), pair, strict=True)) for pair in pairs]
                      for name, pairs in found.items()}  # in the order of the prompts
            written = {"config": args.config, "prompts": args.prompts, "methods": result, "videos": videos}
            args.json.write_text(json.dumps(written, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    add_prompt_flags(parser, prompts=64, prompt_seed=0)
    add_json_flag(parser)
    args = parser.parse_args()
    logging.getLogger("adacache").setLevel(logging.ERROR)

    def run() -> None:
        with process_group(), torch.no_grad():
            evaluate(args)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
