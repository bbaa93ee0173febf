"""Settings for a speed or a quality: `[torchrun ...] scripts/calibrate.py CONFIG --target-speedup 2.5`.

Several targets share the recordings; each has a file of its own, its name in the place of {} in FILE.

Records prompts with every step computed, finds by simulation the best fixed schedule and the best guarded
one (see adacache.calibrate), tries both on other prompts with the model, and writes the better as a profile.
`scripts/inference.py --adacache FILE` takes it, and refuses other models, sizes and numbers of steps.
With `--target-psnr` (dB, against uncached) steps are added, from as many as are foretold to come there, until
the target is met.  Of CONFIG's adacache only probes and metric are kept.  Ends with 1 where no settings that
were tried meet the target.
"""
from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

import torch
from cache_choice import open_cache
from exit_status import exit_status
from prompt_flags import add_prompt_flags
from recorded_prompts import RecordedPrompts, as_options, in_batches, open_pipeline
from trials import Outcome, Trials, say

from adacache import AdaCacheConfig, FixedSchedule
from adacache.calibrate import best_steps, guard_for
from opensora.datasets.shapes import held_out_prompts
from opensora.parallel import of_all_processes, process_group, rank
from opensora.pipeline import Pipeline
from opensora.utils.sample_request import SampleRequest

VERIFIED_SEED = 2  # of the prompts on which settings are tried; those they are found on have another
TRIES = 4          # numbers of computed steps
ORDER = 2          # of the forecast


Choices = list[tuple[AdaCacheConfig, float]]  # settings, and the PSNR in dB that they are foretold


@dataclass(frozen=True)
class Found:
    """Settings, and what they do to other prompts.  foretold: PSNR in dB by simulation."""

    settings: AdaCacheConfig
    foretold: float
    outcome: Outcome

    def __str__(self) -> str:
        kind = "guard" if self.settings.schedule is None else "fixed steps"
        return f"{kind}, {self.outcome} (foretold {self.foretold:.1f} dB)"


class Calibration:
    """What is known before any settings are tried.  reused_cost: of a reused step, part of a computed one."""

    def __init__(self, prompts: RecordedPrompts, reused_cost: float, probes: AdaCacheConfig) -> None:
        self.prompts, self.reused_cost, self.probes = prompts, reused_cost, probes

    @property
    def num_steps(self) -> int:
        return self.prompts.recording.num_steps

    def count_for(self, speed_up: float) -> int:
        """Computed steps with which denoising is that much faster.  Raises ValueError where none are few
        enough."""
        steps, cost = self.num_steps, self.reused_cost
        count = int((steps / speed_up - steps * cost) / (1 - cost))
        if count < 2:
            most = max(1.0, steps / (2 + (steps - 2) * cost))
            raise ValueError(f"target_speedup={speed_up:g}; allowed: above 1, to {most:.1f}")
        return min(count, steps - 1)

    def choices(self, count: int) -> Choices:
        """Settings that compute so many steps, at most in the mean, and the PSNR that they are foretold."""
        forecast, recording = replace(self.probes, codebook="fast", forecast=ORDER), self.prompts.recording
        choices = [replace(forecast, schedule=best_steps(recording, count, forecast, self.prompts.growth))]
        with suppress(ValueError):  # of a codebook that computes more whatever the guard is
            choices.append(replace(forecast, guard=guard_for(recording, count, forecast)))
        return [(settings, self.prompts.foretold(settings)) for settings in choices]


def reused_cost(pipeline: Pipeline, requests: Sequence[SampleRequest]) -> float:
    """Of a reused step, as part of a computed one."""
    steps, seconds = pipeline.scheduler.num_sampling_steps, []
    for computed in (range(steps), (0,)):
        cache = AdaCacheConfig(schedule=FixedSchedule(tuple(computed), steps), forecast=0)
        seconds.append(pipeline.generate(requests, partial(open_cache, cache))[0].seconds["denoise"])
    return max(0.0, (seconds[1] - seconds[0] / steps) / (steps - 1) / (seconds[0] / steps))


def profile(found: Found, args: argparse.Namespace) -> dict[str, Any]:
    settings = {**as_options(found.settings), "signature": found.outcome.signature.to_json()}
    return {
        "settings": settings, "config": args.config, "foretold_psnr": round(found.foretold, 2),
        "measured": found.outcome.to_json(),
        "prompts": {"found_on": args.prompts, "seed": args.prompt_seed,
                    "measured_on": len(found.outcome.psnr), "measured_seed": VERIFIED_SEED}}


def calibrate(args: argparse.Namespace) -> int:
    pipeline, probes = open_pipeline(args.config, args.cfg_options)
    config, prompts = pipeline.config, held_out_prompts(args.prompts, args.prompt_seed)
    batches = in_batches(config, prompts, args.batch)
    cost = max(of_all_processes([reused_cost(pipeline, batches[0])]))  # the same decisions everywhere
    known = Calibration(RecordedPrompts.of(pipeline, batches, probes), cost, probes)
    other = in_batches(replace(config, seed=config.seed + 1), held_out_prompts(args.verify, VERIFIED_SEED),
                       args.batch)
    trials = Trials(pipeline, other)
    return max([meet(target, known, trials, args) for target in targets(args)])


@dataclass(frozen=True)
class Target:
    """value: of the denoising's speed-up, or of the mean PSNR in dB."""

    value: float
    of_speed: bool

    def met_by(self, found: Found) -> bool:
        return (found.outcome.speed_up if self.of_speed else found.outcome.psnr.mean()) >= self.value

    def choices(self, known: Calibration) -> Iterator[Choices]:
        """For a speed with fewer and fewer computed steps, for a quality with more and more."""
        if self.of_speed:
            most = known.count_for(self.value)
            yield from (known.choices(count) for count in range(most, max(1, most - TRIES), -1))
            return
        every = (known.choices(count) for count in range(2, known.num_steps))
        enough = dropwhile(lambda choices: max(foretold for _, foretold in choices) < self.value, every)
        yield from islice(enough, TRIES)


def targets(args: argparse.Namespace) -> list[Target]:
    return [*(Target(value, True) for value in args.target_speedup or ()),
            *(Target(value, False) for value in args.target_psnr or ())]


def meet(target: Target, known: Calibration, trials: Trials, args: argparse.Namespace) -> int:
    """Write the best settings that meet the target.  Returns: 1 where none that were tried do."""
    for choices in target.choices(known):
        found = [Found(*choice, trials.of(partial(open_cache, choice[0]))) for choice in choices]
        for each in found:
            say(str(each))
        if meeting := [each for each in found if target.met_by(each)]:
            best = max(meeting, key=lambda each: each.outcome.psnr.mean())
            out = Path(str(args.out).replace("{}", f"{target.value:g}"))
            if rank() == 0:
                out.write_text(json.dumps(profile(best, args), indent=2) + "\n", encoding="utf-8")
            say(f"{out}: {best}")
            return 0
    say(f"no settings that were tried meet the target of {target.value:g}; nothing written")
    return 1


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for what needs no model to be refused."""
    if args.prompts < 2 or args.verify < 2:
        raise ValueError(f"prompts={args.prompts}, verify={args.verify}; allowed: 2 or more of each")
    if args.prompt_seed == VERIFIED_SEED:
        raise ValueError(f"prompt_seed={args.prompt_seed}; allowed: any but {VERIFIED_SEED}, on whose "
                         "prompts the settings are tried")
    for value in args.target_speedup or ():
        if not 1 < value < math.inf:
            raise ValueError(f"target_speedup={value:g}; allowed: a number above 1")
    if not args.out.parent.is_dir():
        raise ValueError(f"out={str(args.out)!r}; allowed: a file in a folder that is there")
    if len(targets(args)) > 1 and "{}" not in args.out.name:
        raise ValueError(f"out={str(args.out)!r} for several targets; allowed: a name with {{}} in it")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--target-speedup", type=float, nargs="+", metavar="X", help="of denoising")
    target.add_argument("--target-psnr", type=float, nargs="+", metavar="DB",
                        help="mean against uncached videos")
    parser.add_argument("--out", type=Path, default=Path("profile.json"), metavar="FILE")
    add_prompt_flags(parser, prompts=32, prompt_seed=1)
    parser.add_argument("--verify", type=int, default=16, metavar="N",
                        help="other prompts, on which settings are tried")
    args = parser.parse_args()
    logging.getLogger("adacache").setLevel(logging.ERROR)

    def run() -> int:
        check(args)
        with process_group(), torch.no_grad():
            return calibrate(args)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
