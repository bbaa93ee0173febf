"""Batches for the autoencoder: random crops of frames and of 17-frame chunks, functions of an index alone."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset


def clips_at(dataset: Dataset, index: int, count: int) -> list[Tensor]:
    """`count` videos [3, T, H, W] of the data set, the next ones at every index."""
    return [dataset[(index * count + i) % len(dataset)]["video"] for i in range(count)]


def random_crop(video: Tensor, size: int | None, tries: int = 3) -> Tensor:
    """[..., H, W] -> [..., size, size]: of `tries` random places the one with most contrast; None: unchanged.

    Plain background is learnt soon; edges are what there is to learn.
    """
    if size is None:
        return video

    if size > min(video.shape[-2:]):
        raise ValueError(f"batch.size={size}; allowed: up to {min(video.shape[-2:])}, a clip's shorter side")

    def crop() -> Tensor:
        top, left = (int(torch.randint(length - size + 1, ())) for length in video.shape[-2:])
        return video[..., top : top + size, left : left + size]

    return max((crop() for _ in range(tries)), key=lambda crop: crop.std().item())


def frame_batch(dataset: Dataset, index: int, clips: int, frames: int, size: int | None) -> Tensor:
    """`frames` random frames of each of `clips` clips.  Returns: [clips * frames, 3, size, size]."""
    chosen = []
    for video in clips_at(dataset, index, clips):
        order = torch.randperm(video.shape[1])[:frames].tolist()
        chosen += [random_crop(video[:, i], size) for i in order]
    return torch.stack(chosen).contiguous(memory_format=torch.channels_last)


def chunk_batch(dataset: Dataset, index: int, clips: int, frames: int, size: int | None) -> Tensor:
    """A random chunk of `frames` frames from each of `clips` clips: [clips, 3, frames, size, size]."""
    chosen = []
    for video in clips_at(dataset, index, clips):
        if frames > video.shape[1]:
            raise ValueError(f"batch.frames={frames}; allowed: up to {video.shape[1]}, the clip's frames")
        start = int(torch.randint(video.shape[1] - frames + 1, ()))
        chosen.append(random_crop(video[:, start : start + frames], size))
    return torch.stack(chosen)
