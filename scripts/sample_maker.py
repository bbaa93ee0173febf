"""Make, save and record samples batch by batch; one that fails is named, the others are kept."""
from __future__ import annotations

import logging
import sys
from dataclasses import astuple, dataclass
from functools import partial

from cache_choice import check_cache, open_cache, sampling_record
from exit_status import one_line
from step_bar import StepBar

from adacache import AdaCacheConfig, Ranks
from opensora.parallel import Mesh, rank
from opensora.pipeline import Pipeline, Sample, SamplingContext
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_record import describe, save_with_record
from opensora.utils.sample_request import SampleRequest


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


def make_samples(
    requests: list[SampleRequest], config: InferenceConfig, cache: AdaCacheConfig | None, config_path: str,
    mesh: Mesh,
) -> Tally:
    """Make, save and record samples batch by batch; one that fails is named, the others are kept.

    mesh: ranks that make the same videos; the first of them saves, reports and counts them.
    """
    ranks = Ranks(mesh.video, mesh.cfg)
    opened = partial(open_cache, cache, ranks=ranks)
    pipeline = Pipeline.load(config, partial(check_cache, cache, ranks=ranks), mesh)
    tally = Tally()
    with StepBar(visible=rank() == 0 and config.verbose > 0) as bar:
        for start in range(0, len(requests), config.batch_size):
            batch = requests[start : start + config.batch_size]
            tally += make_batch(pipeline, batch, opened, bar, config_path)
    return tally if mesh.is_first else Tally()


def make_batch(
    pipeline: Pipeline, batch: list[SampleRequest], opened: SamplingContext, bar: StepBar, config_path: str,
) -> Tally:
    config, num_steps = pipeline.config, pipeline.scheduler.num_sampling_steps
    bar.start_batch(batch, config.loop * num_steps)
    try:
        samples = pipeline.generate(batch, opened, bar.step)
    except Exception as error:  # whatever it is, the other videos can still be made
        return report_failures(batch, error, config.verbose)
    tally = Tally()
    if not pipeline.mesh.is_first:
        return tally
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
