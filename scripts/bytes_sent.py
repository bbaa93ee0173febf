"""What this rank sends to others, call by call."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch.distributed as dist


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """Bytes of every all-reduce, and of what every all-to-all sends to other ranks, called inside."""
    calls: dict[str, list[int]] = {"all_reduce": [], "all_to_all": []}
    all_reduce, all_to_all = dist.all_reduce, dist.all_to_all_single

    def counting_all_reduce(x, *args, **options):
        calls["all_reduce"].append(x.nbytes)
        return all_reduce(x, *args, **options)

    def counting_all_to_all(received, sent, sizes=None, sent_sizes=None, group=None):
        alike = sent.numel() // dist.get_world_size(group)
        kept = alike if sent_sizes is None else sent_sizes[dist.get_rank(group)]
        calls["all_to_all"].append((sent.numel() - kept) * sent.element_size())
        return all_to_all(received, sent, sizes, sent_sizes, group=group)

    with mock.patch.object(dist, "all_reduce", counting_all_reduce), \
            mock.patch.object(dist, "all_to_all_single", counting_all_to_all):
        yield calls
