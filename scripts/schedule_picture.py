"""The caching schedule above the frames it produced: `python scripts/schedule_picture.py SAMPLE.mp4 OUT.png`.

Reads the record that scripts/inference.py wrote beside the sample.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adacache import Trace
from opensora.datasets.video_io import read_video

FRAMES = 8
COMPUTED, REUSED = "#1f6fb4", "#d9dee3"


def draw(sample: Path, out: Path) -> None:
    record_file = sample.with_suffix(".json")
    record = json.loads(record_file.read_text(encoding="utf-8"))
    video, (frames, _) = Trace.from_json(record_file)[0], read_video(sample)
    steps, computed = record["num_steps"], set(video.computed_steps)
    shown = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    aspect = frames.shape[1] / frames.shape[2]

    figure = Figure(figsize=(9, 2.6 + 9 * aspect / FRAMES), layout="constrained")
    figure.suptitle(f"“{record['prompt']}”", fontsize=11)
    rows = figure.subfigures(2, 1, height_ratios=(2.3, 9 * aspect / FRAMES + 0.3))
    distance, bar = rows[0].subplots(2, 1, sharex=True, height_ratios=(3, 1))
    distance.plot([d.step for d in video.decisions], [d.regularized_distance for d in video.decisions],
                  marker="o", ms=4, lw=1.2, color=COMPUTED)
    for d in video.decisions:
        distance.annotate(f"{d.rate}", (d.step, d.regularized_distance), (0, 6), textcoords="offset points",
                          ha="center", fontsize=8, color="0.35")
    distance.set(ylabel="distance $c$\n(label: rate)", ylim=(0, None))
    distance.margins(y=0.3)
    bar.bar(range(steps), 1, width=0.9, color=[COMPUTED if s in computed else REUSED for s in range(steps)])
    bar.set(yticks=[], xlim=(-0.6, steps - 0.4),
            xlabel=f"denoising step: {len(computed)} of {steps} computed (blue), the others reuse (grey)")
    for axes in (distance, bar):
        axes.spines[["top", "right"]].set_visible(False)
    for axes, t in zip(rows[1].subplots(1, FRAMES), shown, strict=True):
        axes.imshow(frames[t].numpy())
        axes.set_axis_off()
        axes.set_title(f"frame {t}", fontsize=8)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(f"error: {len(sys.argv) - 1} arguments; allowed: SAMPLE.mp4 OUT.png", file=sys.stderr)
        sys.exit(2)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
