"""Models whose weights, gradients, averages and optimiser states do not fit each rank: FSDP2."""
from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def shard(module: nn.Module) -> None:
    """Split every parameter over all ranks; they are whole only while a unit computes.

    Raises ValueError for a module without `units()`, which names the parts that compute one after another.
    """
    if not hasattr(module, "units"):
        raise ValueError(f"shard=True for {type(module).__name__}, which has no units(); allowed: False")
    from torch.distributed.fsdp import fully_shard  # since torch 2.6; all else runs on 2.5, too

    for unit in module.units():
        fully_shard(unit)
    fully_shard(module)


def whole(value: Tensor) -> Tensor:
    """A sharded tensor in one piece; all ranks have to ask.  Others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value
