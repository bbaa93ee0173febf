"""The runs themselves: batch by batch the reference, then every method of which something is missing."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from adacache import FixedSchedule
from evaluation.made import Made
from evaluation.methods import Method
from evaluation.metrics import measured
from evaluation.plan import Plan
from evaluation.records import Records, missing_methods
from opensora.pipeline import Pipeline, Sample, SamplingContext
from opensora.utils.sample_request import SampleRequest

logger = logging.getLogger("opensora")

# torch's counter knows the attention kernels of GPUs only
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
                 lambda q, k, v, *more, out_shape=None, **options: sdpa_flop_count(q, k, v)}

class Sampling:
    """Makes what `records` lacks.  Of each batch the reference comes first, then the methods, starting with
    another one each time, so that a machine that slows down does so for all.

    failed: videos that are not finite, so far.
    """

    def __init__(self, plan: Plan, pipeline: Pipeline, records: Records) -> None:
        self.plan, self.pipeline, self.records, self.failed = plan, pipeline, records, 0
        self.reference = Method(name="reference", steps=plan.steps)

    def warm_up(self, batch: Sequence[SampleRequest]) -> None:
        """So that the first timed run is like the others."""
        self.pipeline.scheduler.num_sampling_steps = 2
        self.pipeline.generate(batch)

    def make(self, number: int, batch: Sequence[SampleRequest]) -> None:
        """All that is missing of one batch.  number: of the batch."""
        methods = missing_methods(self.records, self.plan.methods.values(), batch)
        if not methods:
            return
        counts = self.plan.counts_flops(batch)
        reference = self.generate(self.reference, batch, counts)
        first = number % len(methods)
        steps: dict[str, Sequence[Sequence[int]]] = {}  # of methods that others may replay
        for method in in_turn(methods, first):
            if method.is_reference(self.plan.steps):
                videos = reference
            else:
                videos = self.generate(method, batch, counts, self.schedules(method, batch, steps))
            steps[method.name] = [made.computed_steps for made in videos]
            for request, made, all_steps in zip(batch, videos, reference, strict=True):
                if made.video.isfinite().all() and all_steps.video.isfinite().all():
                    self.records.write(method, request, made, measured(made, all_steps, self.records.metrics))
                else:  # the others can still be made
                    self.failed += 1
                    logger.error("failed: %s, %r: the video, or the uncached one, is not finite",
                                 method.name, request.prompt)

    def schedules(self, method: Method, batch: Sequence[SampleRequest],
                  steps: Mapping[str, Sequence[Sequence[int]]]) -> FixedSchedule | None:
        """Those of the method that it replays, video by video."""
        if method.replay is None:
            return None
        replayed = self.plan.methods[method.replay]
        if replayed.name in steps:
            lists = steps[replayed.name]
        else:
            records = [self.records.find(replayed, request) for request in batch]
            lists = [record["computed_steps"] for record in records]
        forecast = replayed.cache.resolved().forecast if replayed.cache else 0
        return FixedSchedule(tuple(map(tuple, lists)), method.steps, forecast=forecast)

    def generate(self, method: Method, batch: Sequence[SampleRequest], counts: bool = False,
                 schedules: FixedSchedule | None = None) -> list[Made]:
        """One batch.  counts: run it once more, and count the operations of denoising."""
        self.pipeline.scheduler.num_sampling_steps = method.steps
        opened = partial(method.opened, schedules=schedules)
        device = self.pipeline.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        samples = self.pipeline.generate(batch, opened)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        flops = counted_flops(self.pipeline, batch, opened) if counts else None
        sessions = [sample.runs[0].context for sample in samples]
        return [made_of(sample, request.prompt, method.steps, sessions.count(session), peak,
                        flops and flops / len(batch))
                for sample, request, session in zip(samples, batch, sessions, strict=True)]


def in_turn(methods: Sequence[Method], first: int) -> list[Method]:
    """Starting with the `first` one; those that replay another after it."""
    turned = [*methods[first:], *methods[:first]]
    return [m for m in turned if m.replay is None] + [m for m in methods if m.replay is not None]


def counted_flops(pipeline: Pipeline, batch: Sequence[SampleRequest], opened: SamplingContext) -> int:
    """Of denoising one batch once more, by torch's counter, which counts what is dispatched."""
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)

    @contextmanager
    def counting(model: nn.Module, num_steps: int) -> Any:
        with opened(model, num_steps) as session, counter:
            yield session

    pipeline.generate(batch, counting)
    return counter.get_total_flops()


def made_of(sample: Sample, prompt: str, steps: int, together: int, peak: int | None,
            flops: float | None) -> Made:
    """together: videos of one session, which share what it held.  flops: of this one."""
    (run,) = sample.runs
    session = run.context
    computed = tuple(range(steps)) if session is None else session.trace.of_video(run.row).computed_steps
    return Made(
        prompt, sample.video, sample.seconds, steps, tuple(computed), tuple(getattr(session, "partly", ())),
        0 if session is None else session.cache_bytes / together, peak, flops)
