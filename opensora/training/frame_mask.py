"""Which frames of a training clip are noised and learnt, and which are given clean as a condition.

Trains image-to-video, extension, connection and interpolation, as Open-Sora v1.2 does: the frames that a mask
leaves out keep their clean latents and are modulated as at timestep 0 (`x_mask` of STDiT3).
Legend: B videos, T latent frames.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# [T] of True, generator -> [T], False where a frame is given
Rule = Callable[[Tensor, torch.Generator | None], Tensor]
Length = Callable[[Tensor, torch.Generator | None], int]


class MaskGenerator:
    """Draws a rule per video, with the probabilities `mask_ratios`, and a mask by that rule.

    mask_ratios: {name in RULES: probability}; what is left to a sum of 1 is `identity`: all are generated.
    Raises TypeError or ValueError naming the bad entry.
    """

    def __init__(self, mask_ratios: Mapping[str, float]) -> None:
        check_ratios(mask_ratios)
        self.names = [*mask_ratios, "identity"]
        probabilities = torch.tensor(list(mask_ratios.values()), dtype=torch.float64)
        rest = (1 - probabilities.sum()).clamp(min=0)
        self.probabilities = torch.cat([probabilities, rest[None]])

    def get_masks(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Masks for latents x [B, C, T, H, W]: bool [B, T] on x's device, True = to be generated.

        Each has a frame to generate; single frames are always generated.
        generator: a CPU generator; None draws from torch's global one, which `torch.manual_seed` sets.
        """
        if x.ndim != 5:
            raise ValueError(f"x has shape {tuple(x.shape)}; allowed: [B, C, T, H, W]")
        return torch.stack([self._get_mask(x.shape[2], generator) for _ in range(x.shape[0])]).to(x.device)

    def _get_mask(self, frames: int, generator: torch.Generator | None) -> Tensor:
        drawn = torch.multinomial(self.probabilities, 1, generator=generator)
        mask = torch.ones(frames, dtype=torch.bool)
        if frames == 1:
            return mask
        mask = RULES[self.names[int(drawn)]](mask, generator)
        if not mask.any():  # nothing would be learnt
            mask[-1] = True
        return mask


def check_ratios(mask_ratios: Mapping[str, float]) -> None:
    if not isinstance(mask_ratios, Mapping):
        raise TypeError(f"mask_ratios={mask_ratios!r}; allowed: a dict of name: probability")
    for name, ratio in mask_ratios.items():
        if name not in RULES:
            raise ValueError(f"mask_ratios key {name!r}; allowed: {', '.join(RULES)}")
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
            raise ValueError(f"mask_ratios[{name!r}]={ratio!r}; allowed: a probability from 0 to 1")
    total = math.fsum(mask_ratios.values())
    if total > 1 + 1e-6:
        raise ValueError(f"mask_ratios sum to {total:.6g}; allowed: 1 at most (the rest is identity)")


def _between(low: int, high: int, generator: torch.Generator | None) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _quarter(mask: Tensor, generator: torch.Generator | None) -> int:
    """A length from one frame to a quarter of the clip."""
    return _between(1, max(1, len(mask) // 4), generator)


def _image(mask: Tensor, generator: torch.Generator | None) -> int:
    return 1


def _identity(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    return mask


def _random(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    """Each frame given with one probability, itself uniform between 0.1 and 0.9."""
    ratio = 0.1 + 0.8 * torch.rand((), generator=generator)
    return torch.rand(len(mask), generator=generator) > ratio


def _interpolate(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    mask[_between(0, 1, generator) :: 2] = False
    return mask


def _given(length: Length, *, head: bool = False, tail: bool = False) -> Rule:
    """A run of given frames at the head, the tail or both; anywhere if neither."""

    def rule(mask: Tensor, generator: torch.Generator | None) -> Tensor:
        n = length(mask, generator)
        if head:
            mask[:n] = False
        if tail:
            mask[-n:] = False
        if not head and not tail:
            start = _between(0, len(mask) - n, generator)
            mask[start : start + n] = False
        return mask

    return rule


RULES: dict[str, Rule] = {
    "identity": _identity,
    "random": _random,
    "intepolate": _interpolate,  # as published
    "interpolate": _interpolate,
    "quarter_random": _given(_quarter),
    "quarter_head": _given(_quarter, head=True),
    "quarter_tail": _given(_quarter, tail=True),
    "quarter_head_tail": _given(_quarter, head=True, tail=True),
    "image_random": _given(_image),
    "image_head": _given(_image, head=True),
    "image_tail": _given(_image, tail=True),
    "image_head_tail": _given(_image, head=True, tail=True),
}
