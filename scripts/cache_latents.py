"""Encode a data set once: `python scripts/cache_latents.py CONFIG [--part 0/2] [--cfg-options ...]`.

Shards that are there already are kept, so it can be stopped and started again; parts run side by side.
"""
import argparse
import logging
import time
from pathlib import Path

import torch
from mmengine.config import DictAction
from rich.logging import RichHandler

from opensora.datasets.latents import write_shard
from opensora.registry import DATASETS, MODELS, build_module
from opensora.utils.config import check_keys, read_config

KEYS = {"vae", "dataset", "shard_size", "dtype", "out"}


@torch.no_grad()
def encode_shard(vae, dataset, start: int, stop: int) -> tuple[torch.Tensor, list[str]]:
    z, texts = [], []
    for index in range(start, stop):
        item = dataset[index]
        # means, not samples: the diffusion model needs no second noise
        z.append(vae.encode(item["video"][None].to(vae.dtype), sample=False)[0])
        texts.append(item["text"])
    return torch.stack(z), texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th shard, from the K-th")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    config = read_config(args.config, args.cfg_options)
    check_keys(config, KEYS, args.config)
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    vae = build_module(config.vae, MODELS).eval().to(dtype)
    vae.spatial_vae.module.to(memory_format=torch.channels_last)
    dataset, out = build_module(config.dataset, DATASETS), Path(config.out)
    part, parts = map(int, args.part.split("/"))
    for number in range(part, -(-len(dataset) // config.shard_size), parts):
        if (out / f"{number:06d}.safetensors").exists():
            continue
        started = time.perf_counter()
        start = number * config.shard_size
        z, texts = encode_shard(vae, dataset, start, min(start + config.shard_size, len(dataset)))
        write_shard(out, number, z, texts)
        logging.info("shard %d: %.2f clips per second", number, len(z) / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
