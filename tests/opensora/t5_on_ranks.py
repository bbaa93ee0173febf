"""A T5 encoder shared by the ranks of a torchrun, through colossalai; `test_t5.py` compares."""
from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from colossalai.accelerator.cpu_accelerator import CpuAccelerator

sys.path.insert(0, str(Path(__file__).parents[1]))

from torchrun import save_results  # noqa: E402

from opensora.models.text_encoder.t5 import T5Encoder  # noqa: E402
from opensora.parallel import process_group  # noqa: E402

# in version 0.5.0 a CPU has no random numbers, which every sharded layer asks for
CpuAccelerator.manual_seed = lambda self, seed: torch.manual_seed(seed)
CpuAccelerator.get_rng_state = lambda self, device=None: torch.get_rng_state()
CpuAccelerator.set_rng_state = lambda self, state, device=None: torch.set_rng_state(state)

folder = Path(sys.argv[1])
with process_group("colossalai"):
    encoder = T5Encoder(str(folder), model_max_length=8, device="cpu", shardformer=True,
                        ranks=dist.group.WORLD)
    embedded = encoder.encode(["a red circle", "a blue square moves left ."])["y"]
    save_results({"y": embedded, "weights": sum(p.numel() for p in encoder.model.parameters())}, folder)
