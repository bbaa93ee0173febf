"""Settings for a speed or a quality: `[torchrun ...] scripts/calibrate.py CONFIG --target-speedup 2.5`.

Several targets share the recordings; each has a file of its own, its name in the place of {} in FILE.

Records prompts with every step computed, finds by simulation (see adacache.calibrate) the best fixed
schedule, the tightest guard, and thresholds and rates of a codebook, each with a forecast, tries them on
other prompts with the model, and writes the best as a profile.  `scripts/inference.py --adacache FILE`
takes it, and refuses other models, sizes, numbers of steps and samplers.  With `--target-psnr` (dB, against
uncached) steps are added, from as many as are foretold to come there, until the target is met.  Of CONFIG's
adacache probes, metric and moreg are kept.  Ends with 1 where no settings that were tried meet the target.
"""
from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cache_choice import open_cache
from calibration import Calibration, Found, Target, reused_cost
from exit_status import exit_status
from prompt_flags import (
    add_prompt_file_flag,
    add_prompt_flags,
    add_verify_flag,
    check_prompt_flags,
    chosen_prompts,
)
from recorded_prompts import RecordedPrompts, as_options, in_batches, open_pipeline
from torch import nn
from trials import Outcome, Trials, say

from opensora.agreement import read_alike
from opensora.parallel import of_all_processes, process_group, rank
from opensora.utils.whole_file import write_whole


def profile(found: Found, known: Calibration) -> dict[str, Any]:
    settings = {**as_options(found.settings), "signature": found.outcome.signature.to_json()}
    foretold, speeds = found.foretold, known.speed_of(found.foretold.computed)
    by_simulation = Outcome(foretold.psnr, foretold.computed, speeds).to_json()
    return {"settings": settings, "foretold": by_simulation, "measured": found.outcome.to_json()}


def calibrate(args: argparse.Namespace) -> int:
    (pipeline, base), (prompts, others) = read_alike(
        lambda: (open_pipeline(args.config, args.cfg_options, check_steps), chosen_prompts(args)))
    config = pipeline.config
    batches = in_batches(config, prompts, args.batch)
    cost = max(of_all_processes([reused_cost(pipeline, batches[0])]))  # the same decisions everywhere
    known = Calibration(RecordedPrompts.of(pipeline, batches, base), cost, base)
    trials = Trials(pipeline, in_batches(replace(config, seed=config.seed + 1), others, args.batch))
    told = {"config": args.config, "sampler": dict(config.scheduler), "image_size": list(config.size),
            "num_frames": config.clip_frames,
            "prompts": {"found_on": prompts, "measured_on": others}}
    return max([meet(target, known, trials, args.out, told) for target in targets(args)])


def check_steps(model: nn.Module, num_steps: int) -> None:
    if num_steps < 3:
        raise ValueError(f"scheduler.num_sampling_steps={num_steps}; allowed: 3 or more, for the first two "
                         "are always computed")


def targets(args: argparse.Namespace) -> list[Target]:
    return [*(Target(value, True) for value in args.target_speedup or ()),
            *(Target(value, False) for value in args.target_psnr or ())]


def meet(target: Target, known: Calibration, trials: Trials, out: Path, told: Mapping[str, Any]) -> int:
    """Write the best settings that meet the target, and what is told of the run beside them.

    Returns: 1 where none that were tried do.
    """
    if (best := best_found(target, known, trials)) is None:
        say(f"no settings that were tried meet the target of {target.value:g}; nothing written")
        return 1
    file = Path(str(out).replace("{}", f"{target.value:g}"))
    if rank() == 0:
        write_whole(file, json.dumps({**profile(best, known), **told}, indent=2) + "\n")
    say(f"{file}: {best}")
    return 0


def best_found(target: Target, known: Calibration, trials: Trials) -> Found | None:
    """Of each kind of settings the first that meets the target counts; of these the best."""
    meeting: dict[str, Found] = {}
    for choices in target.choices(known):
        for kind, (settings, foretold) in choices.items():
            if kind in meeting:
                continue
            found = Found(kind, settings, foretold, trials.of(partial(open_cache, settings)))
            say(str(found))
            if target.met_by(found):
                meeting[kind] = found
        if meeting.keys() >= choices.keys():
            break
    return max(meeting.values(), key=target.worth, default=None)


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for what needs no model to be refused."""
    check_prompt_flags(args)
    for value in args.target_speedup or ():
        if not 1 < value < math.inf:
            raise ValueError(f"target_speedup={value:g}; allowed: a number above 1")
    for value in args.target_psnr or ():
        if not 0 < value < math.inf:
            raise ValueError(f"target_psnr={value:g}; allowed: a number of dB above 0")
    if not args.out.parent.is_dir() or args.out.is_dir():
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
    add_prompt_file_flag(parser)
    add_verify_flag(parser, 16)
    args = parser.parse_args()
    logging.getLogger("adacache").setLevel(logging.ERROR)

    def run() -> int:
        with process_group(), torch.no_grad():
            read_alike(lambda: check(args))
            return calibrate(args)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
