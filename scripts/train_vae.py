"""Train the autoencoder: `[torchrun ...] scripts/train_vae.py CONFIG [--cfg-options key=value ...]`.

Two stages (2D on frames, temporal on chunks), then shift and scale from the data; resumes where it stopped.
"""
from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from training_main import training_main

from opensora.parallel import own_device, rank
from opensora.registry import DATASETS, MODELS, build_module
from opensora.training.crops import chunk_batch, frame_batch
from opensora.training.loop import LoopConfig, TrainingRun
from opensora.training.vae_init import start_as_downscaler, start_temporal
from opensora.training.vae_objective import SpatialObjective, TemporalObjective, fit_shift_and_scale
from opensora.utils.config import check_keys
from opensora.utils.weights import save_weights

KEYS = {"model", "dataset", "stages", "statistics_clips", "out", "seed"}
STAGES = {"spatial": (SpatialObjective, frame_batch), "temporal": (TemporalObjective, chunk_batch)}


@dataclass(frozen=True, kw_only=True)
class VaeStage:
    """kind: of STAGES.  batch: clips, frames, size.  dataset: what differs from the config's."""

    kind: str
    batch: Mapping[str, Any]
    loop: LoopConfig
    objective: Mapping[str, Any]
    dataset: Mapping[str, Any]

    @classmethod
    def read(cls, values: Mapping[str, Any], seed: int) -> VaeStage:
        """values: its parts, and the loop's settings.  Raises ValueError or TypeError."""
        values, own = {"seed": seed, "objective": {}, "dataset": {}, **values}, {}
        for name in ("kind", "batch", "objective", "dataset"):
            if name not in values:
                raise ValueError(f"stages: {name} is missing; allowed: stages with kind and batch")
            own[name] = values.pop(name)
        if own["kind"] not in STAGES:
            raise ValueError(f"stages: kind={own['kind']!r}; allowed: {', '.join(STAGES)}")
        check_keys(values, [f.name for f in fields(LoopConfig)], f"stages ({own['kind']})")
        return cls(loop=LoopConfig(**values), **own)


def run_stage(vae, dataset: Mapping[str, Any], stage: VaeStage, folder: Path) -> None:
    """Train one part."""
    make_objective, make_batch = STAGES[stage.kind]
    clips = build_module({**dataset, **stage.dataset}, DATASETS)
    if stage.kind == "temporal":
        vae.spatial_vae.requires_grad_(False)
    module = make_objective(vae, **stage.objective)
    run = TrainingRun(module, module, lambda index: make_batch(clips, index, **stage.batch), stage.loop,
                      folder)
    averaged = run.run(
        lambda row: logging.info("%s %s", stage.kind, "  ".join(f"{k} {v:.4g}" for k, v in row.items())))
    module.load_state_dict(averaged.state_dict())


def train(config) -> None:
    # everything that a stage or the end would refuse, before the first one has run for hours
    stages = [VaeStage.read(stage, config.seed + number) for number, stage in enumerate(config.stages)]
    dataset, clips = build_module(config.dataset, DATASETS), config.statistics_clips
    if not 1 <= clips <= len(dataset):
        raise ValueError(f"statistics_clips={clips}; allowed: 1 to {len(dataset)}, as the data set has")
    torch.manual_seed(config.seed)
    vae = build_module(config.model, MODELS)
    if not config.model.get("from_pretrained"):
        start_as_downscaler(vae.spatial_vae.module)
        start_temporal(vae.temporal_vae)
    vae.to(own_device())
    vae.spatial_vae.module.to(memory_format=torch.channels_last)
    vae.temporal_vae.to(memory_format=torch.channels_last_3d)
    out = Path(config.out)
    for number, stage in enumerate(stages):
        run_stage(vae, config.dataset, stage, out / f"{number}_{stage.kind}")
    if rank() == 0:
        vae.eval()
        fit_shift_and_scale(vae, [dataset[i]["video"][None] for i in range(clips)])
        sizes = {k: config.model[k] for k in ("spatial_config", "temporal_config") if k in config.model}
        save_weights(vae, out / "vae", {"model_type": "OpenSoraVAE_V1_2", **sizes})
        logging.info("wrote %s", out / "vae")


if __name__ == "__main__":
    sys.exit(training_main(__doc__, lambda config: KEYS, train))
