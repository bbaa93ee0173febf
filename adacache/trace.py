"""The record of a run: computed steps and decisions.  As data, as lines for a terminal, as a picture."""
from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from adacache.signature import Signature


@dataclass(frozen=True)
class Decision:
    """What was found at a computed step, and the rate chosen there.

    step: from 0.  distance: c, per step, mean over the probes.  motion: m; 1 outside MoReg's window.
    motion_gradient: g.  regularized_distance: c (m + |g|), which the codebook turns into the rate.
    rate: steps to the next computed one.
    error: of what reuse or forecast would have added at this step, relative to the true residual, both after
    guidance at a scale of 5; None where neither forecast nor guard asked for it.
    weights: w1, w2 of the forecasts that follow, mean over rows.
    """

    step: int
    distance: float
    motion: float
    motion_gradient: float
    regularized_distance: float
    rate: int
    error: float | None = None
    weights: tuple[float, ...] = ()


@dataclass
class VideoTrace:
    """The computed steps and the decisions of the rows that share a schedule, in order.

    changed_steps: those at which arguments that `recompute_on` names were other ones than before; None in
    records that do not tell.
    """

    computed_steps: list[int] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    changed_steps: list[int] | None = field(default_factory=list)


@dataclass
class Trace:
    """One entry per schedule of the run: of each video, or of the whole batch with `decide="batch"`.

    signature: of the run; None where it is not known.  forecast: the order, 0 for plain reuse.
    rows: entries of each video, above 1 with `decide="row"`: those of all first rows come first.
    """

    num_steps: int
    videos: list[VideoTrace]
    signature: Signature | None = None
    forecast: int = 0
    rows: int = 1

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> VideoTrace:
        return self.videos[index]

    def of_video(self, index: int) -> VideoTrace:
        """A video's entry, or the one that it shares with the whole batch; of several rows, what was done for
        any of them."""
        if self.rows > 1:
            return merged(self.videos[index :: len(self.videos) // self.rows])
        return self.videos[index if len(self.videos) > 1 else 0]

    def __iter__(self) -> Iterator[VideoTrace]:
        return iter(self.videos)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`.  A number that is NaN or infinite, which JSON has not, becomes null."""
        signature = {} if self.signature is None else {"signature": self.signature.to_json()}
        forecast = {"forecast": self.forecast} if self.forecast else {}
        rows = {"rows": self.rows} if self.rows > 1 else {}
        return {"num_steps": self.num_steps, **signature, **forecast, **rows,
                "videos": [video_to_json(video) for video in self.videos]}

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> Trace:
        """From `to_json`'s data, or the record beside a sample (one video).  source: the data, or their file.

        Raises FileNotFoundError, or ValueError for data that are no trace.
        """
        given = isinstance(source, Mapping)
        name = "its data" if given else repr(str(source))
        try:
            data = source if given else json.loads(Path(source).read_text(encoding="utf-8"))
            if (clips := len(data.get("clips", ()))) > 1:
                raise ValueError(f"a sample of {clips} clips, each with a schedule of its own")
            signature = data.get("signature")
            return cls(data["num_steps"], [video_from(video) for video in data.get("videos", [data])],
                       None if signature is None else Signature.from_json(signature),
                       data.get("forecast", 0), data.get("rows", 1))
        except FileNotFoundError:
            raise FileNotFoundError(f"no trace: {name} does not exist; allowed: a run's JSON file") from None
        except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
            raise ValueError(f"no trace: {name} ({type(error).__name__}: {error}); allowed: num_steps and "
                             "computed_steps, as of a run") from error

    def timeline(self) -> str:
        """One line per video: # a computed step, . a reused one."""
        names = self.names()
        width = max(map(len, names), default=0)
        return "\n".join(
            f"{name:<{width}}  {marks(v, self.num_steps)}  {len(v.computed_steps)} of {self.num_steps}"
            for name, v in zip(names, self, strict=True)
        )

    def names(self) -> list[str]:
        """Of the entries."""
        videos = len(self) // self.rows
        width = len(str(videos - 1))
        return [f"video {i % videos:>{width}}" + (f" row {i // videos}" if self.rows > 1 else "")
                for i in range(len(self))]

    def plot(self, path: str | Path) -> None:
        """Distance, motion factor, rate and computed steps along the steps, as a PNG.  Needs matplotlib."""
        # here, for it takes a second and nothing else needs it; Figure alone, which asks for no window system
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 6.4), layout="constrained")
        axes = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 2, 0.6 + 0.3 * len(self)))
        draw(self, *axes)
        figure.savefig(path, dpi=200)


def merged(rows: Sequence[VideoTrace]) -> VideoTrace:
    changed = [row.changed_steps for row in rows if row.changed_steps is not None]
    return VideoTrace(sorted({step for row in rows for step in row.computed_steps}),
                      sorted((d for row in rows for d in row.decisions), key=lambda d: d.step),
                      sorted({step for steps in changed for step in steps}) if changed else None)


def video_to_json(video: VideoTrace) -> dict[str, Any]:
    changed = {} if video.changed_steps is None else {"changed_steps": list(video.changed_steps)}
    return {"computed_steps": list(video.computed_steps), **changed,
            "decisions": [decision_to_json(d) for d in video.decisions]}


def video_from(data: Mapping[str, Any]) -> VideoTrace:
    changed = data.get("changed_steps")
    return VideoTrace(list(data["computed_steps"]), [decision_from(d) for d in data.get("decisions", [])],
                      None if changed is None else list(changed))


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """What was not asked for, the error and the weights, is left out."""
    data = {name: value for name, value in asdict(decision).items() if value not in (None, ())}
    return {name: list(value) if isinstance(value, tuple) else finite_or_none(value)
            for name, value in data.items()}


def decision_from(data: Mapping[str, Any]) -> Decision:
    found = {f.name: data[f.name] for f in fields(Decision) if f.name in data or f.default is MISSING}
    weights = tuple(found.pop("weights", ()))
    return Decision(**{name: math.nan if value is None else value for name, value in found.items()},
                    weights=weights)


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def marks(video: VideoTrace, num_steps: int) -> str:
    computed = set(video.computed_steps)
    return "".join("#" if step in computed else "." for step in range(num_steps))


def draw(trace: Trace, distances: Any, motions: Any, rates: Any, steps: Any) -> None:
    """On four matplotlib axes, one colour for each video."""
    for index, video in enumerate(trace):
        at = [d.step for d in video.decisions]
        solid = {"marker": "o", "ms": 3, "lw": 1, "color": f"C{index}"}
        dashed = {**solid, "marker": "s", "ls": "--", "alpha": 0.6}
        distances.plot(at, [d.distance for d in video.decisions], **solid, label="distance $c$")
        distances.plot(at, [d.regularized_distance for d in video.decisions], **dashed, label="$c\\,(m+|g|)$")
        motions.plot(at, [d.motion for d in video.decisions], **solid, label="motion factor $m$")
        motions.plot(at, [d.motion_gradient for d in video.decisions], **dashed, label="motion gradient $g$")
        rates.plot(at, [d.rate for d in video.decisions], **solid, ds="steps-post")
        for step in range(trace.num_steps):
            colour = f"C{index}" if step in video.computed_steps else "0.9"
            steps.barh(index, 0.9, left=step - 0.45, height=0.8, color=colour)
    distances.set_ylabel("distance")
    motions.set_ylabel("motion")
    rates.set_ylabel("cache rate")
    for axis in (distances, rates):
        axis.set_ylim(bottom=0)
    steps.set_yticks(range(len(trace)), [f"{name}: {len(video.computed_steps)}"
                                         for name, video in zip(trace.names(), trace, strict=True)])
    steps.set_xlabel("denoising step (bars: computed in colour, reused in grey)")
    for axis in (distances, motions):
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[:2], labels[:2], frameon=False, fontsize=8)
    for axis in (distances, motions, rates, steps):
        axis.spines[["top", "right"]].set_visible(False)
