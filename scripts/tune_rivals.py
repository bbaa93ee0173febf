"""Settings of rival caches for a speed: `[torchrun ...] scripts/tune_rivals.py CONFIG --target-speedup X`.

Every rival is tuned as its paper does it, on held-out prompts of the embedded model, one video at a time.
What is learnt from uncached runs, TeaCache's polynomial and the schedule that is placed offline, is learnt
from `--prompts` of them; settings are tried on `--verify` others.  TeaCache's threshold, and that of the
first block cache, is the smallest with which denoising is as much faster as asked for; the schedule that is
placed offline has the most steps that are fast enough; of the others a small grid is tried, with the
published settings in it, and the best PSNR wins among those that are fast enough.  PSNR is that of the
decoded video against the uncached one.
Writes FOLDER/NAME_1.5x.json for every target; where nothing is fast enough, the fastest, and it says so.
"""
from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from exit_status import exit_status
from mmengine.config import DictAction
from prompt_flags import add_prompt_file_flag, add_verify_flag, check_prompt_flags, chosen_prompts
from recorded_prompts import in_batches, open_pipeline
from rivals.tuning import NAMES, Bench, Tried, options_of, tuned
from trials import say

from adacache.config import one_of
from opensora.agreement import read_alike
from opensora.parallel import process_group, rank
from opensora.utils.whole_file import write_whole


def record(best: Tried, target: float, args: argparse.Namespace) -> dict[str, Any]:
    """What the file holds; `rivals.read_rival` reads its settings."""
    return {"settings": options_of(best.settings), "config": args.config, "target_speedup": target,
            "reached": best.speed_up >= target,
            "measured": best.outcome.to_json(),
            "prompts": {"learnt_on": args.prompts, "tried_on": args.verify, "seed": args.prompt_seed}}


def tune(args: argparse.Namespace) -> None:
    (pipeline, base), chosen = read_alike(
        lambda: (open_pipeline(args.config, args.cfg_options), chosen_prompts(args)))
    learnt_on, tried_on = ([request for request, in in_batches(pipeline.config, prompts, 1)]
                           for prompts in chosen)
    bench = Bench(pipeline, learnt_on, tried_on, base)
    for name, target in product(args.rivals, args.target_speedup):
        best = tuned(name, bench, target)
        file = args.out / f"{name}_{target:g}x.json"
        if rank() == 0:
            args.out.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(record(best, target, args), indent=2) + "\n")
        say(f"{file}{'' if best.speed_up >= target else ', not fast enough'}: {best}")


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what no model is needed to refuse."""
    check_prompt_flags(args)
    for target in args.target_speedup:
        if not 1 < target < math.inf:
            raise ValueError(f"target_speedup={target:g}; allowed: numbers above 1")
    for name in args.rivals:
        one_of("rivals", name, NAMES)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"out={str(args.out)!r}; allowed: a folder, or a new name for one")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--target-speedup", type=float, nargs="+", required=True, metavar="X",
                        help="of denoising")
    parser.add_argument("--rivals", nargs="+", default=list(NAMES), metavar="NAME",
                        help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--prompts", type=int, default=32, metavar="N", help="to learn from")
    parser.add_argument("--prompt-seed", type=int, default=1, metavar="N")
    add_verify_flag(parser, 8)
    add_prompt_file_flag(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    logging.getLogger("adacache").setLevel(logging.ERROR)

    def run() -> None:
        with process_group(), torch.no_grad():
            read_alike(lambda: check(args))
            tune(args)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
