"""Captioned videos and images listed in a CSV file, as training examples.

Columns: `path` and `text`; `num_frames`, `height`, `width` for the bucketed dataset; `aes`, `flow`, `cmotion`
end up in the caption. Others (`aspect_ratio`, `resolution`, `fps`, ...) are allowed and not read: they follow
from the file. Relative paths start at the CSV's folder or, as in Open-Sora, the working folder.
Legend: T frames, H x W pixels.
"""
from __future__ import annotations

import csv
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from opensora.datasets.clip_reader import read_clip
from opensora.datasets.references import covering_size
from opensora.datasets.video_io import IMAGE_EXTENSIONS, read_image
from opensora.registry import DATASETS
from opensora.utils.prompts import append_score_to_prompts

logger = logging.getLogger(__name__)
IMAGE_FPS = 120.0  # what Open-Sora v1.2 tells the model for an image
TRANSFORMS = ("center", "resize_crop")
COLUMNS = ("path", "text")
SIZE_COLUMNS = ("num_frames", "height", "width")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the CSV: where it stands, the file, the caption with scores, (num_frames, height, width)."""

    line: int
    path: str
    text: str
    size: tuple[int, int, int] | None


@DATASETS.register_module("VideoTextDataset")
class VideoTextDataset(Dataset):
    """Clips of one size: `num_frames` frames, `frame_interval` apart in the file, scaled to `image_size`.

    Items: video float [3, T, H, W] in [-1, 1], text, num_frames, height, width, ar (height / width), fps (of
    the clip; 120 for images, which are videos of one frame).
    Where a clip starts in its video is a function of (seed, epoch, index) alone: a resumed run sees the same.

    image_size: (height, width).  transform_name: "center" (square sizes only) or "resize_crop"; both scale
    the video until it just covers `image_size` and cut out the middle.
    Raises ValueError for a bad argument, CSV or file, FileNotFoundError for a missing file; in one line, with
    the CSV's line and the path where it is about those.
    """

    def __init__(self, data_path: str | Path, num_frames: int = 16, frame_interval: int = 1,
                 image_size: tuple[int, int] = (256, 256), transform_name: str = "center",
                 seed: int = 0) -> None:
        _check_positive("num_frames", num_frames)
        _check_positive("image_size", *image_size)
        if transform_name == "center" and image_size[0] != image_size[1]:
            raise ValueError(f"image_size={tuple(image_size)!r}; allowed with transform_name='center': a "
                             "square (transform_name='resize_crop' takes any)")
        self._setup(data_path, COLUMNS, frame_interval, transform_name, seed)
        self.num_frames, self.image_size = num_frames, tuple(image_size)

    def _setup(self, data_path: str | Path, columns: tuple[str, ...], frame_interval: int,
               transform_name: str, seed: int) -> None:
        _check_positive("frame_interval", frame_interval)
        if transform_name not in TRANSFORMS:
            raise ValueError(f"transform_name={transform_name!r}; allowed: {', '.join(TRANSFORMS)}")
        self.data_path, self.frame_interval, self.seed = Path(data_path), frame_interval, seed
        self.rows = read_rows(self.data_path, columns)
        # in shared memory: workers that outlive an epoch must see the next one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose temporal crops the items show."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(index, self.num_frames, *self.image_size)

    def _item(self, index: int, num_frames: int, height: int, width: int) -> dict[str, Any]:
        row = self.rows[index]
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        try:
            frames, fps = _read(row.path, num_frames, self.frame_interval, rng)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.data_path} line {row.line}: no file {row.path!r}") from None
        except (av.FFmpegError, OSError, ValueError) as error:
            place, reason = f"{self.data_path} line {row.line}", " ".join(str(error).split())
            raise ValueError(f"{place}: cannot use {row.path!r}: {reason}") from error
        return {"video": cover_and_crop(frames, height, width), "text": row.text, "num_frames": num_frames,
                "height": height, "width": width, "ar": height / width, "fps": fps}


@DATASETS.register_module("VariableVideoTextDataset")
class VariableVideoTextDataset(VideoTextDataset):
    """Clips of many sizes: sampled by `(id, num_frames, height, width)` or `"id-num_frames-height-width"`.

    Such indices come from `opensora.datasets.bucket.VariableVideoBatchSampler`, which reads `sizes` and
    `frame_interval`. Items and errors as in `VideoTextDataset`.
    substitute: instead of an error, warn of a file that cannot be used and take the next one that can.
    """

    def __init__(self, data_path: str | Path, frame_interval: int = 1, transform_name: str = "resize_crop",
                 seed: int = 0, substitute: bool = False) -> None:
        if transform_name == "center":
            raise ValueError("transform_name='center'; allowed with buckets of any ratio: resize_crop")
        self._setup(data_path, COLUMNS + SIZE_COLUMNS, frame_interval, transform_name, seed)
        self.substitute = substitute

    @property
    def sizes(self) -> np.ndarray:
        """int64 [N, 3]: num_frames, height, width of every file, as the CSV says."""
        return np.array([row.size for row in self.rows], dtype=np.int64)

    def __getitem__(self, index: str | tuple[int, int, int, int]) -> dict[str, Any]:
        first, *size = parse_index(index)
        if not self.substitute:
            return self._item(first, *size)
        *others, last = ((first + further) % len(self) for further in range(len(self)))
        for row in others:
            try:
                return self._item(row, *size)
            except ValueError as error:
                logger.warning("%s; the next file is taken", error)
        return self._item(last, *size)


def parse_index(index: str | tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """`"7-51-480-854"` or `(7, 51, 480, 854)` -> id, num_frames, height, width."""
    parts = index.split("-") if isinstance(index, str) else index
    try:
        row, num_frames, height, width = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"index={index!r}; allowed: (id, num_frames, height, width), as a bucket sampler "
                         "gives") from None
    return row, num_frames, height, width


def cover_and_crop(frames: Tensor, height: int, width: int) -> Tensor:
    """Scale frames, aspect kept, until they just cover height x width, and cut out the middle.

    frames: uint8 [T, H, W, 3].  Returns: float [3, T, height, width] in [-1, 1].
    """
    covering = covering_size(tuple(frames.shape[1:3]), (height, width))
    x = frames.permute(0, 3, 1, 2)
    if covering != frames.shape[1:3]:
        x = F.interpolate(x, size=covering, mode="bilinear", antialias=True)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    x = x[:, :, top : top + height, left : left + width]
    return x.permute(1, 0, 2, 3).float().div_(127.5).sub_(1).contiguous()


def _read(path: str, num_frames: int, frame_interval: int, rng: np.random.Generator) -> tuple[Tensor, float]:
    """A clip from somewhere in a video, or an image: uint8 [num_frames, H, W, 3], and its frame rate."""
    def pick(available: int) -> range:
        span = (num_frames - 1) * frame_interval + 1
        if available < span:
            raise ValueError(f"it has {available} of the {span} frames that num_frames={num_frames} with "
                             f"frame_interval={frame_interval} takes")
        begin = int(rng.integers(available - span + 1))
        return range(begin, begin + span, frame_interval)

    if path.lower().endswith(IMAGE_EXTENSIONS):
        pick(1)
        return read_image(path)[None], IMAGE_FPS
    frames, fps = read_clip(path, pick)
    return frames, fps / frame_interval


def read_rows(data_path: Path, columns: tuple[str, ...]) -> list[Row]:
    """The rows of a CSV that must have `columns`; every file they name must exist."""
    if not data_path.is_file():
        raise FileNotFoundError(f"data_path={str(data_path)!r} does not exist; allowed: a CSV with columns "
                                f"{', '.join(columns)}")
    try:
        with data_path.open(newline="", encoding="utf-8-sig") as file:
            rows = _parse(file, data_path, columns)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data_path={str(data_path)!r} is no readable CSV ({error}); allowed: UTF-8 text "
                         f"with columns {', '.join(columns)}") from error
    missing = [row for row in rows if not os.path.isfile(row.path)]
    if missing:
        others = f" (and {len(missing) - 1} more files are missing)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{data_path} line {missing[0].line}: no file {missing[0].path!r}{others}")
    return rows


def _parse(file: Any, data_path: Path, columns: tuple[str, ...]) -> list[Row]:
    reader = csv.DictReader(file)
    present = reader.fieldnames or []
    absent = [column for column in columns if column not in present]
    if absent:
        raise ValueError(f"data_path={str(data_path)!r} has columns {', '.join(present) or 'none'}; "
                         f"missing: {', '.join(absent)}")
    rows, line = [], reader.line_num + 1
    for record in reader:
        try:
            rows.append(_row(record, line, data_path.parent, sized="num_frames" in columns))
        except ValueError as error:
            raise ValueError(f"{data_path} line {line}: {error}") from None
        line = reader.line_num + 1  # a quoted caption may span lines: a row is named by its first one
    if not rows:
        raise ValueError(f"data_path={str(data_path)!r} has no rows; allowed: one or more")
    return rows


def _row(record: dict[str | None, Any], line: int, folder: Path, sized: bool) -> Row:
    if None in record or None in record.values():
        raise ValueError("the number of cells differs from the header's (quote captions that contain commas)")
    if not record["path"]:
        raise ValueError("path=''; allowed: a video or image file")
    size = tuple(_size(record, column) for column in SIZE_COLUMNS) if sized else None
    return Row(line, _locate(record["path"], folder), _caption(record), size)


def _locate(path: str, folder: Path) -> str:
    beside = os.path.join(folder, path)
    return path if os.path.isfile(path) and not os.path.isfile(beside) else beside


def _caption(record: dict[str, str]) -> str:
    """The caption with the scores of columns aes, flow, cmotion, where they are given."""
    aes, flow, camera_motion = _score(record, "aes"), _score(record, "flow"), record.get("cmotion") or None
    return append_score_to_prompts([record["text"]], aes, flow, camera_motion)[0]


def _score(record: dict[str, str], column: str) -> float | None:
    """A number, or None where the cell is empty or the column absent."""
    value = record.get(column)
    score = _number(column, value) if value else math.nan
    return None if math.isnan(score) else score


def _size(record: dict[str, str], column: str) -> int:
    size = _number(column, record[column])
    if not (math.isfinite(size) and size >= 1 and size == int(size)):
        raise ValueError(f"{column}={record[column]!r}; allowed: a whole number from 1 on")
    return int(size)


def _number(column: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{column}={value!r}; allowed: a number") from None


def _check_positive(name: str, *values: int) -> None:
    if not all(isinstance(value, int) and value >= 1 for value in values):
        shown = values if len(values) > 1 else values[0]
        raise ValueError(f"{name}={shown!r}; allowed: whole numbers from 1 on")
