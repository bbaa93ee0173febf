"""A T5 encoder whose weights the ranks of a video share, through the optional package colossalai."""
from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from transformers import T5EncoderModel

from opensora.parallel import training_device

logger = logging.getLogger(__name__)


def sharded_where_wanted(load: Callable[[], T5EncoderModel], asked: bool | None,
                         ranks: ProcessGroup | None) -> tuple[nn.Module, bool]:
    """The encoder, and whether it goes through the package; see `T5Encoder`.

    Where that fails on one of the ranks, none does it, and those that failed warn.
    """
    if not (asked or asked is None and ranks is not None and importlib.util.find_spec("colossalai")):
        return load(), False
    model, failed = load(), False
    try:
        model = sharded(model, ranks)
    except Exception as error:  # whatever another version of it, or of what it needs, raises
        failed = True
        logger.warning("text_encoder.shardformer=%s: the package colossalai cannot be used (%s: %s); each "
                       "process holds all of T5's weights", asked, type(error).__name__,
                       " ".join(str(error).split())[:160])
    # what failed may have left layers half replaced
    return (load(), False) if fails_anywhere(failed, ranks) else (model, True)


def fails_anywhere(failed: bool, ranks: ProcessGroup | None) -> bool:
    if ranks is None:
        return failed
    failures = torch.tensor(float(failed), device=training_device())
    dist.all_reduce(failures, group=ranks)
    return failures.item() > 0


def sharded(model: T5EncoderModel, ranks: ProcessGroup | None) -> nn.Module:
    """By colossalai's policy of tensor parallelism, with its fused kernels.

    ranks: have the same captions, each a part of the weights; None: this process has all of them.
    """
    from colossalai.shardformer import ShardConfig, ShardFormer
    from colossalai.tensor.d_tensor.layout_converter import LayoutConverter

    config = ShardConfig(enable_tensor_parallelism=ranks is not None, enable_jit_fused=True,
                         tensor_parallel_process_group=ranks)
    model = ShardFormer(shard_config=config).optimize(model, policy())[0].requires_grad_(False)
    LayoutConverter().cached_solution.clear()  # a singleton's, which would keep the group open
    return model


def policy() -> Any:
    """The package's own, but for the gated MLP of v1.1 encoders.

    In version 0.5.0 one of its linear layers is misnamed, and the ways they are split do not fit together:
    the first two have to be split by their outputs, the last by its inputs.
    """
    from colossalai.shardformer.layer import Linear1D_Col, Linear1D_Row
    from colossalai.shardformer.policies.t5 import T5EncoderPolicy

    split = {"wi_0": Linear1D_Col, "wi_1": Linear1D_Col, "wo": Linear1D_Row}

    class Policy(T5EncoderPolicy):
        def module_policy(self) -> dict[Any, Any]:
            parts = super().module_policy()
            for kind, part in parts.items():
                if getattr(kind, "__name__", kind) != "T5DenseGatedActDense":
                    continue
                for layer in part.sub_module_replacement or ():
                    layer.suffix = layer.suffix.strip()
                    if layer.suffix in split:
                        layer.target_module = split[layer.suffix]
                        layer.kwargs.pop("gather_output", None)
            return parts

    return Policy()
