"""What to generate and how: the keys of an inference config, their defaults, and what each may hold."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from opensora.datasets.aspect import get_image_size, get_num_frames
from opensora.models.layers.token_split import SP_ATTENTION
from opensora.parallel import check_launcher
from opensora.utils.config import check_keys, is_number, is_whole
from opensora.utils.mask_strategy import dframe_to_frame, find_nearest_point

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MULTI_RESOLUTIONS = ("STDiT2", "OpenSora")  # those that give the sizes STDiT3 needs
LEAST = {"frame_interval": 1, "seed": 0, "batch_size": 1, "num_sample": 1, "loop": 1,
         "condition_frame_length": 0, "start_index": 0, "end_index": 0, "align": 1, "verbose": 0,
         "sp_size": 1, "cfg_size": 1}
OPTIONAL = ("start_index", "end_index", "align", "sp_size")
SMALLEST_SIDE = 16  # pixels: two latent pixels, one patch


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Keys as in Open-Sora v1.2's inference configs.

    image_size: (height, width) in pixels; None: by `resolution` and `aspect_ratio`.  num_frames: a number, or
    a name such as "2s".  fps: frames per second that the model is told; save_fps: that of the file (None: fps
    divided by frame_interval).  prompt or prompt_path: a text, a list, or a file with one prompt a line;
    start_index and end_index select lines.  reference_path, mask_strategy: one for all prompts, or one per
    prompt; a reference_path that is a folder holds one picture per sample, named as the sample.  loop: clips
    that continue one another, by condition_frame_length latent frames.  aes, flow, camera_motion: scores that
    are added to prompts.  device: None is cuda where there is one.  offload: a model leaves the device once
    it is done.  compile: the transformer's blocks, by torch.compile.  sp_size, cfg_size: processes that share
    the tokens, and the two rows, of a video; None: all of a node, divided by cfg_size.  sp_attention: by what
    they split a spatial attention, heads or frames (`opensora/models/layers/token_split.py`).
    launcher: what joins the processes of a torchrun, torch or colossalai.
    Raises ValueError, naming key, value and what is allowed.
    """

    model: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    num_frames: int | str
    resolution: str | None = None
    aspect_ratio: str | None = None
    image_size: tuple[int, int] | None = None
    fps: float = 24
    frame_interval: int = 1
    save_fps: float | None = None
    multi_resolution: str = "STDiT2"
    dtype: str = "bf16"
    device: str | None = None
    offload: bool = False
    compile: bool = False
    sp_size: int | None = None
    cfg_size: int = 1
    sp_attention: str = "heads"
    seed: int = 1024
    batch_size: int = 1
    prompt: str | list[str] | None = None
    prompt_path: str | None = None
    start_index: int | None = None
    end_index: int | None = None
    num_sample: int = 1
    reference_path: str | list[str] | None = None
    mask_strategy: str | list[str] | None = None
    loop: int = 1
    condition_frame_length: int = 5
    condition_frame_edit: float = 0.0
    align: int | None = None
    aes: float | None = None
    flow: float | None = None
    camera_motion: str | None = None
    save_dir: str = "samples"
    sample_name: str | None = None
    prompt_as_path: bool = False
    overwrite: bool = False
    verbose: int = 1
    launcher: str = "torch"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> InferenceConfig:
        """where: the config file's name, for messages."""
        check_keys(values, [f.name for f in fields(cls)], where)
        for name in [f.name for f in fields(cls) if f.default is MISSING]:
            if values.get(name) is None:
                raise ValueError(f"{where}: {name} is missing; allowed: a config with all of model, vae, "
                                 "text_encoder, scheduler, num_frames")
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("model", "vae", "text_encoder", "scheduler"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: dict(type=..., ...)")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not (is_whole(value) and value >= least or value is None and name in OPTIONAL):
                raise ValueError(f"{name}={value!r}; allowed: a whole number from {least}")
        if self.cfg_size > 2:
            raise ValueError(f"cfg_size={self.cfg_size}; allowed: 1, or 2, for guidance has two rows")
        for name in ("fps", "save_fps", "aes", "flow", "condition_frame_edit"):
            value = getattr(self, name)
            if not (is_number(value) or value is None and name in ("save_fps", "aes", "flow")):
                raise ValueError(f"{name}={value!r}; allowed: a number")
        for name in ("fps", "save_fps"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: more than 0")
        if not 0 <= self.condition_frame_edit <= 1:
            raise ValueError(f"condition_frame_edit={self.condition_frame_edit!r}; allowed: 0 to 1")
        for name in ("offload", "compile", "prompt_as_path", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: True, False")
        for name, allowed in (("dtype", DTYPES), ("multi_resolution", MULTI_RESOLUTIONS),
                              ("sp_attention", SP_ATTENTION)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r}; allowed: {', '.join(allowed)}")
        check_launcher(self.launcher)
        self._check_clips()
        self._check_save_dir()
        _ = self.size, self.torch_device  # raise where they cannot be had

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if self.image_size is None:
            for name in ("resolution", "aspect_ratio"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is missing; "
                                     "allowed: resolution with aspect_ratio, or image_size")
            return get_image_size(str(self.resolution), str(self.aspect_ratio))
        size = self.image_size
        if not (isinstance(size, (tuple, list)) and len(size) == 2
                and all(is_whole(side) and side >= SMALLEST_SIDE for side in size)):
            raise ValueError(f"image_size={size!r}; "
                             f"allowed: height and width, whole numbers from {SMALLEST_SIDE}")
        return size[0], size[1]

    @property
    def clip_frames(self) -> int:
        """Frames of one clip."""
        return get_num_frames(self.num_frames)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip or reference, by the autoencoder's micro frames (17 -> 5)."""
        micro = self.vae.get("micro_frame_size", 17) or frames
        whole, rest = divmod(frames, micro)
        return whole * -(-micro // 4) + -(-rest // 4)

    @property
    def overlap_frames(self) -> int:
        """Frames at the start of a clip that repeat the end of the one before."""
        return dframe_to_frame(self.condition_frame_length)

    @property
    def total_frames(self) -> int:
        """Frames of a whole sample."""
        if self.loop == 1:
            return self.clip_frames
        return self.clip_frames * self.loop - self.overlap_frames * (self.loop - 1)

    @property
    def file_fps(self) -> float:
        """Frames per second of the saved file."""
        fps = self.save_fps if self.save_fps is not None else self.fps / self.frame_interval
        return int(fps) if fps == int(fps) else fps

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        available = torch.cuda.is_available()
        name = ("cuda" if available else "cpu") if self.device is None else self.device
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError):
            device = None
        if device is None or device.type not in ("cuda", "cpu"):
            raise ValueError(f"device={name!r}; allowed: cuda, cpu")
        if device.type == "cuda" and not available:
            raise ValueError(f"device={name!r}, but there is no CUDA device here; allowed: cpu")
        if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
            raise ValueError(f"device={name!r}; allowed: cpu, cuda:0 to cuda:{count - 1}")
        return device

    def _check_clips(self) -> None:
        if self.loop == 1:
            return
        if not 0 < self.overlap_frames < self.clip_frames:
            raise ValueError(f"condition_frame_length={self.condition_frame_length} ({self.overlap_frames} "
                             f"frames) with loop={self.loop}; allowed: multiples of 5 that leave part of "
                             f"num_frames={self.num_frames}")
        chunk = dframe_to_frame(5)
        if (micro := self.vae.get("micro_frame_size", chunk)) != chunk:
            raise ValueError(f"vae.micro_frame_size={micro!r} with loop={self.loop}; allowed: {chunk}, by "
                             "which the frames that clips share are counted")
        latents = self.latent_frames(self.clip_frames)
        start = latents - self.condition_frame_length  # of what the next clip begins with
        if self.align and find_nearest_point(start, self.align, latents) != start:
            raise ValueError(f"align={self.align} with loop={self.loop}; allowed: a divisor of {start}, "
                             "the latent frame from which the next clip goes on")
        if self.clip_frames % chunk:
            # references are aligned to whole chunks: the next clip would not begin where such a one ends
            raise ValueError(f"num_frames={self.num_frames} with loop={self.loop}; allowed: multiples of "
                             f"{chunk}, such as 51 or 2s")

    def _check_save_dir(self) -> None:
        folder = Path(self.save_dir)
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise ValueError(f"save_dir={self.save_dir!r}: {str(nearest)!r} is no folder that can be written "
                             "to; allowed: a folder, made where it is missing")
