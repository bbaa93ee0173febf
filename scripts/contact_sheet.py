"""Clips as rows of frames in one picture, to look at many at once."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

FRAMES = 6  # of each clip, evenly spread
TEXT_HEIGHT = 14


def uint8_frames(video: Tensor) -> np.ndarray:
    """[3, T, H, W] in [-1, 1] -> uint8 [T, H, W, 3]."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def save_sheet(path: Path, clips: Sequence[np.ndarray], captions: Sequence[str], columns: int = 2) -> None:
    """clips: uint8 [T, H, W, 3], all of one size.  `columns` clips side by side, each under its caption."""
    _, height, width, _ = clips[0].shape
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * (FRAMES * width + 8), rows * (height + TEXT_HEIGHT + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        left, top = i % columns * (FRAMES * width + 8), i // columns * (height + TEXT_HEIGHT + 4)
        draw.text((left, top), caption, fill="black")
        for k, t in enumerate(np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)):
            sheet.paste(Image.fromarray(clip[t]), (left + k * width, top + TEXT_HEIGHT))
    sheet.save(path)
