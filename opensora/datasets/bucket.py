"""Batches of equal size from videos of all sizes: buckets of resolution x number of frames x aspect ratio.

A bucket config is Open-Sora's, `{"480p": {1: (1.0, 16), 51: (0.5, 2)}, "144p": {...}}`: resolution -> frames
-> (probability, videos per batch and rank).  A probability p is short for (p, 1.0); (p_keep, p_frames) means:
- a video with enough frames for an entry is offered to it with probability p_frames, else to the next shorter
  one; it then stays with probability p_keep, else it goes on to the next smaller resolution.
So a video goes to the largest bucket that it can fill and isn't sent on from; one that no bucket takes is out
for the epoch.  One frame is for images, and images are for one frame.

Legend: N videos, cell = (resolution, frames), R ranks.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from opensora.datasets.aspect import ASPECT_RATIOS, get_closest_ratio, get_num_pixels

# a video fills a resolution from this share of its pixels on (published): 848x480 counts as 480p
ENOUGH_PIXELS = 0.8

BucketId = tuple[str, int, str]               # resolution, frames, ratio
BatchIndex = list[tuple[int, int, int, int]]  # (id, num_frames, height, width) of each video


class SizedVideos(Protocol):
    """What the sampler reads of `VariableVideoTextDataset`."""

    frame_interval: int

    @property
    def sizes(self) -> np.ndarray: ...  # int64 [N, 3]: num_frames, height, width

    def set_epoch(self, epoch: int) -> None: ...


@dataclass(frozen=True)
class Cell:
    """An entry of the bucket config."""

    resolution: str
    num_frames: int
    p_keep: float
    p_frames: float
    batch_size: int | None  # None: nothing is kept here


class Bucket:
    """A checked bucket config: which bucket takes a video, and what its batches look like.

    Raises TypeError or ValueError naming the bad entry.
    """

    def __init__(self, bucket_config: Mapping[str, Mapping[int, Sequence[Any]]]) -> None:
        _check_mapping("bucket_config", bucket_config)
        self.cells: list[Cell] = []  # the largest first, in the order in which a video tries them
        for resolution in sorted(bucket_config, key=get_num_pixels, reverse=True):
            _check_mapping(f"bucket_config[{resolution!r}]", bucket_config[resolution])
            self.cells += sorted((_cell(resolution, frames, entry) for frames, entry in
                                  bucket_config[resolution].items()), key=lambda c: -c.num_frames)
        self._batch_sizes = {(cell.resolution, cell.num_frames): cell.batch_size for cell in self.cells}

    def get_thw(self, bucket_id: BucketId) -> tuple[int, int, int]:
        """Frames, height and width of a bucket's batches."""
        resolution, num_frames, ratio = bucket_id
        return num_frames, *ASPECT_RATIOS[resolution][1][ratio]

    def get_batch_size(self, bucket_id: BucketId) -> int:
        """Videos per batch and rank."""
        return self._batch_sizes[bucket_id[:2]]

    def group(self, sizes: np.ndarray, frame_interval: int,
              rng: np.random.Generator) -> dict[BucketId, np.ndarray]:
        """{bucket: ids of its videos, ascending} for sizes [N, 3]: num_frames, height, width."""
        cells = self.assign(sizes, frame_interval, rng)
        # ratios are looked up once per distinct size
        keys = np.column_stack([cells, sizes[:, 1:]])
        distinct, which = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(which.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(which.ravel(), minlength=len(distinct)))
        groups: dict[BucketId, list[np.ndarray]] = {}
        for (cell, height, width), ids in zip(distinct.tolist(), np.split(order, ends[:-1]), strict=True):
            if cell >= 0:
                groups.setdefault(self._bucket_id(cell, height, width), []).append(ids)
        return {bucket_id: np.sort(np.concatenate(parts)) for bucket_id, parts in groups.items()}

    def assign(self, sizes: np.ndarray, frame_interval: int, rng: np.random.Generator) -> np.ndarray:
        """Index into `cells` of each video, -1 for none: int64 [N].

        Draws are made for every video and cell, needed or not: one video's don't hang on the sizes of others.
        """
        num_frames, height, width = sizes.T
        assigned = np.full(len(sizes), -1)
        for resolution, cells in groupby(enumerate(self.cells), key=lambda item: item[1].resolution):
            open_ = (assigned < 0) & (height * width >= ENOUGH_PIXELS * get_num_pixels(resolution))
            for i, cell in cells:
                offered = rng.random(len(sizes)) < cell.p_frames
                stays = rng.random(len(sizes)) < cell.p_keep
                takes = open_ & offered & _fills(num_frames, cell.num_frames, frame_interval)
                assigned[takes & stays] = i
                open_ &= ~takes  # taken or sent on to the next resolution
        return assigned

    def _bucket_id(self, cell: int, height: int, width: int) -> BucketId:
        resolution = self.cells[cell].resolution
        ratio = get_closest_ratio(height, width, ASPECT_RATIOS[resolution][1])
        return resolution, self.cells[cell].num_frames, ratio


class VariableVideoBatchSampler(Sampler[BatchIndex]):
    """Batches from one bucket each: at the same step every rank has the same bucket, and other videos of it.

    Batches are a function of (dataset, bucket_config, seed, epoch); an epoch can be entered at any of them.
    `set_epoch` also sets the dataset's, on which its temporal crops depend.

    num_replicas, rank: by default those of the process group, or one process.
    drop_last: leave out what doesn't fill a batch on every rank, else fill up with the bucket's first videos.
    Raises TypeError or ValueError for a bad argument, and ValueError where no batch can be made.
    """

    def __init__(self, dataset: SizedVideos, bucket_config: Mapping[str, Mapping[int, Sequence[Any]]], *,
                 num_replicas: int | None = None, rank: int | None = None, shuffle: bool = True,
                 seed: int = 0, drop_last: bool = True) -> None:
        ranks, own = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.num_replicas = ranks if num_replicas is None else num_replicas
        self.rank = own if rank is None else rank
        if self.num_replicas < 1:
            raise ValueError(f"num_replicas={self.num_replicas}; allowed: 1 or more")
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"rank={self.rank}; allowed: 0 to {self.num_replicas - 1}")
        self.dataset, self.sizes, self.bucket = dataset, np.asarray(dataset.sizes), Bucket(bucket_config)
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self._enter(epoch=0, batches_done=0)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; where it is the present one, stay where this sampler is in it."""
        if epoch != self.epoch:
            self._enter(epoch, batches_done=0)

    def seek(self, step: int) -> None:
        """Go to where a run that began at epoch 0 is after `step` batches."""
        epoch = 0
        while step >= len(plan := self._plan(epoch)):
            step, epoch = step - len(plan), epoch + 1
        self._enter(epoch, batches_done=step)

    def state_dict(self, batches_done: int | None = None) -> dict[str, int]:
        """Where the sampler is.

        batches_done: batches of this epoch that were trained on.  None: all that were handed out, which is
        too many where a DataLoader fetches ahead.
        """
        done = self.batches_done if batches_done is None else batches_done
        return {"epoch": self.epoch, "batches_done": done, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where `state_dict` was taken; ValueError if this sampler's batches are others than those."""
        for key, own in self._identity().items():
            if state[key] != own:
                raise ValueError(f"{key}={own}, but {state[key]} when the state was saved; allowed: the same "
                                 "(or start an epoch with set_epoch)")
        self._enter(state["epoch"], state["batches_done"])

    def __len__(self) -> int:
        """Batches of the whole epoch, per rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchIndex]:
        """This rank's batches from where the sampler is to the epoch's end; then it is at the start again.

        Iterating again before the end goes on from there.
        """
        batches = self.batches
        while self.batches_done < len(batches):
            bucket_id, ids = batches[self.batches_done]
            self.batches_done += 1
            yield [(i, *self.bucket.get_thw(bucket_id)) for i in self._own_share(ids).tolist()]
        self.batches_done = 0

    def _enter(self, epoch: int, batches_done: int) -> None:
        self.epoch, self.batches_done, self.batches = epoch, batches_done, self._plan(epoch)
        self.dataset.set_epoch(epoch)

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "num_replicas": self.num_replicas, "num_videos": len(self.sizes)}

    def _own_share(self, ids: np.ndarray) -> np.ndarray:
        return ids.reshape(self.num_replicas, -1)[self.rank]

    def _plan(self, epoch: int) -> list[tuple[BucketId, np.ndarray]]:
        """Bucket and ids [R * batch size] of every step of an epoch, the same on all ranks."""
        rng = np.random.default_rng([self.seed, epoch])
        batches: list[tuple[BucketId, np.ndarray]] = []
        for bucket_id, ids in self.bucket.group(self.sizes, self.dataset.frame_interval, rng).items():
            ids = rng.permutation(ids) if self.shuffle else ids
            whole = _cut(ids, self.num_replicas * self.bucket.get_batch_size(bucket_id), self.drop_last)
            batches += [(bucket_id, batch) for batch in whole]
        if not batches:
            raise ValueError(f"bucket_config makes no batch of {len(self.sizes)} videos in epoch {epoch} "
                             f"with num_replicas={self.num_replicas}, drop_last={self.drop_last}; allowed: "
                             "buckets that videos fill on every rank")
        return [batches[i] for i in rng.permutation(len(batches))] if self.shuffle else batches


def _cut(ids: np.ndarray, size: int, drop_last: bool) -> np.ndarray:
    """[batches, size]."""
    count = len(ids) // size if drop_last else -(-len(ids) // size)
    return np.resize(ids, count * size).reshape(count, size)  # np.resize repeats from the start


def _fills(available: np.ndarray, num_frames: int, frame_interval: int) -> np.ndarray:
    if num_frames == 1:
        return available == 1
    return available >= (num_frames - 1) * frame_interval + 1


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name}={value!r}; allowed: a dict with entries, as {{'480p': {{51: (1.0, 2)}}}}")


def _cell(resolution: str, num_frames: int, entry: Sequence[Any]) -> Cell:
    name = f"bucket_config[{resolution!r}][{num_frames!r}]"
    if not _whole(num_frames):
        raise ValueError(f"{name}: frames={num_frames!r}; allowed: whole numbers from 1 on")
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        raise ValueError(f"{name}={entry!r}; allowed: (probability, batch size)")
    probability, batch_size = entry
    both = probability if isinstance(probability, (tuple, list)) else (probability, 1.0)
    if len(both) != 2 or not all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in both):
        raise ValueError(f"{name}: probability={probability!r}; allowed: 0 to 1, or (p_keep, p_frames)")
    if not (_whole(batch_size) or (batch_size is None and both[0] == 0)):
        raise ValueError(f"{name}: batch size={batch_size!r}; allowed: whole numbers from 1 on "
                         "(None with probability 0)")
    return Cell(resolution, num_frames, *both, batch_size)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
