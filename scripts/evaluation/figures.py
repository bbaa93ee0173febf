"""The pictures of an evaluation: quality against speed, and which steps each method computes."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

PALETTE = ("#1f6fb4", "#d1495b", "#2a9d6f", "#e08e1b", "#7b5ea7", "#3aa6b9", "#8c6d46", "#c45ab3", "#8fae1b",
           "#3b3f8f", "#e58fa5", "#5f7f8c")
MARKERS = "osD^vPX"  # 7 for 12 colours: the pair comes again after 84 families
REFERENCE = "#8a929a"
COMPUTED, PARTLY, REUSED = "#1f6fb4", "#e08e1b", "#eceff2"
# scikit-image gives two equal videos an infinite PSNR, other code caps it at 100
EQUAL_PSNR = 100.0
# of a label, in points from what it names: the first that covers least is taken
OFFSETS = ((5, 3), (5, -3), (-5, 3), (-5, -3), (0, 9), (0, -9), (10, 12), (10, -12), (-10, 12), (-10, -12))


class Point(NamedTuple):
    """A method on the plane of speed and quality; setting: what its name says beyond its family."""

    speedup: float
    psnr: float
    interval: float
    setting: str


def mean_psnr(method: Mapping[str, Any]) -> float | None:
    """In dB; None for the reference, which has none or that of a video with itself."""
    psnr = method["mean"].get("psnr")
    return psnr if psnr is not None and psnr < EQUAL_PSNR else None


def family_colours(results: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each family, in order of their methods; grey for a family of references alone."""
    methods = results["methods"].values()
    measured = dict.fromkeys(m["family"] for m in methods if mean_psnr(m) is not None)
    colours = {family: PALETTE[i % len(PALETTE)] for i, family in enumerate(measured)}
    return {m["family"]: colours.get(m["family"], REFERENCE) for m in methods}


def draw_quality_latency(results: Mapping[str, Any], path: Path) -> None:
    """Mean PSNR with its 95 % interval over the speed-up of denoising, one curve per family, as a PNG."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes, colours, curves = figure.subplots(), family_colours(results), family_curves(results)
    for i, (family, points) in enumerate(curves.items()):
        speedups, psnrs, intervals, _ = zip(*points, strict=True)
        axes.errorbar(speedups, psnrs, intervals, label=plain(family), color=colours[family], lw=1.5,
                      marker=MARKERS[i % len(MARKERS)], ms=5.5, mec="white", mew=0.6, elinewidth=1, capsize=2)
    axes.set(xlabel="speed-up of denoising", ylabel="PSNR to the uncached video, dB")
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1, y=0.1)
    axes.grid(color="0.92", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        figure.legend(loc="outside center right", frameon=False, fontsize=8)
    label_points(axes, [(colours[family], points) for family, points in curves.items()])
    figure.savefig(path, dpi=200)


def family_curves(results: Mapping[str, Any]) -> dict[str, list[Point]]:
    """For each family its methods that have both numbers, by speed-up."""
    curves: dict[str, list[Point]] = {}
    for name, method in results["methods"].items():
        family, psnr, speedup = method["family"], mean_psnr(method), method["mean"].get("speedup")
        if psnr is not None and speedup is not None:
            # "2.5x" of "TeaCache, 2.5x": the legend says the rest
            setting = name.removeprefix(family).strip(" ,:")
            curves.setdefault(family, []).append(
                Point(speedup, psnr, method["interval"].get("psnr", 0.0), setting))
    return {family: sorted(points) for family, points in curves.items()}


def label_points(axes: Axes, curves: list[tuple[str, list[Point]]]) -> None:
    """Each point's setting beside it in its curve's colour, inside the axes where it covers nothing."""
    axes.figure.draw_without_rendering()  # lays out, so that places are known
    taken = [box for _, points in curves for box in drawn_boxes(axes, points)]
    for colour, points in curves:
        for point in points:
            tries = [axes.annotate(fill(point.setting, 26), (point.speedup, point.psnr), (dx, dy),
                                   textcoords="offset points", fontsize=7.5, color=colour, parse_math=False,
                                   ha=("center", "left", "right")[int(np.sign(dx))],
                                   va="bottom" if dy > 0 else "top", in_layout=False) for dx, dy in OFFSETS]
            boxes = [label.get_window_extent() for label in tries]
            costs = [box.count_overlaps(taken) + 100 * outside(box, axes.bbox) for box in boxes]
            best = tries[costs.index(min(costs))]
            taken.append(best.get_window_extent())
            for label in tries:
                if label is not best:
                    label.remove()


def drawn_boxes(axes: Axes, points: list[Point]) -> list[Bbox]:
    """Small boxes, in pixels, that cover a curve and its intervals."""
    x, y, interval = np.array([point[:3] for point in points]).T
    along = np.linspace(0, len(points) - 1, 16 * len(points))
    curve = np.stack([np.interp(along, range(len(points)), values) for values in (x, y)], axis=-1)
    bars = [(at, middle + part * half) for at, middle, half in zip(x, y, interval, strict=True)
            for part in np.linspace(-1, 1, 7)]
    return [Bbox.from_bounds(left - 4, bottom - 4, 8, 8)
            for left, bottom in axes.transData.transform(np.concatenate([curve, bars]))]


def outside(box: Bbox, frame: Bbox) -> bool:
    return not (frame.contains(*box.min) and frame.contains(*box.max))


def draw_timelines(results: Mapping[str, Any], path: Path) -> None:
    """A row per method and a cell per step, darker the more videos computed it, as a PNG.

    A method with another number of steps than the run's has its cells over the same width.
    """
    methods, steps = results["methods"], results["num_steps"]
    figure = Figure(figsize=(8.4, 1.25 + 0.27 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for row, (name, method) in enumerate(methods.items()):
        videos = [video for video in results["videos"] if video["method"] == name]
        computed, partly = (step_shares(videos, key, method["num_steps"])
                            for key in ("computed_steps", "partly"))
        width = steps / method["num_steps"]
        left = np.arange(method["num_steps"]) * width
        cells = {"width": width - 0.1, "align": "edge", "snap": False}  # snapped, gaps of many steps differ
        axes.bar(left, 0.76, bottom=row - 0.38, color=shades(COMPUTED, computed), **cells)
        axes.bar(left, np.where(partly > 0, 0.38, 0), bottom=row, color=shades(PARTLY, partly), **cells)
        axes.annotate(step_counts(computed, partly), (steps, row), (6, 0), textcoords="offset points",
                      va="center_baseline", fontsize=8, annotation_clip=False)
    axes.set_yticks(range(len(methods)), [plain(fill(name, 34)) for name in methods], fontsize=8)
    axes.set(xlim=(0, steps), ylim=(len(methods) - 0.4, -0.6))
    ticks = range(0, steps, 5 if steps <= 60 else 10)
    axes.set_xticks([tick + 0.45 for tick in ticks], ticks, fontsize=8)
    axes.set_xlabel(f"denoising step, of {steps}", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    add_shade_legend(figure, any(video.get("partly") for video in results["videos"]))
    figure.savefig(path, dpi=200)


def step_shares(videos: list[Mapping[str, Any]], key: str, num_steps: int) -> np.ndarray:
    """[num_steps]: the share of the videos that have each step under `key`."""
    counts = np.zeros(num_steps)
    for video in videos:
        counts[list(video.get(key, ()))] += 1
    return counts / max(1, len(videos))


def shades(colour: str, shares: np.ndarray) -> np.ndarray:
    """[steps] -> RGB [steps, 3], from the colour of reuse at 0 to `colour` at 1."""
    return (1 - shares[:, None]) * to_rgb(REUSED) + shares[:, None] * to_rgb(colour)


def step_counts(computed: np.ndarray, partly: np.ndarray) -> str:
    counted = f"{computed.sum():.1f} of {len(computed)}"
    return f"{counted}, {partly.sum():.1f} in part" if partly.any() else counted


def add_shade_legend(figure: Figure, partly: bool) -> None:
    shares = {"computed by every video": 1.0, "by half of them": 0.5, "by none: reused": 0.0}
    shown = {text: tuple(shades(COMPUTED, np.array([share]))[0]) for text, share in shares.items()}
    if partly:
        shown["computed in part"] = to_rgb(PARTLY)
    figure.legend([Patch(color=colour) for colour in shown.values()], list(shown), loc="outside upper left",
                  ncols=len(shown), frameon=False, fontsize=8, handlelength=1, handleheight=1)


def plain(text: str) -> str:
    """For labels that matplotlib would read as mathematics between dollar signs."""
    return text.replace("$", r"\$")
