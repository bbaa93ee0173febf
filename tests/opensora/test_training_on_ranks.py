"""Training on two ranks ends with the weights of one; sharded or not, runs go on from one another's work.

This file is also the program of the two ranks: FOLDER -> FOLDER/NAME.pt, the averaged weights of each run.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opensora.parallel import process_group, rank
from opensora.training.loop import LoopConfig, TrainingRun

ROOT = Path(__file__).resolve().parents[2]
STEPS, HALF = 6, 3


class Net(nn.Module):
    """Odd sizes, which two ranks cannot halve, and one weight that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.out, self.unused = nn.Linear(5, 1), nn.Parameter(torch.ones(3))

    def units(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        target = x.sum(dim=1, keepdim=True)
        for block in self.blocks:
            x = x + block(x).tanh()
        return {"loss": (self.out(x) - target).square().mean()}


def train(folder: Path, steps: int, batches: int | None = 2, **options: object) -> dict[str, Tensor]:
    """The averaged weights after `steps` steps."""
    torch.manual_seed(0)
    net = Net()
    config = LoopConfig(steps=steps, lr=0.05, warmup=1, decay_fraction=0.0, weight_decay=0.1, ema_decay=0.5,
                        grad_clip=0.5, dtype="fp32", log_every=1, ckpt_every=100, batches=batches,
                        **options)
    return TrainingRun(net, net, lambda index: torch.randn(3, 5), config, folder).run().state_dict()


def on_two_ranks(folder: Path) -> None:
    """plain, sharded: unbroken.  half_*: HALF steps, then on to the end in a copy, also the other way.
    1_batches, 3_batches: of a step, which two ranks cannot halve.  refused: what they must not do."""
    with process_group():
        found = {f"{count}_batches": train(folder / f"{count}_batches", STEPS, count) for count in (1, 3)}
        for name, options in (("plain", {}), ("sharded", {"shard": True})):
            found[name] = train(folder / name, STEPS, **options)
            train(folder / f"half_{name}", HALF, **options)
        for half in ("plain", "sharded"):
            for name, options in (("plain", {}), ("sharded", {"shard": True})):
                copy = folder / f"{half}_to_{name}"
                if rank() == 0:
                    shutil.copytree(folder / f"half_{half}", copy)
                torch.distributed.barrier()
                found[copy.name] = train(copy, STEPS, None, **options)
        refused = [message(lambda: train(folder / ("plain" if rank() else "nowhere"), STEPS)),
                   message(lambda: train(folder / "odd", STEPS, 3, shard=True))]
        if rank() == 0:
            (folder / "refused.txt").write_text("\n".join(refused))
            for name, weights in found.items():
                torch.save(weights, folder / f"{name}.pt")


def message(work: Callable[[], object]) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return "done"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               __file__, str(folder)]
    subprocess.run(command, check=True, timeout=600,
                   env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, Tensor]:
    """Of an unbroken run of one rank, with the same two batches per step."""
    return train(tmp_path_factory.mktemp("one"), STEPS)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_two_ranks_train_as_one(trained, expected, name):
    assert_same(torch.load(trained / f"{name}.pt"), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_two_ranks_share_any_number_of_batches(trained, count, tmp_path):
    assert_same(torch.load(trained / f"{count}_batches.pt"), train(tmp_path, STEPS, count))


def test_ranks_refuse_checkpoints_that_differ_and_batches_that_sharding_cannot_share(trained):
    differing, odd = (trained / "refused.txt").read_text().splitlines()
    assert f"has the checkpoints none, checkpoint-{STEPS}, rank by rank; allowed: a folder" in differing
    assert odd == "batches=3 on 2 ranks with shard=True; allowed: multiples of 2"


@pytest.mark.parametrize("name", ["plain_to_plain", "plain_to_sharded", "sharded_to_plain",
                                  "sharded_to_sharded"])
def test_two_ranks_go_on_from_a_checkpoint_of_two(trained, expected, name):
    assert_same(torch.load(trained / f"{name}.pt"), expected)


@pytest.mark.parametrize("half", ["half_plain", "half_sharded"])
def test_one_rank_goes_on_where_two_ranks_stopped(trained, expected, half, tmp_path):
    shutil.copytree(trained / half, tmp_path / half)
    assert_same(train(tmp_path / half, STEPS, None, shard=half == "half_sharded"), expected)
    assert [path.name for path in (tmp_path / half).glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]


def test_a_checkpoint_of_another_number_of_batches_is_refused(trained):
    with pytest.raises(ValueError, match="batches=1, but 2 when .* was written; allowed: 2, None"):
        TrainingRun(net := Net(), net, lambda index: None, LoopConfig(steps=9, lr=1, batches=1),
                    trained / "plain")


def test_a_module_without_units_is_not_sharded():
    from opensora.training.sharding import shard

    with pytest.raises(ValueError, match="shard=True for Linear, which has no units.*allowed: False"):
        shard(nn.Linear(1, 1))


@pytest.mark.parametrize("options, message", [
    (dict(batches=0), "batches=0; allowed: whole numbers from 1, or None"),
    (dict(log_every=0), "log_every=0; allowed: whole numbers from 1"),
    (dict(ckpt_every=0), "ckpt_every=0"), (dict(warmup=-1), "warmup=-1; allowed: whole numbers from 0"),
    (dict(lr="fast"), "lr='fast'; allowed: 0 to any number"),
    (dict(ema_decay=2), "ema_decay=2; allowed: 0 to 1"),
    (dict(shard=True, muon_lr=0.1), "muon_lr=0.1 with shard=True; allowed: None"),
])
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**{"steps": 1, "lr": 0.1, **options})


if __name__ == "__main__":
    on_two_ranks(Path(sys.argv[1]))
