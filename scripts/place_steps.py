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
from dataclasses import replace

import torch
from exit_status import exit_status
from prompt_flags import add_json_flag, add_prompt_flags, unreported_prompts
from recorded_prompts import RecordedPrompts, as_options, in_batches, open_pipeline

from adacache.calibrate import best_steps, check_count


def place(args: argparse.Namespace) -> None:
    if args.json and len(args.computed) * len(args.forecast) > 1:
        raise ValueError(f"computed={args.computed}, forecast={args.forecast} with json={str(args.json)!r}; "
                         "allowed: one of each")
    pipeline, base = open_pipeline(
        args.config, args.cfg_options,
        lambda model, steps: [check_count(count, steps) for count in args.computed])
    prompts = unreported_prompts(args.prompts, args.prompt_seed)
    known = RecordedPrompts.of(pipeline, in_batches(pipeline.config, prompts, args.batch), base)
    for order, count in itertools.product(args.forecast, args.computed):
        settings = replace(base, forecast=order)
        found = replace(settings, schedule=best_steps(known.recording, count, settings, known.growth))
        print(f"{count} of {known.recording.num_steps} steps, forecast {order}: "
              f"{list(found.schedule.steps)}; foretold, without what errors do to one another: "
              f"{known.foretold(found).psnr.mean():.1f} dB")
        if args.json:
            args.json.write_text(json.dumps(as_options(found), indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--computed", type=int, nargs="+", required=True, metavar="N",
                        help="steps to compute")
    parser.add_argument("--forecast", type=int, nargs="+", default=[2], choices=(0, 1, 2))
    add_prompt_flags(parser, prompts=32, prompt_seed=1)
    add_json_flag(parser)
    args = parser.parse_args()
    logging.getLogger("adacache").setLevel(logging.ERROR)

    def run() -> None:
        with torch.no_grad():
            place(args)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
