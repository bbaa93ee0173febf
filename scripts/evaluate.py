"""Methods x prompts x seeds on one model: `[torchrun ...] scripts/evaluate.py configs/eval/NAME.py`.

CONFIG is an inference config with `methods = {name: dict(steps=..., adacache=..., rival=...)}` (see
evaluation.methods) and `evaluation = dict(prompts=..., seeds=..., metrics=..., ...)` (see evaluation.plan).
Every video is kept with a record beside it; what is there is not made again, so that a stopped run goes on,
also with more prompts, methods or processes.  FOLDER then holds results.json, table.md, table.csv,
quality_latency.png, timelines.png and gallery.html.
"""
from __future__ import annotations

import argparse
import json
import logging
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from evaluation.figures import draw_quality_latency, draw_timelines
from evaluation.gallery import write_gallery
from evaluation.plan import Plan, read_plan
from evaluation.records import Records
from evaluation.sampling import Sampling
from evaluation.summary import summarise, unfinished
from evaluation.tables import as_csv, markdown, missing_sentences, terminal
from exit_status import exit_status
from mmengine.config import DictAction
from rich.console import Console
from rich.progress import track

from opensora.agreement import read_alike
from opensora.parallel import of_all_processes, process_group, rank, world_size
from opensora.pipeline import Pipeline
from opensora.utils.whole_file import write_whole


def evaluate(args: argparse.Namespace) -> int:
    """Returns 1 where videos failed."""
    flags = {"prompts": args.prompts, "prompt_seed": args.prompt_seed, "batch": args.batch}
    plan = read_alike(lambda: read_plan(args.config, args.cfg_options, flags))
    wanted = plan.only(args.only)
    folder, failed = args.out or Path("outputs/eval") / Path(args.config).stem, 0
    if args.report:
        records = Records(folder, plan)
    else:
        pipeline, records = read_alike(lambda: opened(plan, folder))
        failed = make_all(wanted, pipeline, records)
    if rank() == 0:
        report(plan, records, folder)
    return 1 if failed else 0


def opened(plan: Plan, folder: Path) -> tuple[Pipeline, Records]:
    """Models that fit all methods, and what there is of them."""
    pipeline = Pipeline.load(plan.config)
    for method in plan.methods.values():
        method.check(pipeline.model)
    return pipeline, Records(folder, plan, pipeline)


def make_all(plan: Plan, pipeline: Pipeline, records: Records) -> int:
    """Batches go round the processes of a torchrun.  Returns how many videos of all failed."""
    sampling, batches = Sampling(plan, pipeline, records), list(enumerate(plan.batches()))
    # a process may wait for the others as long as a batch of all methods takes
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=7)) if world_size() > 1 else None
    if rank() == 0:
        records.begin()
    sampling.warm_up(batches[0][1])
    own = batches[rank() :: world_size()]
    for number, batch in track(own, "sampling", console=Console(stderr=True), disable=rank() > 0):
        sampling.make(number, batch)
    if world_size() > 1:
        dist.barrier(patient)
    return sum(of_all_processes([sampling.failed]))


def report(plan: Plan, records: Records, folder: Path) -> None:
    """Everything that follows from the records."""
    found = records.read()
    if not found:
        raise ValueError(f"{folder} has no results; allowed: a run without --report first")
    results = summarise(plan, found, folder)
    write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_whole(folder / "table.md", markdown(results))
    write_whole(folder / "table.csv", as_csv(results))
    draw_quality_latency(results, folder / "quality_latency.png")
    draw_timelines(results, folder / "timelines.png")
    page = write_gallery(results, folder, plan.options.gallery)
    console = Console(width=max(200, Console().width))
    console.print(terminal(results))
    for sentence in missing_sentences(results):
        console.print(sentence)
    if left := unfinished(plan, found):
        console.print(f"{left} videos are still to be made")
    console.print(f"{page}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: outputs/eval/CONFIG")
    parser.add_argument("--prompts", type=int, metavar="N", help="held-out prompts of the embedded model")
    parser.add_argument("--prompt-seed", type=int, metavar="N",
                        help="other prompts, to choose settings by; 0 are those that are reported")
    parser.add_argument("--batch", type=int, metavar="N", help="videos together")
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--report", action="store_true",
                        help="only tables and pages of what is there; needs no model")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    logging.getLogger("adacache").setLevel(logging.ERROR)

    def run() -> int:
        with process_group(), torch.no_grad():
            return evaluate(args)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
