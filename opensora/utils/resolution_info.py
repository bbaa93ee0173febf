"""Size, length and frame rate as the tensors that a transformer is conditioned on."""
from __future__ import annotations

import torch
from torch import Tensor

IMG_FPS = 120  # frame rate that stands for "a single image" (published)
INFO_TYPES = (None, "PixArtMS", "STDiT2", "OpenSora")


def prepare_multi_resolution_info(
    info_type: str | None,
    batch_size: int,
    image_size: tuple[int, int],
    num_frames: int,
    fps: float,
    device: str | torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Size arguments of the model's forward, one row per video.

    info_type: config key `multi_resolution`.  image_size: (height, width) in pixels.  ar: height / width.
    Returns: {} for None; ar [B, 1] and hw [B, 2] for PixArtMS; height, width, num_frames, ar, fps, each [B],
    for STDiT2 and OpenSora.  ValueError for another info_type.
    """
    if info_type not in INFO_TYPES:
        raise ValueError(f"multi_resolution={info_type!r}; allowed: {', '.join(map(str, INFO_TYPES))}")
    if info_type is None:
        return {}
    height, width = image_size
    if info_type == "PixArtMS":
        values = {"ar": [height / width], "hw": [height, width]}
    else:
        values = {"height": height, "width": width, "num_frames": num_frames, "ar": height / width,
                  "fps": fps if num_frames > 1 else IMG_FPS}
    rows = {name: [value] * batch_size for name, value in values.items()}
    return {name: torch.tensor(value, device=device, dtype=dtype) for name, value in rows.items()}
