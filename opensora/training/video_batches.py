"""Captioned videos from a CSV as training batches: buckets of equal size, encoded as they come.

Legend: B clips, C channels, T frames, t latent frames, H x W pixels, h x w latent pixels, L caption tokens.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from opensora.datasets.bucket import VariableVideoBatchSampler
from opensora.datasets.video_csv import VariableVideoTextDataset
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.models.vae.vae import OpenSoraVAE
from opensora.training.diffusion_objective import Batch


class VideoBatches:
    """index -> Batch; a step has one bucket, and each of its `per_step` batches has other videos of it.

    bucket_config: as in `opensora.datasets.bucket`.  per_step: batches of a step, over all ranks.  shares:
    which of them this rank asks for.  workers: processes that read videos ahead, for each share.
    The videos of a batch depend on `seed` and its index alone, so that a resumed run sees the same.
    """

    def __init__(self, dataset: VariableVideoTextDataset,
                 bucket_config: Mapping[str, Mapping[int, Sequence[Any]]],
                 vae: OpenSoraVAE, text_encoder: T5Encoder, per_step: int, shares: Iterable[int],
                 workers: int = 0, seed: int = 0) -> None:
        self.vae, self.text_encoder, self.per_step = vae, text_encoder, per_step
        self.shares = {
            share: Share(dataset, VariableVideoBatchSampler(
                dataset, bucket_config, num_replicas=per_step, rank=share, seed=seed), workers)
            for share in shares
        }

    def __call__(self, index: int) -> Batch:
        step, share = divmod(index, self.per_step)
        items = self.shares[share](step)
        ids, mask = self.text_encoder.tokenize(items["text"])
        sizes = {k: items[k].float() for k in ("fps", "height", "width", "num_frames")}
        return Batch(self.encode(items["video"]), ids, mask, sizes)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:  # [B, 3, T, H, W] -> [B, C, t, h, w], fp32
        with torch.autocast(self.vae.device.type, enabled=False):
            return self.vae.encode(video.to(self.vae.device, self.vae.dtype)).float()


class Share:
    """step -> videos and texts of one of the step's batches."""

    def __init__(self, dataset: VariableVideoTextDataset, sampler: VariableVideoBatchSampler,
                 workers: int) -> None:
        self.sampler = sampler
        # its own generator: the loader's draws leave the training's alone; workers end with an epoch
        self.loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers,
                                 collate_fn=default_collate, generator=torch.Generator())
        self.next_step: int | None = None

    def __call__(self, step: int) -> dict[str, Any]:
        if step != self.next_step:
            self.sampler.seek(step)
            self.stream = self._stream()
        self.next_step = step + 1
        return next(self.stream)

    def _stream(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.loader
            self.sampler.set_epoch(self.sampler.epoch + 1)
