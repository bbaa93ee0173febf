"""Dynamic sequence parallelism: the ranks of a video each hold some patches of all its frames.

DSP (arXiv 2403.10266).  Whatever looks along time, at a caption or at a token alone needs no other rank.  A
spatial attention does: around it, and around nothing else, the split is switched from patches to frames and
back, by two all-to-alls.  Attention split by heads would send q, k, v and the output, twice as much, and want
a number of heads that divides.  Where patches or frames do not divide, some ranks hold one more: nothing is
padded, so there is nothing to leave out of a norm.  With fewer frames than ranks some are idle meanwhile.

Legend: B rows, T frames, S patches per frame, t and s of them on one rank, C channels.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.distributed import ProcessGroup

from opensora.parallel import exchange, gathered, group_rank, group_size, shares


@dataclass(frozen=True)
class TokenSplit:
    """patches: s of each rank.  frames: t of each rank, during a spatial attention."""

    group: ProcessGroup
    patches: tuple[int, ...]
    frames: tuple[int, ...]

    @classmethod
    def of(cls, T: int, S: int, group: ProcessGroup) -> TokenSplit:
        """Raises ValueError for fewer patches than ranks."""
        if (size := group_size(group)) > S:
            raise ValueError(f"sp_size={size}, but a frame has {S} patches; allowed: 1 to {S}")
        return cls(group, shares(S, group), shares(T, group))

    def own(self, x: Tensor) -> Tensor:
        """[..., S, C] -> [..., s, C]."""
        return x.split(self.patches, dim=-2)[group_rank(self.group)]

    def whole(self, x: Tensor, T: int) -> Tensor:
        """[B, (T s), C] -> [B, (T S), C], the same on all ranks."""
        frames = rearrange(x, "b (t s) c -> b t s c", t=T)
        return gathered(frames, 2, self.patches, self.group).flatten(1, 2)

    def to_frames(self, x: Tensor) -> Tensor:
        """[B, T, s, C] -> [B, t, S, C]."""
        return self._switched(x, 1, self.frames, 2, self.patches)

    def to_patches(self, x: Tensor) -> Tensor:
        """[B, t, S, C] -> [B, T, s, C]."""
        return self._switched(x, 2, self.patches, 1, self.frames)

    def _switched(self, x: Tensor, whole: int, cut: tuple[int, ...], split: int,
                  parts: tuple[int, ...]) -> Tensor:
        """Dimension `whole` is cut as `cut` says; the ranks' parts of dimension `split` are joined."""
        shape = list(x.shape)
        shape[whole] = cut[group_rank(self.group)]
        shapes = [[*shape[:split], part, *shape[split + 1 :]] for part in parts]
        return torch.cat(exchange(x.split(cut, dim=whole), shapes, self.group), dim=split)
