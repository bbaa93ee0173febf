"""The processes of one `torchrun`: started here, asked here, and how they share videos, rows and tokens."""
from __future__ import annotations

import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from math import prod
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

from opensora.restarts import check_restarts, restarts

TIMEOUT = timedelta(minutes=30)  # of a collective, in which all processes wait for the slowest
LAST_TURN = 0.2  # seconds for other threads before a process ends; they need milliseconds
NAMES_COME_AGAIN = torch.__version__ < (2, 14)  # of process groups; see `placeholder`
LAUNCHERS = ("torch", "colossalai")


@dataclass
class Collectives:
    """Of this process.  Ranks of a video that did the same work began and ended as many."""

    begun: int = 0
    ended: int = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        self.begun += 1
        yield
        self.ended += 1


collectives = Collectives()


def check_launcher(name: str) -> None:
    """Raise ValueError for one that is unknown or not installed."""
    if name not in LAUNCHERS:
        raise ValueError(f"launcher={name!r}; allowed: {', '.join(LAUNCHERS)}")
    if name == "colossalai" and importlib.util.find_spec("colossalai") is None:
        raise ValueError("launcher='colossalai' needs the optional package colossalai "
                         "(constraints/colossalai.txt tells how to install it); allowed without it: torch")


@contextmanager
def process_group(launcher: str = "torch") -> Iterator[None]:
    """Join the process group that torchrun announces in the environment; alone, do nothing.

    launcher: who joins it, `torch` or the optional package `colossalai`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    check_restarts()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # gloo beside nccl: for Python objects, and for `--device cpu` where there is a GPU
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if launcher == "colossalai":
        if restarts():
            raise ValueError("launcher='colossalai' after a restart by torchrun; allowed then: torch")
        import colossalai

        # version 0.5.0 takes its accelerator's own backend instead, nccl alone on GPUs, and torch's timeout
        colossalai.launch_from_torch(backend=backend, verbose=False)
    else:
        # torchrun's store outlives the processes that it starts again, and what they said there
        store, own, ranks = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(f"start_{restarts()}", store)
        dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=own, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
        # gloo's threads let go of the last tensors in Python; where that is gone by then, the process aborts
        time.sleep(LAST_TURN)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def own_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def of_all_processes(own: list[Any]) -> list[Any]:
    """The lists of all processes as one, the same everywhere.  Every process has to ask."""
    if world_size() == 1:
        return own
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, own)
    return [item for each in lists for item in each]


class Keeper(Protocol):
    """What keeps the group of all ranks of a video."""

    def leave(self) -> None:
        """Let go of it, for it will be closed."""

    def join(self, group: ProcessGroup) -> None:
        """Another one, in its place."""


class Mesh:
    """The ranks of a run along dp (which videos), cfg (which rows of them) and sp (which tokens).

    dp_size: how many parts the prompts have; dp_rank: the one that this rank makes.  Those with the same
    dp_rank make the same videos.
    video: all of these.  cfg: of them, those that have the same tokens, the conditional rows on the first and
    the unconditional ones on the second.  sp: those that have the same rows.  None: this rank alone.

    These groups can be left and joined anew; who keeps one for longer than a run would keep it from closing,
    but for `keepers`, who are told.
    """

    def __init__(self, dp_size: int = 1, dp_rank: int = 0, video: Sequence[int] = (), sp: Sequence[int] = (),
                 cfg: Sequence[int] = ()) -> None:
        """video, sp, cfg: ranks of the world in their order.  All of `video` have to ask."""
        self.dp_size, self.dp_rank = dp_size, dp_rank
        self.members = {"video": tuple(video), "sp": tuple(sp), "cfg": tuple(cfg)}
        self.video = self.sp = self.cfg = None
        self.keepers: list[Keeper] = []
        self.placeholders: list[ProcessGroup] = []
        self.join()

    @classmethod
    def of(cls, sp_size: int | None, cfg_size: int) -> Mesh:
        """sp_size: None is all ranks of a node, divided by cfg_size.  Every process has to ask.

        Raises ValueError for sizes that do not divide the number of processes.
        """
        dp, cfg, sp = asked_shape(sp_size, cfg_size)
        if cfg * sp == 1:
            return cls(dp, rank())
        # sp is innermost, for it sends most: its ranks are neighbours, on one node where they fit
        mesh = init_device_mesh(own_device().type, (dp, cfg, sp), mesh_dim_names=("dp", "cfg", "sp"))
        dp_rank, cfg_rank, sp_rank = mesh.get_coordinate()
        own = mesh.mesh[dp_rank]
        return cls(dp, dp_rank, own.flatten().tolist(), own[cfg_rank].tolist(), own[:, sp_rank].tolist())

    @property
    def is_first(self) -> bool:
        """Of the ranks of its videos: that one writes files and reports."""
        return self.ranks == 1 or rank() == self.members["video"][0]

    @property
    def ranks(self) -> int:
        """That make the same videos."""
        return max(1, len(self.members["video"]))

    def join(self) -> None:
        """The groups of these ranks, of which all have to join."""
        groups: dict[tuple[int, ...], ProcessGroup] = {}  # one for members that are the same
        for name, members in self.members.items():
            if len(members) > 1:
                if members not in groups:
                    groups[members] = new_group(members)
                setattr(self, name, groups[members])
        for group in groups.values():
            meet(group, own_device())  # NCCL connects now: what is not yet connected cannot be released
        for keeper in self.keepers:
            keeper.join(self.video)

    @property
    def groups(self) -> list[ProcessGroup]:
        """Each once."""
        return [group for group in dict.fromkeys((self.video, self.sp, self.cfg)) if group is not None]

    def leave(self) -> None:
        """Close the groups: other ranks that wait in them for this one raise, on gloo at once."""
        self.release()
        for keeper in self.keepers:
            keeper.leave()
        groups, self.video, self.sp, self.cfg = self.groups, None, None, None
        names = [group.group_name for group in groups] if NAMES_COME_AGAIN else []
        while groups:
            dist.destroy_process_group(groups.pop())
        gc.collect()  # a group is closed when nobody has it
        self.placeholders += map(placeholder, names)

    def release(self) -> None:
        """From any thread: what waits on this rank's GPU for others waits no longer, and is worthless."""
        if (groups := self.groups) and torch.cuda.is_available():
            with ThreadPoolExecutor(len(groups)) as pool:  # one alone may wait for what hangs in another
                list(pool.map(abort, groups))


ALONE = Mesh()


def new_group(members: Sequence[int]) -> ProcessGroup:
    """Of some ranks of the world; each has to ask for it, and for groups that overlap in the same order."""
    return dist.new_group(list(members), timeout=TIMEOUT, use_local_synchronization=True)


def abort(group: ProcessGroup) -> None:
    """End what waits in it on this GPU."""
    if hasattr(group, "abort"):
        group.abort()
    else:  # torch 2.5, which colossalai asks for
        group._get_backend(torch.device("cuda"))._shutdown()


def placeholder(name: str) -> ProcessGroup:
    """A group of this rank alone, after one was closed: no new group will be called `name`, as that one was.

    A group's ranks are in the store under its name, where those of another would look for what is no longer
    there.  torch makes the name of the ranks and of how many groups there were (2.14) or are (2.9), which one
    in the place of the other keeps at their number; or of the ranks, but other than those of the groups that
    there are (2.5, for colossalai), so that this one takes the name.
    """
    group = new_group([rank()])
    if torch.__version__ < (2, 6):
        torch._C._distributed_c10d._unregister_process_group(group.group_name)
        dist.distributed_c10d._world.pg_names[group] = name
    return group


def asked_shape(sp_size: int | None, cfg_size: int) -> tuple[int, int, int]:
    """(dp, cfg, sp) of this run, as this process sees it; see `Mesh.of`."""
    return mesh_shape(sp_size, cfg_size, world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def mesh_shape(sp_size: int | None, cfg_size: int, world: int, local: int) -> tuple[int, int, int]:
    """(dp, cfg, sp) for `world` processes, `local` of them on each node; see `Mesh.of`."""
    if sp_size is None:
        if local % cfg_size:
            raise ValueError(f"cfg_size={cfg_size} does not divide the {local} processes of a node; "
                             "allowed: 1")
        sp_size = local // cfg_size
    if world % (cfg_size * sp_size):
        raise ValueError(f"sp_size={sp_size} with cfg_size={cfg_size} does not divide {world} processes; "
                         f"allowed: {allowed_sizes(world)}")
    return world // (cfg_size * sp_size), cfg_size, sp_size


def allowed_sizes(world: int) -> str:
    """Of sp, for each size of cfg."""
    return "; ".join(f"{', '.join(str(sp) for sp in range(1, world + 1) if world % (cfg * sp) == 0)} with "
                     f"cfg_size={cfg}" for cfg in (1, 2) if world % cfg == 0)


def group_size(group: ProcessGroup | None) -> int:
    return 1 if group is None else dist.get_world_size(group)


def group_rank(group: ProcessGroup | None) -> int:
    return 0 if group is None else dist.get_rank(group)


def shares(count: int, group: ProcessGroup | None) -> tuple[int, ...]:
    """How many of `count` things each rank of a group gets, the first ones one more if need be."""
    size = group_size(group)
    return tuple(count // size + (i < count % size) for i in range(size))


def meet(group: ProcessGroup | None, device: torch.device) -> None:
    """Returns once all ranks of a group came to it, with all that was to be done on their devices.

    Raises RuntimeError where they did not.
    """
    if group is None:
        return
    if (came := total(1, group, device)) != group_size(group):  # of a group that was released meanwhile
        raise RuntimeError(f"{came} of {group_size(group)} ranks came together")


def total(own: int, group: ProcessGroup | None, device: torch.device) -> int:
    """Over the ranks of a group, through their devices."""
    if group is None:
        return own
    with collectives.one():
        count = torch.tensor(own, dtype=torch.float32, device=device)
        dist.all_reduce(count, group=group)
    return int(count.item())


def exchange(pieces: Tensor, group: ProcessGroup) -> Tensor:
    """pieces[i] goes to rank i, and rank i's own for this rank comes in its place: one all-to-all.

    All ranks have pieces of one size.  Nothing flows back through it: no gradients.
    """
    pieces = pieces.contiguous()
    received = torch.empty_like(pieces)
    with collectives.one():
        dist.all_to_all_single(received, pieces, group=group)
    return received


def gathered(x: Tensor, dim: int, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """The parts of all ranks, joined along `dim`, where they have `sizes`, also 0: the same everywhere.

    Nothing flows back through it: no gradients.
    """
    shapes = [(*x.shape[:dim], size, *x.shape[dim + 1 :]) for size in sizes]
    counts = [prod(shape) for shape in shapes]
    received = x.new_empty(sum(counts))
    with collectives.one():  # an all-to-all, for on gloo all_gather takes parts of one size alone
        dist.all_to_all_single(received, x.flatten().repeat(len(sizes)), counts, [x.numel()] * len(sizes),
                               group=group)
    parts = [part.view(shape) for part, shape in zip(received.split(counts), shapes, strict=True)]
    return torch.cat(parts, dim=dim)


def shared_out(work: Callable[[slice], Tensor], lengths: Sequence[int], dim: int,
               group: ProcessGroup | None) -> Tensor:
    """`work` on all of some items, of which each rank does its share: the same everywhere.

    work: of some of the items in order, joined along `dim`, where item i has lengths[i].
    """
    if group is None:
        return work(slice(None))
    ends = list(accumulate(shares(len(lengths), group), initial=0))
    parts = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
    sizes, own = [sum(lengths[part]) for part in parts], group_rank(group)
    # a rank without an item does the first one, for its shape
    done = work(parts[own] if sizes[own] else slice(1)).narrow(dim, 0, sizes[own])
    return gathered(done, dim, sizes, group)

