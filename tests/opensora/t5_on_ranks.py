"""A T5 encoder shared by the ranks of a torchrun, through colossalai; `test_t5.py` compares."""
from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

import colossalai_on_cpu  # noqa: E402, F401
from torchrun import save_results  # noqa: E402

from opensora.models.text_encoder.t5 import T5Encoder  # noqa: E402
from opensora.parallel import process_group  # noqa: E402

folder = Path(sys.argv[1])
with process_group("colossalai"):
    encoder = T5Encoder(str(folder), model_max_length=8, device="cpu", shardformer=True,
                        ranks=dist.group.WORLD)
    embedded = encoder.encode(["a red circle", "a blue square moves left ."])["y"]
    save_results({"y": embedded, "weights": sum(p.numel() for p in encoder.model.parameters())}, folder)
