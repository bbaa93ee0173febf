"""The best steps to compute, for all videos alike: `python scripts/place_steps.py CONFIG --computed 12`.

Records prompts of the embedded model with every step computed, measures on some of them how far an error at
each step grows (runs in which that step alone is reused), and searches by simulation; see adacache.calibrate.
--json writes settings that `scripts/inference.py --adacache FILE` takes.
"""
from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from cache_choice import MIDDLE_PROBE, for_model, open_cache, take_cache_config
from exit_status import exit_status
from mmengine.config import DictAction
from torch import Tensor

from adacache import AdaCacheConfig, FixedSchedule
from adacache.calibrate import best_steps, check_count, growth_of_errors, simulate
from adacache.recording import Recording, recorded
from opensora.datasets.shapes import held_out_prompts
from opensora.pipeline import Pipeline
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest, plan_samples

TRIED = 10  # steps at which the growth of errors is measured, denser where they are early
RANGE = 2   # of the values of a video, -1 to 1


def record(pipeline: Pipeline, requests: Sequence[SampleRequest],
           probes: AdaCacheConfig) -> tuple[Recording, Tensor]:
    """One batch; its videos [V, 3, T, H, W]."""
    samples = pipeline.generate(requests, lambda model, steps: recorded(model, probes, steps))
    return samples[0].runs[0].context.recording(), torch.stack([made.video for made in samples])


def measured_growth(pipeline: Pipeline, requests: Sequence[SampleRequest], recording: Recording,
                    truth: Tensor) -> Tensor:
    """[K], up to the mean squared error of the decoded video."""
    steps, final = recording.num_steps, {}
    tried = {max(1, round((steps - 1) * (i / TRIED) ** 2)) for i in range(1, TRIED + 1)}
    for step in sorted(tried):
        kept = FixedSchedule(tuple(s for s in range(steps) if s != step), steps)
        cache = AdaCacheConfig(schedule=kept, forecast=0)
        videos = torch.stack([made.video for made in pipeline.generate(requests, partial(open_cache, cache))])
        final[step] = (videos - truth).square().flatten(1).mean(dim=1)
    return growth_of_errors(recording, final)


def psnr(squared_error: Tensor) -> float:
    """In dB, mean over the videos."""
    return (10 * torch.log10(RANGE**2 / squared_error.clamp(min=1e-12))).mean().item()


def place(args: argparse.Namespace) -> None:
    if args.json and len(args.computed) * len(args.forecast) > 1:
        raise ValueError(f"computed={args.computed}, forecast={args.forecast} with json={str(args.json)!r}; "
                         "allowed: one of each")
    values = read_config(args.config, args.cfg_options).to_dict()
    cache = take_cache_config(values, None) or AdaCacheConfig(probes=(MIDDLE_PROBE,))
    config = InferenceConfig.from_dict(values, args.config)
    if config.loop > 1:
        raise ValueError(f"loop={config.loop}; allowed: 1, for a recording is of one clip")
    for count in args.computed:
        check_count(count, config.scheduler["num_sampling_steps"])
    config = replace(config, prompt=held_out_prompts(args.prompts, args.prompt_seed), batch_size=args.batch)
    pipeline, requests = Pipeline.load(config), plan_samples(config)
    cache = for_model(cache, pipeline.model)
    batches = [requests[start : start + args.batch] for start in range(0, len(requests), args.batch)]
    probes = AdaCacheConfig(probes=cache.probes, metric=cache.metric, moreg=cache.moreg)
    first, truth = record(pipeline, batches[0], probes)
    growth = measured_growth(pipeline, batches[0], first, truth)
    recording = Recording.joined([first, *(record(pipeline, batch, probes)[0] for batch in batches[1:])])
    for order, count in itertools.product(args.forecast, args.computed):
        settings = AdaCacheConfig(probes=cache.probes, forecast=order)
        found = best_steps(recording, count, settings, growth)
        foretold = psnr(simulate(recording, replace(settings, schedule=found)).squared_error(growth))
        print(f"{count} of {recording.num_steps} steps, forecast {order}: {list(found.steps)}; foretold, "
              f"without what errors do to one another: {foretold:.1f} dB")
        if args.json:
            schedule = {"num_steps": recording.num_steps, "computed_steps": list(found.steps),
                        "forecast": order}
            chosen = {"schedule": schedule, "probes": list(cache.probes), "forecast": order}
            args.json.write_text(json.dumps(chosen, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--computed", type=int, nargs="+", required=True, metavar="N",
                        help="steps to compute")
    parser.add_argument("--forecast", type=int, nargs="+", default=[2], choices=(0, 1, 2))
    parser.add_argument("--prompts", type=int, default=32, metavar="N")
    parser.add_argument("--prompt-seed", type=int, default=1, metavar="N")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="videos together")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    logging.getLogger("adacache").setLevel(logging.ERROR)

    def run() -> None:
        with torch.no_grad():
            place(args)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
