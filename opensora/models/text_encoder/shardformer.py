"""A T5 encoder whose weights the ranks of a video share, through the optional package colossalai."""
from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn
from torch.distributed import ProcessGroup
from transformers import T5EncoderModel


def sharded(model: T5EncoderModel, ranks: ProcessGroup | None) -> nn.Module:
    """By colossalai's policy of tensor parallelism, with its fused kernels.

    ranks: have the same captions, each a part of the weights; None: this process has all of them.
    Raises ValueError where the package is missing or fails.
    """
    if importlib.util.find_spec("colossalai") is None:
        raise ValueError("text_encoder.shardformer=True needs the optional package colossalai; "
                         "install it or set shardformer=False")
    try:
        from colossalai.shardformer import ShardConfig, ShardFormer

        config = ShardConfig(enable_tensor_parallelism=ranks is not None, enable_jit_fused=True,
                             tensor_parallel_process_group=ranks)
        return ShardFormer(shard_config=config).optimize(model, policy())[0].requires_grad_(False)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ValueError("text_encoder.shardformer=True, but colossalai is not usable here "
                         f"({reason}); set shardformer=False") from error


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
