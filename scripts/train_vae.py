"""Train the autoencoder: `[torchrun ...] scripts/train_vae.py CONFIG [--cfg-options key=value ...]`.

Two stages (2D on frames, temporal on chunks), then shift and scale from the data; resumes where it stopped.
"""
import logging
import sys
from dataclasses import fields
from pathlib import Path

import torch
from training_main import training_main

from opensora.parallel import rank, training_device
from opensora.registry import DATASETS, MODELS, build_module
from opensora.training.crops import chunk_batch, frame_batch
from opensora.training.loop import LoopConfig, TrainingRun
from opensora.training.vae_init import start_as_downscaler, start_temporal
from opensora.training.vae_objective import SpatialObjective, TemporalObjective, fit_shift_and_scale
from opensora.utils.config import check_keys
from opensora.utils.weights import save_weights

KEYS = {"model", "dataset", "stages", "statistics_clips", "out", "seed"}
STAGES = {"spatial": (SpatialObjective, frame_batch), "temporal": (TemporalObjective, chunk_batch)}


def run_stage(vae, dataset: dict, stage: dict, folder: Path) -> None:
    """Train one part.

    stage: kind, batch (clips, frames, size), objective, dataset (what differs from the config's), and the
    loop's settings.
    """
    stage = dict(stage)
    kind, batch, objective = stage.pop("kind"), stage.pop("batch"), stage.pop("objective", {})
    dataset = {**dataset, **stage.pop("dataset", {})}
    if kind not in STAGES:
        raise ValueError(f"stages: kind={kind!r}; allowed: {', '.join(STAGES)}")
    check_keys(stage, [f.name for f in fields(LoopConfig)], f"stages ({kind})")
    make_objective, make_batch = STAGES[kind]
    clips = build_module(dataset, DATASETS)
    if kind == "temporal":
        vae.spatial_vae.requires_grad_(False)
    module = make_objective(vae, **objective)
    run = TrainingRun(module, module, lambda index: make_batch(clips, index, **batch),
                      LoopConfig(**stage), folder)
    averaged = run.run(
        lambda row: logging.info("%s %s", kind, "  ".join(f"{k} {v:.4g}" for k, v in row.items())))
    module.load_state_dict(averaged.state_dict())


def train(config) -> None:
    torch.manual_seed(config.seed)
    vae = build_module(config.model, MODELS)
    if not config.model.get("from_pretrained"):
        start_as_downscaler(vae.spatial_vae.module)
        start_temporal(vae.temporal_vae)
    vae.to(training_device())
    vae.spatial_vae.module.to(memory_format=torch.channels_last)
    vae.temporal_vae.to(memory_format=torch.channels_last_3d)
    out = Path(config.out)
    for number, stage in enumerate(config.stages):
        run_stage(vae, config.dataset, stage, out / f"{number}_{stage['kind']}")
    if rank() == 0:
        vae.eval()
        dataset = build_module(config.dataset, DATASETS)
        fit_shift_and_scale(vae, [dataset[i]["video"][None] for i in range(config.statistics_clips)])
        sizes = {k: config.model[k] for k in ("spatial_config", "temporal_config") if k in config.model}
        save_weights(vae, out / "vae", {"model_type": "OpenSoraVAE_V1_2", **sizes})
        logging.info("wrote %s", out / "vae")


if __name__ == "__main__":
    sys.exit(training_main(__doc__, lambda config: KEYS, train))
