"""Make videos from prompts: `python scripts/inference.py CONFIG [flags]`, or `torchrun --standalone
--nproc_per_node N scripts/inference.py CONFIG [flags]`, where each process takes its share of the prompts.
"""
from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist
from cache_choice import ALLOWED, check_cache, open_cache, sampling_record, take_cache_config
from exit_status import exit_status, one_line
from rich.console import Console
from rich.logging import RichHandler
from step_bar import StepBar

from adacache import AdaCacheConfig
from opensora.parallel import process_group, rank, world_size
from opensora.pipeline import Pipeline, Sample
from opensora.utils.command_line import inference_parser, overrides
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_record import describe, save_with_record
from opensora.utils.sample_request import SampleRequest, check_references, plan_samples


@dataclass
class Tally:
    """What a run came to; that of several processes is the sum."""

    videos: int = 0
    failed: int = 0
    existing: int = 0
    denoise_seconds: float = 0.0
    computed: int = 0
    steps: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def line(self, seconds: float, save_dir: str) -> str:
        parts = [f"{self.videos} video{'s' * (self.videos != 1)} in {seconds:.1f} s",
                 f"denoising {self.denoise_seconds:.1f} s", f"computed {self.computed} of {self.steps} steps"]
        parts += [f"{self.existing} existing kept"] * bool(self.existing)
        parts += [f"{self.failed} failed"] * bool(self.failed)
        return f"{', '.join(parts)}: {save_dir}"


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
    requests = plan_samples(config)
    check_references([request for request in requests if must_make(request, config)], config)
    own = requests[rank() :: world_size()]  # each process knows its share without asking
    missing = [request for request in own if must_make(request, config)]
    # a process may wait for the others as long as a video takes
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7)) if world_size() > 1 else None
    started = time.perf_counter()
    tally = Tally(existing=len(own) - len(missing))
    if missing:
        tally += make_samples(missing, config, cache, args["config"])
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


def make_samples(
    requests: list[SampleRequest], config: InferenceConfig, cache: AdaCacheConfig | None, config_path: str
) -> Tally:
    """Make, save and record samples batch by batch; one that fails is named, the others are kept."""
    pipeline = Pipeline.load(config, check=lambda model, num_steps: check_cache(cache, model, num_steps))
    tally = Tally()
    with StepBar(visible=rank() == 0 and config.verbose > 0) as bar:
        for start in range(0, len(requests), config.batch_size):
            batch = requests[start : start + config.batch_size]
            tally += make_batch(pipeline, batch, cache, bar, config_path)
    return tally


def make_batch(
    pipeline: Pipeline, batch: list[SampleRequest], cache: AdaCacheConfig | None, bar: StepBar,
    config_path: str,
) -> Tally:
    config, num_steps = pipeline.config, pipeline.scheduler.num_sampling_steps
    bar.start_batch(batch, config.loop * num_steps)
    try:
        samples = pipeline.generate(batch, partial(open_cache, cache), bar.step)
    except Exception as error:  # whatever it is, the other videos can still be made
        return report_failures(batch, error, config.verbose)
    tally = Tally()
    for request, sample in zip(batch, samples, strict=True):
        try:
            tally += save(sample, request, config, config_path, num_steps)
        except (ValueError, OSError) as error:
            tally += report_failures([request], error, config.verbose)
    return tally


def save(
    sample: Sample, request: SampleRequest, config: InferenceConfig, config_path: str, num_steps: int
) -> Tally:
    sampling = sampling_record([(run.context, run.row) for run in sample.runs], num_steps)
    record = describe(sample, request, config, config_path, sampling)
    file = save_with_record(sample, request, config.file_fps, record)
    computed = sum(len(clip["computed_steps"]) for clip in sampling.get("clips", [sampling]))
    tally = Tally(videos=1, denoise_seconds=sample.seconds["denoise"], computed=computed,
                  steps=num_steps * len(sample.runs))
    if config.verbose > 0:
        print(f"{file}: computed {computed} of {tally.steps} steps, "
              f"denoising {sample.seconds['denoise']:.1f} s, all {sample.seconds['total']:.1f} s")
    return tally


def report_failures(requests: list[SampleRequest], error: Exception, verbose: int) -> Tally:
    cause = f"{type(error).__name__}: {one_line(error)}"
    for request in requests:
        print(f"failed: {request.file.name}: {cause}", file=sys.stderr)
    if verbose > 1:
        logging.getLogger("opensora").exception("what led there:", exc_info=error)
    return Tally(failed=len(requests))


def set_up_logging(verbose: int) -> None:
    """Warnings of all libraries; with verbose 2, everything that this project says."""
    handler = RichHandler(show_path=False, console=Console(stderr=True))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for package in ("opensora", "adacache"):
        logging.getLogger(package).setLevel([logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)])


def stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # torchrun passes Ctrl-C on as SIGTERM
    sys.exit(main())
