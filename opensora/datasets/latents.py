"""Clips encoded once, kept as latents: the training data of a small model fits in memory.

A folder of shards `NNNNNN.safetensors`, each with `z` [n, C, t, h, w] in bf16 and the captions in its header.
"""
from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from opensora.registry import DATASETS


def write_shard(folder: Path, number: int, z: Tensor, texts: list[str], made_with: str = "") -> None:
    """Whole or not at all: aside, then renamed.  made_with: what else shards of this folder depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{number:06d}.safetensors"
    save_file({"z": z.to(torch.bfloat16).contiguous()}, file.with_suffix(".part"),
              {"texts": json.dumps(texts), "made_with": made_with})
    os.replace(file.with_suffix(".part"), file)


def check_shards(folder: Path, made_with: str) -> None:
    """Raise ValueError where the folder holds a shard that was made with something else."""
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            before = file.metadata().get("made_with")
        if before not in (None, "", made_with):
            raise ValueError(f"out={str(folder)!r}: {shard.name} was made with {before}, and this run has "
                             f"{made_with}; allowed: another folder, or the same")


@DATASETS.register_module()
class LatentDataset(torch.utils.data.Dataset):
    """Items: `z` [C, t, h, w], bf16, and `text`.  Reads all shards that are there when it is made.

    captions: a regular expression; clips whose caption it does not match from the start are left out.
    Raises FileNotFoundError where there is no shard, ValueError where no caption matches.
    """

    def __init__(self, folder: str, limit: int | None = None, captions: str | None = None) -> None:
        shards = sorted(Path(folder).glob("*.safetensors"))
        if not shards:
            raise FileNotFoundError(f"dataset.folder={folder!r} holds no shards; make them with "
                                    "scripts/cache_latents.py")
        z, texts = [], []
        for shard in shards:
            with safe_open(shard, "pt") as file:
                z.append(file.get_tensor("z"))
                texts += json.loads(file.metadata()["texts"])
        self.z, self.texts = torch.cat(z)[:limit], texts[:limit]
        if captions is not None:
            kept = [i for i, text in enumerate(self.texts) if re.match(captions, text)]
            if not kept:
                raise ValueError(f"dataset.captions={captions!r} matches none; allowed: a start of e.g. "
                                 f"{texts[0]!r}")
            self.z, self.texts = self.z[kept], [self.texts[i] for i in kept]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        return {"z": self.z[index], "text": self.texts[index]}
