"""Train the diffusion model: `[torchrun ...] scripts/train.py CONFIG [--cfg-options key=value ...]`.

A config with a `vae` trains on captioned videos from a CSV, in buckets; one without, on cached latents.
Resumes where it stopped; writes the averaged weights as transformer/ (and text_encoder/ where that is
trained).
"""
import logging
import sys
from dataclasses import fields
from pathlib import Path

import torch
from mmengine.config import Config
from training_main import training_main

import opensora.models.text_encoder.new_t5  # noqa: F401  registers "t5-new"
from opensora.models.stdit.stdit3 import config_of
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.parallel import own_device, rank, world_size
from opensora.registry import DATASETS, MODELS, build_module
from opensora.schedulers.rf.rectified_flow import RectifiedFlow
from opensora.training.diffusion_objective import DiffusionObjective, LatentBatches, Stage
from opensora.training.loop import LoopConfig, TrainingRun, batches_per_step
from opensora.training.video_batches import VideoBatches
from opensora.utils.config import check_keys
from opensora.utils.weights import save_weights

KEYS = {"model", "text_encoder", "dataset", "flow", "objective", "loop", "out", "seed"}
LATENT_KEYS, VIDEO_KEYS = {"stages", "sizes"}, {"vae", "bucket_config", "workers"}


def build_batches(
    config: Config, text_encoder: T5Encoder, device: torch.device, per_step: int
) -> LatentBatches | VideoBatches:
    """per_step: batches of a step, over all ranks."""
    dataset = build_module(config.dataset, DATASETS)
    if "vae" not in config:
        stages = [Stage(**stage) for stage in config.stages]
        return LatentBatches(dataset, text_encoder, stages, per_step, **config.sizes, seed=config.seed)
    vae = build_module(config.vae, MODELS).to(device, torch.bfloat16).eval().requires_grad_(False)
    return VideoBatches(dataset, config.bucket_config, vae, text_encoder, per_step,
                        range(rank(), per_step, world_size()), config.workers, config.seed)


def train(config: Config) -> None:
    check_keys(config.loop, [f.name for f in fields(LoopConfig)], "loop")
    steps = {} if "vae" in config else {"steps": config.stages[-1]["until"]}
    if steps and "steps" in config.loop:
        raise ValueError("loop.steps beside stages; allowed: the last stage's until")
    loop, device = LoopConfig(**{"seed": config.seed, **steps, **config.loop}), own_device()
    torch.manual_seed(config.seed)
    text_encoder = build_module(config.text_encoder, MODELS, device=device)
    model = build_module(config.model, MODELS, caption_channels=text_encoder.output_dim,
                         model_max_length=text_encoder.model_max_length).to(device).train()
    objective = DiffusionObjective(model, text_encoder, RectifiedFlow(**config.flow), **config.objective)
    batches = build_batches(config, text_encoder, device, batches_per_step(loop, config.out))
    run = TrainingRun(objective, objective, batches, loop, config.out)
    averaged = run.run(lambda row: logging.info("  ".join(f"{k} {v:.4g}" for k, v in row.items())))
    if rank() == 0:
        save_weights(averaged.model, Path(config.out) / "transformer", config_of(objective.model))
        if objective.train_text_encoder:
            objective.text.model = averaged.text_model
            objective.text.save_pretrained(Path(config.out) / "text_encoder")


def keys(config: Config) -> set[str]:
    return KEYS | (VIDEO_KEYS if "vae" in config else LATENT_KEYS)


if __name__ == "__main__":
    sys.exit(training_main(__doc__, keys, train))
