"""Train the diffusion model on cached latents: `[torchrun ...] scripts/train.py CONFIG [--cfg-options ...]`.

Resumes where it stopped; writes the averaged weights as transformer/ (and text_encoder/ where that is trained).
"""
import argparse
import logging
from dataclasses import fields
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from rich.logging import RichHandler

import opensora.models.text_encoder.new_t5  # noqa: F401  registers "t5-new"
from opensora.models.stdit.stdit3 import config_of
from opensora.parallel import process_group, rank, world_size
from opensora.registry import DATASETS, MODELS, build_module
from opensora.schedulers.rf.rectified_flow import RectifiedFlow
from opensora.training.diffusion_objective import DiffusionObjective, LatentBatches, Stage
from opensora.training.loop import LoopConfig, TrainingRun
from opensora.utils.config import check_keys, read_config
from opensora.utils.weights import save_weights

KEYS = {"model", "text_encoder", "dataset", "flow", "objective", "stages", "loop", "sizes", "out", "seed"}


def build(config: Config) -> tuple[DiffusionObjective, LatentBatches]:
    torch.manual_seed(config.seed)
    text_encoder = build_module(config.text_encoder, MODELS)
    model = build_module(config.model, MODELS, caption_channels=text_encoder.output_dim,
                         model_max_length=text_encoder.model_max_length).train()
    objective = DiffusionObjective(model, text_encoder, RectifiedFlow(**config.flow), **config.objective)
    stages = [Stage(**stage) for stage in config.stages]
    batches = LatentBatches(build_module(config.dataset, DATASETS), text_encoder, stages, world_size(),
                            **config.sizes, seed=config.seed)
    return objective, batches


def train(config: Config) -> None:
    check_keys(config.loop, [f.name for f in fields(LoopConfig)], "loop")
    objective, batches = build(config)
    loop = LoopConfig(steps=config.stages[-1]["until"], **config.loop)
    run = TrainingRun(objective, objective, batches, loop, config.out)
    averaged = run.run(lambda row: logging.info("  ".join(f"{k} {v:.4g}" for k, v in row.items())))
    if rank() == 0:
        save_weights(averaged.model, Path(config.out) / "transformer", config_of(objective.model))
        if objective.train_text_encoder:
            objective.text.model = averaged.text_model
            objective.text.save_pretrained(Path(config.out) / "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    config = read_config(args.config, args.cfg_options)
    check_keys(config, KEYS, args.config)
    with process_group():
        logging.basicConfig(level=logging.INFO if rank() == 0 else logging.WARNING, format="%(message)s",
                            handlers=[RichHandler(show_path=False)])
        train(config)


if __name__ == "__main__":
    main()
