"""Images and videos that condition a sample.  C channels, T frames, H x W pixels."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from opensora.datasets.video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, read_image, read_video


class Encoder(Protocol):
    device: torch.device
    dtype: torch.dtype

    def encode(self, x: Tensor) -> Tensor: ...


def read_from_path(path: str | Path, image_size: tuple[int, int]) -> Tensor:
    """A reference as the VAE takes it: [3, T, H, W] in [-1, 1]; T = 1 for an image.

    image_size: (height, width); the picture is resized to cover it, then cropped around its centre.  As
    published, images are resized bicubically with antialiasing, videos bilinearly without.
    Raises FileNotFoundError or ValueError, in one line, for a file that is missing, unreadable or of another
    type.
    """
    suffix = Path(path).suffix.lower()
    if suffix in VIDEO_EXTENSIONS:
        frames, _ = read_video(path)
        pixels = torch.stack([_cover_frame(frame, image_size) for frame in frames], dim=1)
    elif suffix in IMAGE_EXTENSIONS:
        pixels = _cover_image(read_image(path), image_size)[:, None]
    else:
        raise ValueError(f"{str(path)!r} has type {suffix!r}; "
                         f"allowed: {' '.join(IMAGE_EXTENSIONS + VIDEO_EXTENSIONS)}")
    return pixels * 2 - 1


def read_references(reference_path: str | None, image_size: tuple[int, int]) -> list[Tensor]:
    """References of one video, "a.png;b.mp4" -> [[3, T, H, W], ...]; none for "" and None."""
    if not reference_path:
        return []
    paths = [path.strip() for path in reference_path.split(";")]
    if not all(paths):
        raise ValueError(f"reference_path={reference_path!r} has an empty name; allowed: FILE;FILE")
    return [_read_named(path, image_size) for path in paths]


@torch.no_grad()
def collect_references_batch(
    reference_paths: Sequence[str | None], vae: Encoder, image_size: tuple[int, int]
) -> list[list[Tensor]]:
    """Latents [C, T, H, W] of the references of each video.  All files are read before any is encoded."""
    pixels = [read_references(path, image_size) for path in reference_paths]
    return [[vae.encode(x[None].to(vae.device, vae.dtype))[0] for x in refs] for refs in pixels]


def _read_named(path: str, image_size: tuple[int, int]) -> Tensor:
    try:
        return read_from_path(path, image_size)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"reference_path: {error}") from error


def covering_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture of `size` scaled so that it just covers `target`."""
    (h, w), (height, width) = size, target
    if height / h > width / w:
        return height, round(w * (height / h))
    return round(h * (width / w)), width


def _cover_image(image: Tensor, target: tuple[int, int]) -> Tensor:
    """uint8 [H, W, 3] -> [3, *target] in [0, 1]."""
    height, width = covering_size(tuple(image.shape[:2]), target)
    resized = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - target[0]) / 2), round((width - target[1]) / 2)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    return pixels[:, top : top + target[0], left : left + target[1]].float() / 255


def _cover_frame(frame: Tensor, target: tuple[int, int]) -> Tensor:
    """uint8 [H, W, 3] -> [3, *target] in [0, 1]."""
    height, width = covering_size(tuple(frame.shape[:2]), target)
    unit = frame.permute(2, 0, 1)[None].float() / 255
    resized = F.interpolate(unit, size=(height, width), mode="bilinear", align_corners=False)[0]
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    return resized[:, top : top + target[0], left : left + target[1]]
