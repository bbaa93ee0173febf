"""How near two runs of the same prompts and seeds are: `python scripts/compare.py UNCACHED CACHED`.

Both are folders that scripts/inference.py wrote.  Prints PSNR and SSIM of each pair of files of one name,
computed steps, and the ratio of denoising times as their records state them.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from exit_status import exit_status
from rich.console import Console
from rich.table import Table
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from opensora.datasets.video_io import read_video


def compare(first: Path, second: Path) -> tuple[float, float, int, float]:
    """PSNR in dB over all frames, mean SSIM of frames, computed steps of `second`, speed-up of denoising."""
    records = [json.loads(path.with_suffix(".json").read_text()) for path in (first, second)]
    for key in ("prompt", "seed", "num_steps", "frames"):
        if records[0][key] != records[1][key]:
            raise ValueError(f"{key} of {second} is {records[1][key]!r}; "
                             f"allowed: {records[0][key]!r}, the other's")
    a, b = (read_video(path)[0].numpy() for path in (first, second))
    ssim = np.mean([structural_similarity(x, y, channel_axis=-1) for x, y in zip(a, b, strict=True)])
    seconds = [record["seconds"]["denoise"] for record in records]
    return (peak_signal_noise_ratio(a, b), float(ssim), len(records[1]["computed_steps"]),
            seconds[0] / seconds[1])


def run(first: Path, second: Path) -> None:
    names = sorted(path.name for path in first.glob("*.mp4") if (second / path.name).exists())
    if not names:
        raise ValueError(f"{str(first)!r} and {str(second)!r} have no video of the same name; allowed: two "
                         "folders of scripts/inference.py, made from the same prompts")
    rows = [compare(first / name, second / name) for name in names]
    shown = Table("video", "PSNR, dB", "SSIM", "computed steps", "denoising speed-up")
    for name, row in [*zip(names, rows, strict=True), ("mean", tuple(np.mean(rows, axis=0)))]:
        shown.add_row(name, f"{row[0]:.1f}", f"{row[1]:.3f}", f"{row[2]:.3g}", f"{row[3]:.2f}")
    Console().print(shown)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(f"error: {len(sys.argv) - 1} arguments; allowed: UNCACHED CACHED", file=sys.stderr)
        sys.exit(2)
    sys.exit(exit_status(lambda: run(Path(sys.argv[1]), Path(sys.argv[2]))))
