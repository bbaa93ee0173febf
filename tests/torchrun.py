"""Start a script on several gloo ranks of this machine, and count what they send."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]


def torchrun(ranks: int, script: Path, *args: object) -> str:
    """Run `script` on `ranks` ranks from the project's root; what they printed."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks),
         str(script), *map(str, args)],
        capture_output=True, text=True, cwd=ROOT, timeout=900,
        # PYTHONPATH: or tests/adacache would be taken for the package
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def save_results(results: object, folder: Path) -> None:
    """Of this rank."""
    torch.save(results, folder / f"{dist.get_rank()}.pt")


def load_results(folder: Path, ranks: int) -> list:
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """Bytes of every all-reduce, and of what every all-to-all sends to other ranks, called inside."""
    calls: dict[str, list[int]] = {"all_reduce": [], "all_to_all": []}
    all_reduce, all_to_all = dist.all_reduce, dist.all_to_all_single

    def counting_all_reduce(x, *args, **options):
        calls["all_reduce"].append(x.nbytes)
        return all_reduce(x, *args, **options)

    def counting_all_to_all(received, sent, sizes, sent_sizes, group):
        kept = sent_sizes[dist.get_rank(group)]
        calls["all_to_all"].append((sent.numel() - kept) * sent.element_size())
        return all_to_all(received, sent, sizes, sent_sizes, group=group)

    with mock.patch.object(dist, "all_reduce", counting_all_reduce), \
            mock.patch.object(dist, "all_to_all_single", counting_all_to_all):
        yield calls
