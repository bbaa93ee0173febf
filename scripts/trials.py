"""Settings tried on prompts: PSNR against the uncached videos, speed against uncached runs in turn."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from evaluation.metrics import interval, interval_of_median, psnr

from adacache import Signature
from opensora.parallel import of_all_processes, rank, world_size
from opensora.pipeline import Pipeline, SamplingContext
from opensora.utils.sample_request import SampleRequest
from opensora.utils.stopwatch import Stopwatch


@dataclass(frozen=True)
class Outcome:
    """psnr, computed: of each video, in dB and steps.  speed_ups: of denoising, of each batch.
    signature: of the runs, where what was tried tells it."""

    psnr: np.ndarray
    computed: np.ndarray
    speed_ups: np.ndarray
    signature: Signature | None = None

    @property
    def speed_up(self) -> float:
        """Median over the batches."""
        return float(np.median(self.speed_ups))

    def __str__(self) -> str:
        quality = f"{self.psnr.mean():.1f} ± {interval(self.psnr):.1f} dB"
        return f"{self.computed.mean():.1f} computed: {quality}, {self.speed_up:.2f} times as fast"

    def to_json(self) -> dict[str, float]:
        found = {"psnr": self.psnr.mean(), "psnr_interval": interval(self.psnr),
                 "computed_steps": self.computed.mean(), "speed_up": self.speed_up,
                 "speed_up_interval": interval_of_median(self.speed_ups)}
        return {name: round(float(value), 3) for name, value in found.items()}


class Trials:
    """Batches of prompts; every process of a torchrun has its own of them."""

    def __init__(self, pipeline: Pipeline, batches: Sequence[Sequence[SampleRequest]]) -> None:
        self.pipeline, self.own = pipeline, batches[rank() :: world_size()]

    @cached_property
    def truth(self) -> list[list[np.ndarray]]:
        """The uncached videos of each batch, made once."""
        return [[pixels_of(made.video) for made in self.pipeline.generate(batch)] for batch in self.own]

    def of(self, opened: SamplingContext) -> Outcome:
        """opened: what is tried."""
        quality, computed, ratios, signatures = [], [], [], []
        for batch, truth in zip(self.own, self.truth, strict=True):
            uncached, _ = self.denoised(batch, lambda model, steps: nullcontext())
            samples = self.pipeline.generate(batch, opened)
            runs = [made.runs[0] for made in samples]  # of which videos with joining frames have one each
            ratios.append(uncached / (samples[0].seconds["denoise"] * len(batch)))
            quality += [psnr(wanted, pixels_of(made.video))
                        for wanted, made in zip(truth, samples, strict=True)]
            computed += [len(run.context.trace.of_video(run.row).computed_steps) for run in runs]
            signatures.append(runs[0].context.trace.signature)
        quality, computed, ratios, signatures = map(
            of_all_processes, (quality, computed, ratios, signatures))
        return Outcome(np.array(quality), np.array(computed), np.array(ratios), signatures[0])

    def denoised(self, batch: Sequence[SampleRequest], opened: SamplingContext) -> tuple[float, Any]:
        """Seconds of denoising, as `Pipeline.generate` takes them, and what was opened; without decoding."""
        pipeline, watch = self.pipeline, Stopwatch(self.pipeline.device)
        given = pipeline.first_clip(batch)
        with pipeline.in_use(pipeline.model), watch("denoise"):
            _, runs = pipeline.denoise(*given, batch, 0, opened, lambda step, steps, context: None)
        return watch.seconds["denoise"], runs[0].context


def pixels_of(video: Any) -> np.ndarray:
    return video.clamp(-1, 1).numpy()


def say(line: str) -> None:
    """Once, however many processes there are."""
    if rank() == 0:
        print(line, flush=True)
