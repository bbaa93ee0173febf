"""Make videos from prompts: `python scripts/inference.py CONFIG [flags]`, or `torchrun --standalone
--nproc_per_node N scripts/inference.py CONFIG [flags]`, where processes share each video (--sp-size,
--cfg-size), and what is left of them the prompts.
"""
from __future__ import annotations

import logging
import math
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from cache_choice import ALLOWED, take_cache_config
from exit_status import BAD_INPUT, exit_status
from rank_log import open_rank_log
from rich.console import Console
from rich.logging import RichHandler
from run_report import RunReport
from sample_maker import make_samples

from adacache import AdaCacheConfig
from opensora.agreement import read_alike
from opensora.parallel import Mesh, asked_shape, check_launcher, of_all_processes, process_group, rank
from opensora.restarts import began, end, ended, restarts
from opensora.roll_call import RankLost, RollCall
from opensora.utils.command_line import OneLineParser, inference_parser, overrides
from opensora.utils.config import flattened, read_config
from opensora.utils.failure_list import FailureList
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_record import is_finished
from opensora.utils.sample_request import SampleRequest, bad_references, plan_samples
from opensora.utils.whole_file import sweep_partials


@dataclass(frozen=True)
class Plan:
    """What a command line asks for.  refused: samples that cannot be made, by file, and why."""

    path: str
    config: InferenceConfig
    cache: AdaCacheConfig | None
    requests: list[SampleRequest]
    refused: Mapping[Path, Exception]

    def must_make(self, request: SampleRequest, since: float = math.inf) -> bool:
        """since: with `overwrite`, what was made before then is made again."""
        record = request.file.with_suffix(".json")
        kept = is_finished(request.file) and (not self.config.overwrite or record.stat().st_mtime >= since)
        return not kept

    def describe(self) -> dict[str, str]:
        """All that has to be the same on every rank, by config key."""
        samples = {f"sample {request.file.name}": repr(request) for request in self.requests}
        refused = {f"reference of {file.name}": str(error) for file, error in self.refused.items()}
        return {**flattened(asdict(self.config)), "adacache": repr(self.cache), **samples, **refused,
                "ranks along dp, cfg and sp": str(asked_shape(self.config.sp_size, self.config.cfg_size)),
                "device": self.config.torch_device.type, "torch": torch.__version__}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 all made, 1 some failed, 2 bad input, 130 stopped."""
    def run_together() -> int:
        if restarts() and (status := ended()) is not None:
            return status  # torchrun takes every status but 0 for a process that died
        try:
            with process_group(chosen_launcher(argv)):
                return run(argv)
        except BAD_INPUT:
            end(2)
            raise

    return exit_status(run_together, stopped="stopped; finished videos are kept")


def run(argv: list[str] | None) -> int:
    """Check everything, then load, make and sum up; the exit status."""
    plan = read_alike(lambda: read_plan(argv), Plan.describe)
    mesh = Mesh.of(plan.config.sp_size, plan.config.cfg_size)
    first_start = began()
    missing, given_up = tidy_and_list_missing(plan, first_start if restarts() else math.inf)
    own = missing[mesh.dp_rank :: mesh.dp_size]  # each process knows its share without asking
    try:
        with open_rank_log(plan.config.save_dir), RollCall.of_this_run(leave_lost) as roll_call:
            refused = [request for request in plan.requests if request.file in plan.refused]
            planned = len(missing) + len(refused) + len(given_up)
            report = RunReport(plan.config, roll_call, planned, existing=len(plan.requests) - planned)
            if rank() == 0:
                report.given_up(len(given_up))
            for request in refused if rank() == 0 else ():
                report.failed(request, report.cause_of([request], plan.refused[request.file]))
            if own:
                make_samples(own, plan.config, plan.cache, plan.path, report, mesh)
            return report.finish()
    except RankLost as error:
        leave_lost(str(error))


def chosen_launcher(argv: list[str] | None) -> str:
    """What the config says; where it says nothing good, torch, so that `read_plan` can tell all ranks."""
    with suppress(*BAD_INPUT):
        config = read_values(vars(argument_parser().parse_args(argv)))
        check_launcher(launcher := config.get("launcher", "torch"))
        return launcher
    return "torch"


def argument_parser() -> OneLineParser:
    parser = inference_parser("Make videos from prompts.")
    parser.add_argument("--adacache", metavar="NAME", help=ALLOWED)
    return parser


def read_plan(argv: list[str] | None) -> Plan:
    """Everything that can be told before a model is loaded; raises BAD_INPUT."""
    args = vars(argument_parser().parse_args(argv))
    choice = args.pop("adacache", None)
    values = read_values(args)
    cache = take_cache_config(values, choice)
    config = InferenceConfig.from_dict(values, args["config"])
    set_up_logging(config.verbose)
    plan = Plan(args["config"], config, cache, plan_samples(config), {})
    asked = [request for request in plan.requests if plan.must_make(request)]
    refused = bad_references(asked, config)
    if refused and len(refused) == len(plan.requests):
        raise next(iter(refused.values()))
    return replace(plan, refused=refused)


def tidy_and_list_missing(
    plan: Plan, since: float = math.inf,
) -> tuple[list[SampleRequest], list[SampleRequest]]:
    """What is to be made, and what is given up, the same on every rank; what an earlier run left half done is
    cleared.

    A sample that ends the run, as one that kills a process for want of memory, shall keep no other from being
    made: what failed before comes last, and what failed since this run began is given up.
    since: when it did; infinite where torchrun did not start it again.
    """
    folder, failures = Path(plan.config.save_dir), FailureList(plan.config.save_dir, rank())
    sweep_partials(folder, {request.file.with_suffix(suffix).name for request in plan.requests
                            for suffix in (request.file.suffix, ".json")})
    if rank() == 0:
        failures.merge(final=True)
    # a sample that only one node's disk has is finished, too
    kept = set(of_all_processes([request.file for request in plan.requests
                                if not plan.must_make(request, since)]))
    failed = dict(of_all_processes(list(failures.times().items()) if rank() == 0 else []))
    missing = [request for request in plan.requests if request.file not in kept | plan.refused.keys()]
    again = sorted(missing, key=lambda request: request.file.name in failed)  # otherwise as they were
    given_up = [request for request in again if failed.get(request.file.name, -math.inf) >= since]
    return [request for request in again if request not in given_up], given_up


def leave_lost(why: str) -> NoReturn:
    """Where others are lost, or wait in a collective: leaving the process group properly could wait for them,
    too."""
    print(f"error: {why}; finished videos are kept", file=sys.stderr, flush=True)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)


def read_values(args: Mapping[str, Any]) -> dict[str, Any]:
    """The config file with the flags merged in, as plain containers."""
    config = read_config(args["config"])
    changes = overrides(args, config)
    if (steps := args.get("num_sampling_steps")) is not None:
        # published configs tell the number to the model and at top level, too
        for path, where in (("", config), ("model.", config.get("model") or {})):
            if "num_sampling_steps" in where:
                changes[f"{path}num_sampling_steps"] = steps
    return read_config(args["config"], changes).to_dict()


def set_up_logging(verbose: int) -> None:
    """Warnings of all libraries; with verbose 2, everything that this project says."""
    handler = RichHandler(show_path=False, console=Console(stderr=True))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for package in ("opensora", "adacache"):
        logging.getLogger(package).setLevel([logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun passes Ctrl-C on as SIGTERM
    sys.exit(main())
