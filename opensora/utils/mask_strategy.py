"""Which latent frames of a clip come from references, and how far the sampler may change them.

B videos, C channels, T latent frames; references [C, T_ref, H, W] may have any T_ref.  A strategy is a string
of groups `loop,ref,ref_start,target_start,length,edit_ratio;...`: in clip number `loop`, `length` latent
frames of reference number `ref` from `ref_start` on go to `target_start`.  Negative starts count from the
end; an edit_ratio of 0 keeps the frames, 1 leaves them free.  Left out values are those of 0,0,0,0,1,0, so
"0" keeps the first frame of the first reference.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

GRAMMAR = "loop,ref,ref_start,target_start,length,edit_ratio;... (whole numbers, edit_ratio from 0 to 1)"
LATENTS_PER_CHUNK, FRAMES_PER_CHUNK = 5, 17  # of the VAE's micro frames
DEFAULTS = (0, 0, 0, 0, 1, 0.0)  # a group's values that are left out


class Copy(NamedTuple):
    """Frames of a reference that go into a clip; starts and length in latent frames."""

    ref: Tensor
    ref_start: int
    target_start: int
    length: int
    edit_ratio: float


class Encoder(Protocol):
    def encode(self, x: Tensor) -> Tensor: ...


def parse_mask_strategy(mask_strategy: str | None) -> list[list[int | float]]:
    """Groups [loop, ref, ref_start, target_start, length, edit_ratio] of a strategy; none for "" and None.

    Raises ValueError, with the grammar, for a malformed strategy.
    """
    if not mask_strategy:
        return []
    return [_parse_group(group, mask_strategy) for group in mask_strategy.split(";")]


def check_start(name: str, start: int, frames: int, strategy: str | None) -> None:
    """Raise ValueError where a start lies outside the clip or the reference, of `frames` latent frames."""
    if not -frames <= start < frames:
        raise ValueError(f"mask_strategy={strategy!r} has {name}={start}; "
                         f"allowed: {-frames} to {frames - 1} latent frames")


def find_nearest_point(value: int, point: int, max_value: int) -> int:
    """Multiple of `point` nearest to `value`; up only where a whole `point` still fits below max_value."""
    group = value // point
    if value % point > point / 2 and group < max_value // point - 1:
        group += 1
    return group * point


def apply_mask_strategy(
    z: Tensor,
    refs_x: Sequence[Sequence[Tensor] | None],
    mask_strategys: Sequence[str | None],
    loop_i: int,
    align: int | None = None,
) -> Tensor | None:
    """Copy reference frames into z [B, C, T, H, W], in place, as the strategies say for clip number `loop_i`.

    refs_x: per video its references [C, T_ref, H, W].  mask_strategys: per video.
    align: starts are moved to multiples of it (published: 5, the latents of a VAE chunk).
    Returns: mask [B, T] fp32 on z's device, the edit ratio where a frame was copied and 1 elsewhere; None
    without videos.  Raises ValueError, before anything is copied, for a malformed strategy, a reference that
    is not there or has another size, and a start outside the clip or the reference.
    """
    if not mask_strategys:
        return None
    copies = [
        [_resolve(group, text, refs_x[i] or [], z, align)
         for group in parse_mask_strategy(text) if group[0] == loop_i]
        for i, text in enumerate(mask_strategys)
    ]
    mask = torch.ones(len(mask_strategys), z.shape[2], dtype=torch.float32, device=z.device)
    for i, row in enumerate(copies):
        for copy in row:
            target = slice(copy.target_start, copy.target_start + copy.length)
            z[i, :, target] = copy.ref[:, copy.ref_start : copy.ref_start + copy.length].to(z)
            mask[i, target] = copy.edit_ratio
    return mask


def mask_or_none(mask: Tensor | None) -> Tensor | None:
    """None where no frame is held, so that the model runs without a frame mask: same result, less work."""
    if mask is None or bool((mask == 1).all()):  # a device sync, once per clip
        return None
    return mask


def append_generated(
    vae: Encoder,
    generated_video: Tensor,
    refs_x: Sequence[Sequence[Tensor] | None],
    mask_strategy: Sequence[str | None],
    loop_i: int,
    condition_frame_length: int,
    condition_frame_edit: float,
) -> tuple[list[list[Tensor]], list[str]]:
    """References and strategies for clip number `loop_i`, which goes on where the last clip ended.

    generated_video: the last clip [B, 3, F, H, W] in [-1, 1]; its last `condition_frame_length` latent frames
    are to be the first ones of the next clip.  condition_frame_edit: their edit ratio.
    Returns: new lists; the given ones stay as they are, so that all samples of a prompt start from the same
    ones.
    """
    latents = vae.encode(generated_video)
    refs = [[*(own or []), latent] for own, latent in zip(refs_x, latents, strict=True)]
    groups = [
        f"{loop_i},{len(own) - 1},-{condition_frame_length},0,{condition_frame_length},{condition_frame_edit}"
        for own in refs
    ]
    return refs, [f"{old};{new}" if old else new for old, new in zip(mask_strategy, groups, strict=True)]


def dframe_to_frame(num: int) -> int:
    """Video frames of `num` latent frames, for whole VAE chunks (5 -> 17); ValueError otherwise."""
    if num % LATENTS_PER_CHUNK:
        raise ValueError(f"condition_frame_length={num}; "
                         f"allowed: multiples of {LATENTS_PER_CHUNK} latent frames")
    return num // LATENTS_PER_CHUNK * FRAMES_PER_CHUNK


def _parse_group(group: str, strategy: str) -> list[int | float]:
    values = group.split(",")
    try:
        given = [*map(int, values[:5]), *map(float, values[5:])]
        loop, ref, ref_start, target_start, length, edit_ratio = [*given, *DEFAULTS[len(given):]]
        if loop < 0 or length < 0 or not 0 <= edit_ratio <= 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"malformed mask_strategy={strategy!r} at {group!r}; allowed: {GRAMMAR}") from None
    return [loop, ref, ref_start, target_start, length, edit_ratio]


def _resolve(
    group: list[int | float], strategy: str | None, refs: Sequence[Tensor], z: Tensor, align: int | None
) -> Copy:
    """What a group copies, clipped to what reference and clip have."""
    _, index, ref_start, target_start, length, edit_ratio = group
    if not -len(refs) <= index < len(refs):
        allowed = f"0 to {len(refs) - 1}" if refs else "none, as reference_path names none"
        raise ValueError(f"mask_strategy={strategy!r} asks for reference {index}; allowed: {allowed}")
    ref = refs[index]
    if (ref.shape[0], *ref.shape[2:]) != (z.shape[1], *z.shape[3:]):
        raise ValueError(f"reference {index} has latents [C, T, H, W] = {list(ref.shape)}; "
                         f"allowed: the clip's, {list(z.shape[1:])}, with any T")
    ref_start = _start("ref_start", ref_start, ref.shape[1], align, strategy)
    target_start = _start("target_start", target_start, z.shape[2], align, strategy)
    length = min(length, ref.shape[1] - ref_start, z.shape[2] - target_start)
    return Copy(ref, ref_start, target_start, length, edit_ratio)


def _start(name: str, start: int, frames: int, align: int | None, strategy: str | None) -> int:
    check_start(name, start, frames, strategy)
    start %= frames
    return find_nearest_point(start, align, frames) if align else start
