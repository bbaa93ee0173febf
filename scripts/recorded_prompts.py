"""Prompts, recorded with every step computed; see adacache.calibrate."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from cache_choice import MIDDLE_PROBE, for_model, open_cache, take_cache_config
from evaluation.metrics import RANGE
from torch import Tensor, nn

from adacache import AdaCacheConfig, FixedSchedule
from adacache.calibrate import growth_of_errors, simulate
from adacache.recording import Recording, recorded
from opensora.parallel import of_all_processes, rank, world_size
from opensora.pipeline import Pipeline
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest, plan_samples

TRIED = 10  # steps at which the growth of errors is measured, denser where they are early
GROWN = 8   # videos on which it is measured

Batches = list[list[SampleRequest]]


def open_pipeline(path: str, options: dict[str, Any] | None,
                  check: Callable[[nn.Module, int], object] = lambda model, num_steps: None,
                  ) -> tuple[Pipeline, AdaCacheConfig]:
    """The models of a config file, and settings with the probes, the metric and the moreg of its adacache;
    what else that says plays no part.

    check: as for `Pipeline.load`.  Raises ValueError for a config of several clips.
    """
    values = read_config(path, options).to_dict()
    cache = take_cache_config(values, None) or AdaCacheConfig(probes=(MIDDLE_PROBE,))
    config = InferenceConfig.from_dict(values, path)
    if config.loop > 1:
        raise ValueError(f"loop={config.loop}; allowed: 1, for a recording is of one clip")
    pipeline = Pipeline.load(config, check)
    kept = AdaCacheConfig(probes=cache.probes, metric=cache.metric, moreg=cache.moreg)
    return pipeline, for_model(kept, pipeline.model)


def in_batches(config: InferenceConfig, prompts: Sequence[str], size: int) -> Batches:
    requests = plan_samples(replace(config, prompt=list(prompts), batch_size=size))
    return [requests[start : start + size] for start in range(0, len(requests), size)]


@dataclass(frozen=True)
class Foretold:
    """By simulation: PSNR in dB and computed steps of each video."""

    psnr: np.ndarray
    computed: np.ndarray


@dataclass(frozen=True)
class RecordedPrompts:
    """growth: of errors, up to the mean squared error of the decoded video, [K]."""

    recording: Recording
    growth: Tensor

    @classmethod
    def of(cls, pipeline: Pipeline, batches: Batches, base: AdaCacheConfig) -> RecordedPrompts:
        """Every process of a torchrun records its own batches.  The growth is measured on the first ones,
        those that hold GROWN videos together."""
        if len(batches) < world_size():
            raise ValueError(f"{len(batches)} batches for {world_size()} processes; allowed: one each, or "
                             "more")
        own, few = batches[rank() :: world_size()], -(-GROWN // (len(batches[0]) * world_size()))
        first, truths = zip(*(record(pipeline, batch, base) for batch in own[:few]), strict=True)
        growth = measured_growth(pipeline, own[:few], Recording.joined(first), torch.cat(truths))
        others = (record(pipeline, batch, base)[0] for batch in own[few:])
        recording = Recording.joined(of_all_processes([*first, *others]))
        return cls(recording, torch.stack(of_all_processes([growth])).log().mean(dim=0).exp())

    def foretold(self, settings: AdaCacheConfig) -> Foretold:
        found = simulate(self.recording, settings)
        psnr = 10 * torch.log10(RANGE**2 / found.squared_error(self.growth).clamp(min=1e-12))
        return Foretold(psnr.numpy(), found.computed.numpy())


def record(pipeline: Pipeline, requests: Sequence[SampleRequest],
           base: AdaCacheConfig) -> tuple[Recording, Tensor]:
    """One batch; its videos [V, 3, T, H, W]."""
    samples = pipeline.generate(requests, lambda model, steps: recorded(model, base, steps))
    recorders = dict.fromkeys(made.runs[0].context for made in samples)  # mostly one
    return (Recording.joined([recorder.recording() for recorder in recorders]),
            torch.stack([made.video for made in samples]))


def measured_growth(pipeline: Pipeline, batches: Batches, recording: Recording, truth: Tensor) -> Tensor:
    steps, final = recording.num_steps, {}
    tried = {max(1, round((steps - 1) * (i / TRIED) ** 2)) for i in range(1, TRIED + 1)}
    for step in sorted(tried):
        kept = FixedSchedule(tuple(s for s in range(steps) if s != step), steps)
        cache = AdaCacheConfig(schedule=kept, forecast=0)
        videos = torch.stack([made.video for batch in batches
                              for made in pipeline.generate(batch, partial(open_cache, cache))])
        final[step] = (videos - truth).square().flatten(1).mean(dim=1)
    return growth_of_errors(recording, final)


def as_options(settings: AdaCacheConfig) -> dict[str, Any]:
    """Found settings as `--adacache FILE` takes them: a schedule, or a codebook, mostly under a guard."""
    options = {"probes": list(settings.probes), "metric": settings.metric, "forecast": settings.forecast}
    if settings.schedule is not None:
        return {**options, "schedule": {
            "num_steps": settings.schedule.num_steps, "forecast": settings.forecast,
            "computed_steps": list(settings.schedule.steps)}}
    codebook = settings.codebook if isinstance(settings.codebook, str) else settings.codebook.entries
    moreg = None if settings.moreg is None else asdict(settings.moreg)
    return {**options, "codebook": codebook, "guard": settings.guard, "moreg": moreg}
