"""Start a script on several gloo ranks of this machine, and count what they send."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from bytes_sent import counted  # noqa: E402, F401


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
