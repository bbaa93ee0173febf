"""A T5 encoder whose weights the ranks of a video share, through the optional package colossalai."""
from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from transformers import T5EncoderModel

from opensora.parallel import own_device, total

logger = logging.getLogger(__name__)


def sharded_where_wanted(load: Callable[[], T5EncoderModel], asked: bool | None,
                         ranks: ProcessGroup | None) -> tuple[nn.Module, bool]:
    """The encoder, and whether it goes through the package; see `T5Encoder`.

    Where one of the ranks cannot import the package, or it fails at this model, none goes through it, and
    those that were to warn.  What a rank may meet alone, want of memory, is raised: others wait in the
    package's collectives then.
    """
    if asked is False or asked is None and ranks is None:
        return load(), False
    failure = failure_of(policy)
    if total(bool(failure), ranks, own_device()):
        if asked or importlib.util.find_spec("colossalai") is not None:
            warn(asked, failure or "another rank has none")
        return load(), False
    model = load()
    failure = failure_of(partial(sharded, model, ranks))
    if total(bool(failure), ranks, own_device()) == 0:
        return model, True
    warn(asked, failure or "it fails on another rank")
    del model  # layers may be half replaced
    return load(), False


def failure_of(work: Callable[[], object]) -> str:
    """Whatever another version of the package, or of what it needs, raises; without one, nothing."""
    try:
        work()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return ""


def warn(asked: bool | None, reason: str) -> None:
    logger.warning("text_encoder.shardformer=%s: each process holds all of T5's weights, for the package "
                   "colossalai cannot be used (%s)", asked, reason)


def sharded(model: T5EncoderModel, ranks: ProcessGroup | None) -> nn.Module:
    """The same module, by colossalai's policy of tensor parallelism, with its fused kernels.

    ranks: have the same captions, each a part of the weights; None: this process has all of them.
    """
    from colossalai.shardformer import ShardConfig, ShardFormer
    from colossalai.shardformer.layer.utils import Randomizer
    from colossalai.tensor.d_tensor.layout_converter import LayoutConverter

    config = ShardConfig(enable_tensor_parallelism=ranks is not None, enable_jit_fused=True,
                         tensor_parallel_process_group=ranks)
    Randomizer.reset_index()  # ranks have to agree on it, which they may not after a failure
    try:
        return ShardFormer(shard_config=config).optimize(model, policy())[0].requires_grad_(False)
    finally:
        LayoutConverter().cached_solution.clear()  # a singleton's, which would keep the group open


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
