"""Make, save and record samples batch by batch; one that fails is named, the others are kept."""
from __future__ import annotations

import gc
import traceback
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cache_choice import check_cache, open_cache, sampling_record
from run_report import RunReport
from step_bar import StepBar
from tally import Tally
from torch import nn

from adacache import AdaCacheConfig, Ranks
from opensora.parallel import Mesh, collectives, meet, rank
from opensora.pipeline import Pipeline, Sample, SamplingContext
from opensora.regrouping import Regrouping
from opensora.roll_call import RankLost
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_record import describe, save_with_record
from opensora.utils.sample_request import SampleRequest


def make_samples(
    requests: list[SampleRequest], config: InferenceConfig, cache: AdaCacheConfig | None, config_path: str,
    report: RunReport, mesh: Mesh,
) -> None:
    """Make, save and record samples batch by batch; what fails goes to the report.

    mesh: ranks that make the same videos; the first of them saves, reports and counts them.
    Raises RankLost where another process of the run is lost.
    """
    def opened(model: nn.Module, num_steps: int) -> AbstractContextManager[Any]:
        return open_cache(cache, model, num_steps, ranks=sharing(mesh))

    pipeline = Pipeline.load(config, partial(check_cache, cache, ranks=sharing(mesh)), mesh)
    regrouping = Regrouping(mesh, report.roll_call, collectives)
    with StepBar(visible=rank() == 0 and config.verbose > 0) as bar:
        for start in range(0, len(requests), config.batch_size):
            batch = requests[start : start + config.batch_size]
            make_batch(pipeline, batch, opened, bar, config_path, report, regrouping)


def sharing(mesh: Mesh) -> Ranks:
    """For one run: the mesh has other groups after a failure."""
    return Ranks(mesh.video, mesh.cfg, collectives.one)


def make_batch(
    pipeline: Pipeline, batch: list[SampleRequest], opened: SamplingContext, bar: StepBar, config_path: str,
    report: RunReport, regrouping: Regrouping,
) -> None:
    """A batch that fails, for want of memory or for what one of its samples holds, is made one by one.

    Raises RankLost where another process of the run is lost.
    """
    mesh = pipeline.mesh

    def step(number: int, steps: int, session: Any) -> None:
        bar.step(number, steps, session)
        report.roll_call.check()

    config, num_steps = pipeline.config, pipeline.scheduler.num_sampling_steps
    bar.start_batch(batch, config.loop * num_steps, report.progress() if report.planned > 1 else "")
    try:
        with report.failures.standing(batch):  # on every rank, for any of them may be killed
            samples = pipeline.generate(batch, opened, step)
        meet(mesh.video, pipeline.device)  # or one could be at the next when another fails
    except RankLost:
        raise
    except Exception as error:  # whatever it is, the other videos can still be made
        samples = None
        give_up(batch, error, report, regrouping)
    if samples is None:
        for request in batch if len(batch) > 1 else []:
            make_batch(pipeline, [request], opened, bar, config_path, report, regrouping)
        return
    for request, sample in zip(batch, samples, strict=True) if mesh.is_first else ():
        try:
            report.made(*save(sample, request, config, config_path, num_steps))
        except Exception as error:
            report.failed(request, report.cause_of([request], error))
    report.catch_up()


def give_up(batch: list[SampleRequest], error: Exception, report: RunReport, regrouping: Regrouping) -> None:
    """On all ranks of the batch, after this one failed at it or because another did.

    Raises RankLost where they cannot go on together.
    """
    cause = report.cause_of(batch, error)
    free_memory(error)
    try:
        with report.failures.standing(batch):
            cause = regrouping.first_cause(cause)
            regrouping.after(", ".join(request.file.name for request in batch))
    except RankLost:
        for request in batch:
            report.failed(request, cause)
        report.failures.merge()  # rank 0 may not come to it
        raise
    if not regrouping.mesh.is_first:
        return
    if len(batch) > 1:
        report.split(batch, cause)
    else:
        report.failed(batch[0], cause)


def free_memory(error: BaseException | None) -> None:
    """Of what led to an error: tensors, and the hold on process groups."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def save(
    sample: Sample, request: SampleRequest, config: InferenceConfig, config_path: str, num_steps: int
) -> tuple[Path, Sample, Tally]:
    sampling = sampling_record([(run.context, run.row) for run in sample.runs], num_steps)
    record = describe(sample, request, config, config_path, sampling)
    file = save_with_record(sample, request, config.file_fps, record)
    computed = sum(len(clip["computed_steps"]) for clip in sampling.get("clips", [sampling]))
    return file, sample, Tally(videos=1, denoise_seconds=sample.seconds["denoise"], computed=computed,
                               steps=num_steps * len(sample.runs))
