"""Encode a data set once: `[torchrun ...] scripts/cache_latents.py CONFIG [--cfg-options key=value ...]`.

Shards that are there already are kept, so it can be stopped and started again; ranks share the work.
Those of another config are refused.
"""
import json
import logging
import sys
import time
from pathlib import Path

import torch
from mmengine.config import Config
from training_main import training_main

from opensora.datasets.latents import check_shards, write_shard
from opensora.parallel import own_device, rank, world_size
from opensora.registry import DATASETS, MODELS, build_module
from opensora.utils.inference_config import DTYPES

KEYS = {"vae", "dataset", "shard_size", "dtype", "out"}


@torch.no_grad()
def encode_shard(vae, dataset, start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
    z, texts = [], []
    for index in range(start, stop):
        item = dataset[index]
        # means, not samples: the diffusion model needs no second noise
        z.append(vae.encode(item["video"][None].to(vae.device, vae.dtype), sample=False)[0].cpu())
        texts.append(item["text"])
    return torch.stack(z), texts


def cache(config: Config) -> None:
    if config.dtype not in DTYPES:
        raise ValueError(f"dtype={config.dtype!r}; allowed: {', '.join(DTYPES)}")
    if not isinstance(config.shard_size, int) or config.shard_size < 1:
        raise ValueError(f"shard_size={config.shard_size!r}; allowed: whole numbers from 1")
    told = {key: value for key, value in config.to_dict().items() if key in KEYS - {"out"}}
    made_with = json.dumps(told, sort_keys=True, default=str)
    check_shards(Path(config.out), made_with)
    vae = build_module(config.vae, MODELS).eval().to(own_device(), DTYPES[config.dtype])
    vae.spatial_vae.module.to(memory_format=torch.channels_last)
    dataset, out = build_module(config.dataset, DATASETS), Path(config.out)
    for number in range(rank(), -(-len(dataset) // config.shard_size), world_size()):
        if (out / f"{number:06d}.safetensors").exists():
            continue
        started = time.perf_counter()
        start = number * config.shard_size
        z, texts = encode_shard(vae, dataset, start, min(start + config.shard_size, len(dataset)))
        write_shard(out, number, z, texts, made_with)
        logging.info("shard %d: %.2f clips per second", number, len(z) / (time.perf_counter() - started))


if __name__ == "__main__":
    sys.exit(training_main(__doc__, lambda config: KEYS, cache))
