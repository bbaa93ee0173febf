"""What a run came to, and how far it is."""
from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Tally:
    """What a run came to; that of several processes is the sum."""

    videos: int = 0
    failed: int = 0
    existing: int = 0
    denoise_seconds: float = 0.0
    computed: int = 0
    steps: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def line(self, seconds: float, save_dir: str) -> str:
        parts = [f"{self.videos} video{'s' * (self.videos != 1)} in {seconds:.1f} s",
                 f"denoising {self.denoise_seconds:.1f} s", f"computed {self.computed} of {self.steps} steps"]
        parts += [f"{self.existing} existing kept"] * bool(self.existing)
        parts += [f"{self.failed} failed"] * bool(self.failed)
        return f"{', '.join(parts)}: {save_dir}"

    def progress(self, seconds: float, planned: int) -> str:
        """seconds: since the start.  planned: samples to make, those that fail included."""
        done = self.videos + self.failed
        parts = [f"{self.videos} of {planned} videos", *[f"{self.failed} failed"] * bool(self.failed)]
        if 0 < done < planned:
            parts += [f"{timedelta(seconds=round(seconds / done * (planned - done)))} left"]
        return ", ".join(parts)
