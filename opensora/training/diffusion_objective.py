"""The diffusion model's loss, on cached latents or pixels; the text encoder learns along where it is small.

Legend: B clips, C channels, T latent frames, H x W latent pixels, L caption tokens.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from opensora.models.stdit.stdit3 import STDiT3
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.schedulers.rf.rectified_flow import RectifiedFlow
from opensora.training.frame_mask import MaskGenerator


@dataclass(frozen=True)
class Batch:
    """z [B, C, T, H, W]; captions as ids and mask [B, L]; sizes: fps, height, width, num_frames, each [B]."""

    z: Tensor
    ids: Tensor
    mask: Tensor
    sizes: dict[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        sizes = {k: v.to(device) for k, v in self.sizes.items()}
        return Batch(self.z.to(device), self.ids.to(device), self.mask.to(device), sizes)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Part of a curriculum: up to step `until`, batches of `batch` clips of `latent_frames` frames."""

    until: int
    latent_frames: int
    num_frames: int
    batch: int


def check_stages(stages: Sequence[Stage], latent_frames: int) -> None:
    """Raise ValueError for stages that do not follow one another, or want longer clips than there are."""
    for before, stage in pairwise(stages):
        if stage.until <= before.until:
            raise ValueError(f"stages: until={stage.until} after {before.until}; allowed: more")
    for stage in stages:
        if not 1 <= stage.latent_frames <= latent_frames:
            raise ValueError(f"stages: latent_frames={stage.latent_frames}; allowed: 1 to {latent_frames}, "
                             "as the clips have")
        if stage.batch < 1:
            raise ValueError(f"stages: batch={stage.batch}; allowed: 1 or more")


class LatentBatches:
    """index -> Batch, by the stage that the step is in; clips are shuffled anew in every epoch.

    per_step: batches of a step, over all ranks.  chunk: latent frames that the autoencoder encodes together.
    """

    def __init__(self, dataset: Dataset, text_encoder: T5Encoder, stages: list[Stage], per_step: int,
                 height: int, width: int, fps: float, chunk: int = 5, seed: int = 0) -> None:
        self.chunk = chunk
        self.dataset, self.stages, self.per_step, self.seed = dataset, stages, per_step, seed
        self.pixels = {"height": height, "width": width, "fps": fps}
        check_stages(stages, dataset[0]["z"].shape[1])
        self.ids, self.mask = text_encoder.tokenize([dataset[i]["text"] for i in range(len(dataset))])

    def __call__(self, index: int) -> Batch:
        step = index // self.per_step
        stage = next(s for s in self.stages if step < s.until)
        chosen = self._clips(index, stage.batch)
        z = torch.stack([self._excerpt(self.dataset[i]["z"], stage.latent_frames) for i in chosen]).float()
        sizes = {**self.pixels, "num_frames": stage.num_frames}
        return Batch(z, self.ids[chosen], self.mask[chosen],
                     {k: torch.full((len(z),), float(v)) for k, v in sizes.items()})

    def _excerpt(self, z: Tensor, frames: int) -> Tensor:
        """`frames` latent frames from a random chunk's start, as chunks are encoded apart: [C, T, H, W]."""
        starts = range(0, z.shape[1] - frames + 1, self.chunk)
        return z[:, (start := starts[int(torch.randint(len(starts), ()))]) : start + frames]

    def _clips(self, index: int, count: int) -> list[int]:
        first, clips = index * count, []
        for position in range(first, first + count):
            epoch, offset = divmod(position, len(self.dataset))
            generator = torch.Generator().manual_seed(self.seed + epoch)
            if not clips or offset == 0:
                order = torch.randperm(len(self.dataset), generator=generator)
            clips.append(int(order[offset]))
        return clips


class DiffusionObjective(nn.Module):
    """Velocity error of the transformer.

    train_text_encoder: captions get gradients.  mask_ratios: given clean frames (`MaskGenerator`), in a share
    `mask_share` of the batches.
    """

    def __init__(self, model: STDiT3, text_encoder: T5Encoder, flow: RectifiedFlow,
                 train_text_encoder: bool = False, mask_ratios: dict[str, float] | None = None,
                 mask_share: float = 1.0) -> None:
        super().__init__()
        self.model, self.flow = model, flow
        self.text = text_encoder
        if train_text_encoder:
            self.text_model = text_encoder.model  # registered: trained, averaged and stored with the rest
        self.train_text_encoder = train_text_encoder
        self.mask_share = mask_share
        self.masks = MaskGenerator(mask_ratios) if mask_ratios else None

    def units(self) -> list[nn.Module]:
        """Parts that compute one after another, by which a large model is sharded."""
        return [*self.model.spatial_blocks, *self.model.temporal_blocks]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        batch = batch.to(next(self.model.parameters()).device)
        with torch.set_grad_enabled(self.train_text_encoder):
            y = self.text.embed(batch.ids, batch.mask)[:, None]
        arguments = {"y": y, "mask": batch.mask, **{k: batch.sizes[k] for k in ("fps", "height", "width")}}
        masked = self.masks is not None and batch.z.shape[2] > 1 and torch.rand(()) < self.mask_share
        x_mask = self.masks.get_masks(batch.z) if masked else None
        loss = self.flow.training_losses(self.model, batch.z, arguments, batch.sizes, mask=x_mask)["loss"]
        return {"loss": loss.mean()}
