"""Videos and images, from and to files.  T frames, H x W pixels, C = 3 channels (RGB)."""
from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image, ImageOps
from torch import Tensor

from opensora.utils.whole_file import whole_file

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
CRF = "18"  # x264's constant rate factor; 18 looks lossless, 23 is its default
# without these flags a picture comes back one level of 255 darker
CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def read_video(path: str | Path) -> tuple[Tensor, float]:
    """All frames of a video, uint8 [T, H, W, 3], and its frames per second.

    Raises FileNotFoundError or ValueError, in one line, for a file that is missing, unreadable or without
    frames.
    """
    _require_file(path, "video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"video {str(path)!r} holds no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            frames = [
                torch.from_numpy(frame.reformat(format="rgb24", interpolation=CONVERSION).to_ndarray())
                for frame in container.decode(stream)
            ]
    except av.FFmpegError as error:
        raise ValueError(f"video {str(path)!r} cannot be read ({error.strerror}); "
                         f"allowed: {', '.join(VIDEO_EXTENSIONS)} files") from error
    if not frames or not rate:
        raise ValueError(f"video {str(path)!r} holds no frames")
    return torch.stack(frames), float(rate)


def read_image(path: str | Path) -> Tensor:
    """An image, uint8 [H, W, 3], turned as its EXIF orientation says; transparency is dropped.

    Raises FileNotFoundError or ValueError, in one line, for a file that is missing or unreadable.
    """
    _require_file(path, "image")
    try:
        with Image.open(path) as image:
            pixels = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's for bad files
        raise ValueError(f"image {str(path)!r} cannot be read ({' '.join(str(error).split())[:120]}); "
                         f"allowed: {', '.join(IMAGE_EXTENSIONS)} files") from error
    return torch.from_numpy(np.array(pixels))


def save_sample(
    x: Tensor,
    save_path: str | Path,
    fps: float = 24,
    value_range: tuple[float, float] = (-1, 1),
    force_video: bool = False,
) -> Path:
    """Save x [3, T, H, W] as SAVE_PATH.mp4, or as SAVE_PATH.png where T = 1; x stays as it is.

    save_path: without suffix; missing folders are made.  value_range: what is black and white in x; values
    outside are clipped.  The mp4 is H.264, yuv420p, with its index in front, so that browsers play it; odd
    sides are made even by repeating the last row or column.  The file appears whole or not at all.
    Returns: the file's path.  Raises ValueError for another shape, NaN or infinite values, or an fps of 0 or
    less.
    """
    if x.ndim != 4 or x.shape[0] != 3 or 0 in x.shape:
        raise ValueError(f"sample has shape {list(x.shape)}; allowed: [3, T, H, W]")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"sample for {str(save_path)!r} has NaN or infinite values; nothing is saved")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"save_fps={fps}; allowed: more than 0")
    still = x.shape[1] == 1 and not force_video
    path = Path(f"{save_path}{'.png' if still else '.mp4'}")
    frames = (_to_uint8(x[:, t], value_range) for t in range(x.shape[1]))
    with whole_file(path) as partial:
        if still:
            Image.fromarray(next(frames)).save(partial, format="PNG")
        else:
            _write_mp4(frames, partial, fps)
    return path


def _to_uint8(frame: Tensor, value_range: tuple[float, float]) -> np.ndarray:
    """[3, H, W] in value_range -> [H, W, 3] in 0..255, rounded."""
    low, high = value_range
    unit = ((frame.detach().float() - low) / (high - low)).clamp(0, 1)
    return (unit * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _write_mp4(frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    stream = None
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        for pixels in frames:
            height, width = pixels.shape[:2]
            # yuv420p halves both sides
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": CRF}
                # untagged, players guess the colours from the height, and guess differently
                context = stream.codec_context
                context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
                context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", interpolation=CONVERSION, dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _require_file(path: str | Path, kind: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{kind} {str(path)!r} does not exist")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{kind} {str(path)!r} is empty")
