"""One video as a method made it, with all that is measured of it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Made:
    """video: [3, F, H, W] in [-1, 1], on the CPU.  seconds: its share of its batch's, by stage and in total.
    computed_steps: those in which every block was computed; partly: those in which something was.
    cache_bytes: held at most, its share of its batch's.  peak_bytes: of the device's memory; None on a CPU.
    flops: of denoising, counted; None where they were not.
    """

    prompt: str
    video: Tensor
    seconds: Mapping[str, float]
    num_steps: int
    computed_steps: tuple[int, ...]
    partly: tuple[int, ...] = ()
    cache_bytes: float = 0
    peak_bytes: float | None = None
    flops: float | None = None

    def frames(self) -> np.ndarray:
        """[F, H, W, 3] in [-1, 1]."""
        return self.video.clamp(-1, 1).permute(1, 2, 3, 0).numpy()
