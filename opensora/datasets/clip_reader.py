"""Single frames out of a video file, without decoding the rest of it.  T frames, H x W pixels."""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from opensora.datasets.video_io import CONVERSION


def read_clip(path: str | Path, pick: Callable[[int], Sequence[int]]) -> tuple[Tensor, float]:
    """Read the frames that `pick(number of frames in the file)` names, in ascending order.

    Returns: uint8 [T, H, W, 3] and the frame rate in 1/s.
    Raises ValueError or av.FFmpegError for a file without readable video, and whatever `pick` raises.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        times, keys = _frame_times(container, stream)
        wanted = [times[i] for i in pick(len(times))]
        frames = _decode(container, stream, wanted, _entry_point(keys, wanted[0]))
        if len(frames) < len(wanted):  # some containers can't seek exactly: decode from the start
            frames = _decode(container, stream, wanted, None)
        if len(frames) < len(wanted):
            raise ValueError(f"only {len(frames)} of {len(wanted)} frames can be decoded")
        fps = stream.average_rate or stream.guessed_rate
    if not fps:
        raise ValueError("the file states no frame rate")
    return torch.from_numpy(np.stack([frames[time] for time in wanted])), float(fps)


def _frame_times(container: av.container.InputContainer,
                 stream: av.VideoStream) -> tuple[list[int], list[tuple[int, int]]]:
    """Presentation times of all frames; (presentation, decoding time) of key frames.  Nothing is decoded."""
    packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
    times = sorted(p.pts for p in packets)
    return times, sorted((p.pts, p.dts if p.dts is not None else p.pts) for p in packets if p.is_keyframe)


def _entry_point(keys: list[tuple[int, int]], time: int) -> int | None:
    """Decoding time of the last key frame shown at or before `time`."""
    before = bisect_right([shown for shown, _ in keys], time)
    return keys[before - 1][1] if before else None


def _decode(container: av.container.InputContainer, stream: av.VideoStream, wanted: list[int],
            entry: int | None) -> dict[int, np.ndarray]:
    """{presentation time: uint8 [H, W, 3]} of the wanted frames, decoding from `entry` or the start on."""
    start = stream.start_time or 0
    container.seek(start if entry is None else entry, stream=stream)
    frames: dict[int, np.ndarray] = {}
    for frame in container.decode(stream):
        if frame.pts in wanted:
            frames[frame.pts] = frame.reformat(format="rgb24", interpolation=CONVERSION).to_ndarray()
        if frame.pts is not None and frame.pts >= wanted[-1]:  # frames come in the order of presentation
            break
    return frames
