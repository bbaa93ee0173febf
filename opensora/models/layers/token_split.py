"""Dynamic sequence parallelism: the ranks of a video each hold some patches of all its frames.

Whatever looks along time, at a caption or at a token alone needs no other rank.  A spatial attention does:
around it, and around nothing else, the split is switched by two all-to-alls, from patches to
- heads, as Open-Sora does (DeepSpeed-Ulysses, arXiv 2309.14509): q, k and v there, the output back;
- or frames (DSP, arXiv 2403.10266): tokens there and back, half as many bytes; but where frames are few, as
  in a picture, some ranks have one more than others, or none.
Where patches, heads or frames do not divide, some ranks hold one more.  These all-to-alls are padded to the
largest share, so that all ranks send one another as much, and what comes is cut to what it holds: nothing is
computed of padding, and no norm has to leave it out.

Legend: B rows, T frames, S patches per frame, H heads, t, s, h of them on one rank, C channels, D per head.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.distributed import ProcessGroup

from opensora.parallel import exchange, gathered, group_rank, group_size, shares

SP_ATTENTION = ("heads", "frames")


@dataclass(frozen=True)
class TokenRanks:
    """group: shares the tokens of its videos.  attention: by what a spatial one is split, of SP_ATTENTION."""

    group: ProcessGroup
    attention: str = "heads"


@dataclass(frozen=True)
class TokenSplit:
    """patches: s of each rank.  frames: t, and heads: h of each rank, during a spatial attention."""

    group: ProcessGroup
    patches: tuple[int, ...]
    frames: tuple[int, ...]
    heads: tuple[int, ...]
    by_heads: bool

    @classmethod
    def of(cls, T: int, S: int, H: int, ranks: TokenRanks) -> TokenSplit:
        """Raises ValueError for fewer patches than ranks."""
        if (size := group_size(ranks.group)) > S:
            raise ValueError(f"sp_size={size}, but a frame has {S} patches; allowed: 1 to {S}")
        patches, frames, heads = (shares(count, ranks.group) for count in (S, T, H))
        return cls(ranks.group, patches, frames, heads, ranks.attention == "heads")

    def own(self, x: Tensor) -> Tensor:
        """[..., S, C] -> [..., s, C]."""
        return x.split(self.patches, dim=-2)[group_rank(self.group)]

    def whole(self, x: Tensor, T: int) -> Tensor:
        """[B, (T s), C] -> [B, (T S), C], the same on all ranks."""
        frames = rearrange(x, "b (t s) c -> b t s c", t=T)
        return gathered(frames, 2, self.patches, self.group).flatten(1, 2)

    def in_frames(self, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """An attention [B t, S, C] -> the same, on own frames.  x, and what is returned: [B, T, s, C]."""
        x = self._switched(x, 1, self.frames, 2, self.patches)  # [B, t, S, C]
        if x.numel():  # a kernel may not take the empty batch of a rank without frames
            x = attention(x.flatten(0, 1)).view(x.shape)
        return self._switched(x, 2, self.patches, 1, self.frames)

    def in_heads(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor,
                 v: Tensor) -> Tensor:
        """softmax(q k^T) v of own heads.  q, k, v, and what is returned: [B T, H, s, D]."""
        q, k, v = self._switched(torch.stack((q, k, v)), 2, self.heads, 3, self.patches)  # [B T, h, S, D]
        out = attend(q, k, v) if q.numel() else q
        return self._switched(out, 2, self.patches, 1, self.heads)

    @torch.compiler.disable  # what is compiled would keep the group
    def _switched(self, x: Tensor, whole: int, cut: tuple[int, ...], split: int,
                  parts: tuple[int, ...]) -> Tensor:
        """Dimension `whole` is cut as `cut` says; the ranks' parts of dimension `split` are joined."""
        pieces = [padded(piece, {whole: max(cut), split: max(parts)}) for piece in x.split(cut, dim=whole)]
        received = exchange(torch.stack(pieces), self.group)
        own = cut[group_rank(self.group)]
        return torch.cat([piece.narrow(whole, 0, own).narrow(split, 0, part)
                          for piece, part in zip(received, parts, strict=True)], dim=split)


def padded(x: Tensor, sizes: dict[int, int]) -> Tensor:
    """Zeros at the end of some dimensions, up to their sizes."""
    missing = [sizes.get(dim, size) - size for dim, size in enumerate(x.shape)]
    return F.pad(x, [pad for end in reversed(missing) for pad in (0, end)]) if any(missing) else x
