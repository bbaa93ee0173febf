"""Make videos from prompts: `python scripts/inference.py CONFIG [flags]`, or `torchrun --standalone
--nproc_per_node N scripts/inference.py CONFIG [flags]`, where the processes of a node make each video
together (with `--sp-size 1` each has videos of its own); see docs/scaling.md.
"""
from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from cache_choice import ALLOWED, take_cache_config
from exit_status import exit_status
from rich.console import Console
from rich.logging import RichHandler
from sample_maker import Tally, make_samples

from opensora.parallel import Mesh, process_group, rank, said_by_first, world_size
from opensora.utils.command_line import inference_parser, overrides
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest, check_references, plan_samples


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 all made, 1 some failed, 2 bad input, 130 stopped."""
    def parse_and_run() -> int:
        parser = inference_parser("Make videos from prompts.")
        parser.add_argument("--adacache", metavar="NAME", help=ALLOWED)
        args = vars(parser.parse_args(argv))
        with process_group():
            return run(args)

    return exit_status(parse_and_run, stopped="stopped; finished videos are kept")


def run(args: dict[str, Any]) -> int:
    """Check everything, then load, make and sum up; the exit status."""
    choice = args.pop("adacache", None)
    values = read_values(args)
    cache = take_cache_config(values, choice)
    config = InferenceConfig.from_dict(values, args["config"])
    set_up_logging(config.verbose)
    mesh = Mesh.of(config.sp_size, config.cfg_size)
    requests = plan_samples(config)
    check_references([request for request in requests if must_make(request, config)], config)
    own = requests[mesh.dp_rank :: mesh.dp_size]  # each process knows its share without asking
    # on a shared disk, ranks of the same videos may see different files
    missing = said_by_first([request for request in own if must_make(request, config)], mesh.video)
    # a process may wait for the others as long as a video takes
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7)) if world_size() > 1 else None
    started = time.perf_counter()
    tally = Tally(existing=len(own) - len(missing) if mesh.is_first else 0)
    if missing:
        tally += make_samples(missing, config, cache, args["config"], mesh)
    tallies = [tally] * world_size()
    if group is not None:
        dist.all_gather_object(tallies, tally, group=group)
    total = sum(tallies, Tally())
    if rank() == 0:
        print(total.line(time.perf_counter() - started, config.save_dir))
    return 1 if total.failed else 0


def must_make(request: SampleRequest, config: InferenceConfig) -> bool:
    """A sample is finished where its record stands beside it."""
    return config.overwrite or not (request.file.exists() and request.file.with_suffix(".json").exists())


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
