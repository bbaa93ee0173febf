"""What a recorded schedule belongs to: one model at one size and length says nothing of another."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Signature:
    """model: its class, and a hash of the names and shapes of its parameters.  num_steps: of the run.
    input_shape: of one row of the model's input; for a video [C, T, H, W], so resolution and length."""

    model: str
    num_steps: int
    input_shape: tuple[int, ...]

    def differences(self, other: Signature) -> list[str]:
        """The names of the fields in which the two differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def check(self, here: Signature, what: str) -> None:
        """Raise ValueError where a run is another one than that for which `what` was made."""
        if names := self.differences(here):
            made, found = (getattr(signature, names[0]) for signature in (self, here))
            raise ValueError(f"{what} of a run with {names[0]}={made!r} in one with {found!r}; allowed: the "
                             "same, or any_signature=True")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "input_shape": list(self.input_shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Raises ValueError where something is missing or of another kind."""
        model, steps, shape = (data.get(name) for name in ("model", "num_steps", "input_shape"))
        whole = isinstance(shape, list | tuple) and all(isinstance(size, int) for size in shape)
        if not isinstance(model, str) or not isinstance(steps, int) or not whole:
            raise ValueError(f"signature={dict(data)}; allowed: a text as model, a whole number as "
                             "num_steps, a list of whole numbers as input_shape")
        return cls(model, steps, tuple(shape))


def model_name(model: nn.Module) -> str:
    """Class and architecture, the same for all weights and dtypes: `STDiT3-0f3c9a1e`."""
    shapes = sorted((name, tuple(p.shape)) for name, p in model.named_parameters())
    return f"{type(model).__name__}-{hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]}"
