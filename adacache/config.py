"""What a user may choose.  Frozen and checked: a wrong value is an error here, at the door."""
from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from adacache.codebook import PRESETS, Codebook, Preset, check_preset, nearest_steps
from adacache.metric import METRICS
from adacache.schedule import FixedSchedule
from adacache.signature import Signature

# number of steps: first and last step with motion regularization, counted from 1
PUBLISHED_WINDOWS = {30: (4, 26), 100: (10, 90)}


@dataclass(frozen=True, kw_only=True)
class MoRegConfig:
    """Motion regularization; defaults as published.

    strides: distances between compared frames; with one that leaves no pair, as of a picture, m is no number,
    and steps of the window are computed, as published.  scale, power: m = (score / scale)^power.
    gradient: weight of the change of m; 0 leaves it out.
    window: first and last step where motion counts, counted from 1.  None: as published for the number of
    steps; for a number without one, the same part of the run as that of the nearest number.
    """

    strides: tuple[int, ...] = (1,)
    window: tuple[int, int] | None = None
    scale: float = 0.385
    power: float = 8
    gradient: float = 10

    def __post_init__(self) -> None:
        as_tuple(self, "strides")
        if not self.strides or not all(is_whole(stride, 1) for stride in self.strides):
            raise ValueError(f"moreg.strides={self.strides}; allowed: whole numbers of frames from 1")
        for name in ("scale", "power"):
            if not is_number(value := getattr(self, name)) or not value > 0:
                raise ValueError(f"moreg.{name}={value!r}; allowed: a number above 0")
        if not is_number(self.gradient) or not self.gradient >= 0:
            raise ValueError(f"moreg.gradient={self.gradient!r}; allowed: a number from 0")
        if self.window is not None:
            as_tuple(self, "window")
            whole = all(is_whole(step, 1) for step in self.window)
            if len(self.window) != 2 or not whole or self.window[0] > self.window[1]:
                raise ValueError(f"moreg.window={self.window}; allowed: (first, last) step, counted from 1")

    def window_for(self, num_steps: int) -> tuple[int, int]:
        """First and last step where motion counts, counted from 1."""
        if self.window is not None:
            return self.window
        nearest = nearest_steps(PUBLISHED_WINDOWS, num_steps)
        first, last = PUBLISHED_WINDOWS[nearest]
        return max(1, round(first * num_steps / nearest)), round(last * num_steps / nearest)

    def applies_to(self, step: int, num_steps: int) -> bool:
        """step: from 0."""
        first, last = self.window_for(num_steps)
        return first <= step + 1 <= last

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MoRegConfig:
        """Raises TypeError for an unknown key, ValueError for a value that is not allowed."""
        return cls(**known_keys(field_names(cls), values, "adacache.moreg"))


@dataclass(frozen=True, kw_only=True)
class AdaCacheConfig:
    """How a run is cached.

    codebook: the name of a preset (fast, slow, published-fast, published-slow), which follows the number of
    steps, or (threshold, rate) pairs, kept as they are.
    probes: residuals whose change is measured, as path of the block and name of the residual.
    metric: l1, l2 or cosine.
    moreg: None leaves motion out.
    granularity: "stack" keeps one residual, the sum over all blocks; "block" keeps those of every block, as
    published.
    decide: "video", a schedule for each video, whatever else is in the batch; "row", one for each row of the
    batch; "batch", one for all.  None: as the recorded schedule; otherwise "batch" with a published preset,
    and "video" without.
    rows_per_video: 2: conditional and unconditional rows in one call, all of the first kind before those of
    the second, as samplers with classifier-free guidance make it.  1: without guidance.  Matters to "video",
    and to forecast and guard, which look at both rows together (with "row" at each by itself).
    forecast: 0 adds the stored residual as it is; 1 or 2 extrapolate it by that order, damped by how far the
    last forecast held (`adacache.forecast`), for one more stored tensor each.  None: as the preset, or as the
    recorded schedule; otherwise 0.
    guard: largest relative error of the stack's residual, after guidance at a scale of 5, to be expected on a
    reused step, judged by that at the last computed one; it caps the rate, and the last two steps are then
    computed only where they are due.  inf: no cap.  None: as the preset; otherwise no cap.
    recompute_on: arguments of the model's forward, such as Open-Sora's frame mask.  Where one is not what it
    was when the residuals were stored, the step is computed.  None: x_mask, or with a published preset none.
    schedule: computed steps known beforehand; what concerns decisions (the codebook's thresholds, guard,
    probes, metric, moreg) then plays no part, nor does recompute_on in the replay of a run.
    signature: of the runs for which these settings were calibrated; another is refused.
    any_signature: take a recorded schedule and calibrated settings also in a run of another model, size or
    length.
    num_steps: the number of steps for which these settings were made; None: any.
    """

    codebook: str | Codebook = "fast"
    probes: tuple[str, ...] = ("temporal_blocks.13.attn",)
    metric: str = "l1"
    moreg: MoRegConfig | None = None
    granularity: str = "stack"
    decide: str | None = None
    rows_per_video: int = 2
    forecast: int | None = None
    guard: float | None = None
    recompute_on: tuple[str, ...] | None = None
    schedule: FixedSchedule | None = None
    signature: Signature | None = None
    any_signature: bool = False
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.codebook, str):
            check_preset(self.codebook)
        elif not isinstance(self.codebook, Codebook):
            object.__setattr__(self, "codebook", Codebook(self.codebook))
        one_of("metric", self.metric, METRICS)
        one_of("granularity", self.granularity, ("stack", "block"))
        if self.decide is not None:
            one_of("decide", self.decide, ("video", "row", "batch"))
        if self.forecast is not None and (not is_whole(self.forecast, 0) or self.forecast > 2):
            raise ValueError(f"forecast={self.forecast!r}; allowed: None, 0, 1, 2")
        if self.guard is not None and (not is_number(self.guard) or not self.guard > 0):
            raise ValueError(f"guard={self.guard!r}; allowed: None, or a number above 0")
        if self.granularity == "block" and (self.forecast or self.guard not in (None, math.inf)):
            raise ValueError("forecast and guard look at the stack's residual; allowed: granularity='stack'")
        if not isinstance(self.any_signature, bool):
            raise ValueError(f"any_signature={self.any_signature!r}; allowed: True, False")
        none_or("moreg", self.moreg, MoRegConfig)
        none_or("schedule", self.schedule, FixedSchedule)
        none_or("signature", self.signature, Signature)
        as_tuple(self, "probes")
        if not self.probes or not all(isinstance(probe, str) for probe in self.probes):
            raise ValueError(f"probes={self.probes}; allowed: paths such as temporal_blocks.13.attn")
        if len(set(self.probes)) < len(self.probes):
            raise ValueError(f"probes={self.probes}; allowed: each once")
        if self.recompute_on is not None:
            as_tuple(self, "recompute_on")
        if not all(isinstance(name, str) for name in self.recompute_on or ()):
            raise ValueError(f"recompute_on={self.recompute_on}; allowed: names of arguments of forward")
        if not is_whole(self.rows_per_video, 1):
            raise ValueError(f"rows_per_video={self.rows_per_video!r}; allowed: whole numbers from 1")
        if self.num_steps is not None and not is_whole(self.num_steps, 1):
            raise ValueError(f"num_steps={self.num_steps!r}; allowed: whole numbers from 1, or None")

    def resolved(self) -> AdaCacheConfig:
        """With everything said that None leaves to the preset, or to the recorded schedule.

        Forecast and guard look at the stack's residual: by block there is neither, unless asked for.
        Raises ValueError where a schedule was recorded with a forecast that is not to be had.
        """
        preset = PRESETS[self.codebook] if isinstance(self.codebook, str) else Preset({})
        order, guard = preset.forecast, preset.guard
        decide = "batch" if preset.as_published else "video"
        if self.schedule is not None:
            order, guard = self.schedule.forecast, math.inf
            decide = "row" if self.schedule.rows > 1 else "video" if self.schedule.by_video else decide
            if order and self.granularity == "block" and self.forecast is None:
                raise ValueError(f"schedule of a run with forecast={order} and granularity='block'; allowed: "
                                 "granularity='stack', or forecast=0")
        if self.granularity == "block":
            order, guard = 0, math.inf
        given = {"forecast": order, "guard": guard, "decide": decide,
                 "recompute_on": () if preset.as_published else ("x_mask",)}
        return replace(self, **{k: v for k, v in given.items() if getattr(self, k) is None})

    def codebook_for(self, num_steps: int) -> Codebook:
        return Codebook.preset(self.codebook, num_steps) if isinstance(self.codebook, str) else self.codebook

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdaCacheConfig:
        """From the `adacache = dict(...)` of a config file; moreg may be a dict, schedule a trace's file.

        Raises TypeError for an unknown key, ValueError for a value that is not allowed, FileNotFoundError for
        a file that is not there.
        """
        values = known_keys(field_names(cls), values, "adacache")
        if isinstance(values.get("moreg"), Mapping):
            values["moreg"] = MoRegConfig.from_dict(values["moreg"])
        if isinstance(values.get("schedule"), str | Mapping):
            values["schedule"] = FixedSchedule.from_json(values["schedule"])
        if isinstance(values.get("signature"), Mapping):
            values["signature"] = Signature.from_json(values["signature"])
        return cls(**values)

    @classmethod
    def from_published(
        cls, published: Mapping[str, Any] | None = None, /, **more: Any
    ) -> AdaCacheConfig | None:
        """From the published code's keys, as a mapping or as keywords; None where `do_cache` is off.

        All as published: the residuals of every block, one schedule for the batch, no look at the frame mask.
        Raises TypeError for an unknown key, ValueError for a value that is not allowed.
        """
        chosen = known_keys(PUBLISHED_KEYS, {**(published or {}), **more}, "published settings")
        given = {**PUBLISHED_DEFAULTS, **chosen}
        if not given["do_cache"]:
            return None
        return cls(
            codebook=Codebook(given["codebook"]),
            probes=published_probes(given["cache_res"], given["cache_loc"]),
            moreg=published_moreg(given) if given["apply_moreg"] else None,
            granularity="block", decide="batch", recompute_on=(), num_steps=given["num_sampling_steps"],
        )


# the published code's keys, with its defaults; only the number of steps has none, for the run has it already
PUBLISHED_DEFAULTS: Mapping[str, Any] = MappingProxyType({
    "do_cache": False, "cache_res": "t-attn", "cache_loc": (13,),
    "codebook": ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.00, 3)),
    "apply_moreg": False, "moreg_strides": (1,), "moreg_steps": (10, 90), "moreg_hyp": (0.385, 8, 1, 2),
    "mograd_mul": 10, "num_sampling_steps": None,
})
PUBLISHED_KEYS = tuple(PUBLISHED_DEFAULTS)

# cache_res: the probes at each depth of cache_loc
PUBLISHED_PROBES = {
    "t-attn": ("temporal_blocks.{}.attn",),
    "s-attn": ("spatial_blocks.{}.attn",),
    "ca-mlp": ("spatial_blocks.{}.cross_mlp", "temporal_blocks.{}.cross_mlp"),
}


def published_probes(cache_res: str, cache_loc: Iterable[int]) -> tuple[str, ...]:
    one_of("cache_res", cache_res, PUBLISHED_PROBES)
    if not is_list(cache_loc, lambda depth: is_whole(depth, 0)) or not cache_loc:
        raise ValueError(f"cache_loc={cache_loc!r}; allowed: a list of depths, from 0")
    return tuple(probe.format(depth) for depth in cache_loc for probe in PUBLISHED_PROBES[cache_res])


def published_moreg(given: Mapping[str, Any]) -> MoRegConfig:
    """moreg_hyp: scale, power and divisor of m = (score / scale)^power / divisor, and one without meaning."""
    allowed = {
        "moreg_hyp": ("scale, power and divisor, numbers above 0", lambda v: len(v) >= 3 and min(v[:3]) > 0),
        "moreg_steps": ("first and last step, from 1", lambda v: len(v) == 2 and 1 <= v[0] <= v[1]),
        "moreg_strides": ("whole numbers of frames from 1", lambda v: v and min(v) >= 1),
    }
    for key, (text, fits) in allowed.items():
        if not (is_list(given[key], is_number) and fits(given[key])):
            raise ValueError(f"{key}={given[key]!r}; allowed: {text}")
    if not is_number(given["mograd_mul"]) or given["mograd_mul"] < 0:
        raise ValueError(f"mograd_mul={given['mograd_mul']!r}; allowed: a number from 0")
    scale, power, divisor = given["moreg_hyp"][:3]
    return MoRegConfig(strides=given["moreg_strides"], window=given["moreg_steps"],
                       scale=scale * divisor ** (1 / power), power=power, gradient=given["mograd_mul"])


def field_names(config: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(config))


def known_keys(known: tuple[str, ...], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of `values`.  Raises TypeError for the first key that is not known, naming near ones."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3) or known
            raise TypeError(f"{where}: unknown key {key!r}; allowed: {', '.join(near)}")
    return dict(values)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    if value not in tuple(allowed):
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(allowed)}")


def none_or(name: str, value: Any, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name}={value!r}; allowed: None, or a {kind.__name__}")


def as_tuple(config: Any, name: str) -> None:
    """Config files bring lists."""
    value = getattr(config, name)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r}; allowed: a list")
    object.__setattr__(config, name, tuple(value))


def is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(fits(item) for item in value)


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
