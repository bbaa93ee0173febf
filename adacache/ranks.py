"""The ranks of torch.distributed that make the same videos together, and all that they tell one another.

Each sees some tokens, or some rows, of a video; its schedule rests on sums over all of them.

Legend: B rows here, R ranks that the rows of a video are on, N tokens here, n of them, C channels.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """Process groups, the same for a whole run.

    video: all ranks of this rank's videos.  rows: of them, those that have the same tokens, but other rows of
    a video, as where conditional and unconditional ones are on two ranks; in the order of the rows.
    None: this rank alone.
    collective: entered around every collective here, for whoever counts them.
    """

    video: ProcessGroup | None = None
    rows: ProcessGroup | None = None
    collective: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def row_parts(self) -> int:
        """R."""
        return 1 if self.rows is None else dist.get_world_size(self.rows)

    def summed(self, own: Sequence[Tensor], on_host: bool) -> list[Tensor]:
        """Sums over all ranks of the video, by one all-reduce.  own: fp32, of the same shapes on every rank.

        All have the same bits then, for each sum is made in one place; a NaN of one rank all have as NaN.
        on_host: that is where the sums are wanted, and one copy takes them there.
        """
        if not own or (self.video is None and (own[0].device.type == "cpu" or not on_host)):
            return list(own)
        flat = torch.cat([x.flatten() for x in own])
        if self.video is not None:
            with self.collective():
                dist.all_reduce(flat, group=self.video)
        flat = flat.cpu() if on_host else flat
        return [part.view_as(x) for part, x in zip(flat.split([x.numel() for x in own]), own, strict=True)]

    def own_rows(self, x: Tensor) -> Tensor:
        """[R B, ...], something of all rows of the videos -> [B, ...], of those that are here."""
        return x if self.rows is None else x.chunk(self.row_parts)[dist.get_rank(self.rows)]

    def all_rows(self, index: Tensor | None, B: int) -> Tensor | None:
        """Index of some rows here -> of the same videos' rows among all, [R B]; None is all."""
        return None if index is None else torch.cat([index + part * B for part in range(self.row_parts)])

    def by_tokens(self, x: Tensor) -> Tensor:
        """[B, N, C], all tokens of some rows -> [R B, n, C], some tokens of all rows; by one all-to-all."""
        if self.rows is None:
            return x
        pieces = x.tensor_split(self.row_parts, dim=1)
        sizes, own = [piece.numel() for piece in pieces], pieces[dist.get_rank(self.rows)]
        received = x.new_empty(self.row_parts * own.numel())
        with self.collective():
            dist.all_to_all_single(received, torch.cat([piece.flatten() for piece in pieces]),
                                   [own.numel()] * self.row_parts, sizes, group=self.rows)
        return received.view(self.row_parts * len(x), *own.shape[1:])


ALONE = Ranks()
