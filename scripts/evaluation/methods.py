"""The methods of an evaluation: what a config says of each, checked, and how a denoising run is opened."""
from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from cache_choice import check_opens, checked_settings, open_cache, read_settings
from rivals import open_rival, read_rival
from torch import nn

from adacache import AdaCacheConfig, FixedSchedule
from adacache.config import is_number
from evaluation.metrics import METRICS
from opensora.utils.config import check_keys

KEYS = ("steps", "adacache", "rival", "against", "replay", "family", "published")


@dataclass(frozen=True, kw_only=True)
class Method:
    """steps: of the sampler.  cache: settings of AdaCache.  rival: those of another cache.  Without both each
    step is computed.
    against: the method to be compared with, video by video.  replay: the method whose computed steps it
    takes, video by video.  family: methods of one family share a curve.  published: numbers of a paper, by
    metric, to stand beside those measured.
    """

    name: str
    steps: int
    cache: AdaCacheConfig | None = None
    rival: Any = None
    against: str | None = None
    replay: str | None = None
    family: str = ""
    published: Mapping[str, float] | None = None

    @property
    def slug(self) -> str:
        """The name as a folder: `TeaCache, 2.5x` -> `teacache-2.5x`."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")

    def is_reference(self, steps: int) -> bool:
        """Whether it computes every one of the config's steps."""
        return self.cache is None and self.rival is None and self.steps == steps

    def opened(self, model: nn.Module, num_steps: int,
               schedules: FixedSchedule | None = None) -> AbstractContextManager[Any]:
        """The context of one denoising run.  schedules: of the replayed method."""
        if self.rival is not None:
            return open_rival(self.rival, model, num_steps)
        cache = self.cache if schedules is None else replace(self.cache, schedule=schedules)
        return open_cache(cache, model, num_steps)

    def check(self, model: nn.Module) -> None:
        """Raise ValueError where it does not fit the model or the number of steps."""
        try:
            check_opens(lambda: self.opened(model, self.steps))
        except ValueError as error:
            raise ValueError(f"methods[{self.name!r}]: {error}") from error


def read_methods(given: object, config: Mapping[str, Any]) -> dict[str, Method]:
    """config: its values.  Raises ValueError or TypeError naming what is wrong."""
    if not isinstance(given, dict) or not given:
        raise ValueError("methods is missing or empty; allowed: methods = {name: dict(adacache=...)}")
    methods: dict[str, Method] = {}
    for name, values in given.items():
        where = f"methods[{name!r}]"
        if not isinstance(name, str):
            raise ValueError(f"{where}; allowed: names that are texts")
        if not isinstance(values, dict):
            raise ValueError(f"{where}={values!r}; allowed: dict(adacache=...)")
        check_keys(values, KEYS, where)
        for key, others in (("against", given), ("replay", methods)):
            if (other := values.get(key)) is not None and other not in others:
                raise ValueError(f"{where}.{key}={other!r}; allowed: {', '.join(others) or 'none'}")
        if values.get("adacache") is not None and values.get("rival") is not None:
            raise ValueError(f"{where} has adacache and rival; allowed: one of them")
        try:
            methods[name] = read_method(name, values, config)
        except (TypeError, ValueError, FileNotFoundError) as error:
            raise ValueError(f"{where}: {error}") from error
    for name, method in methods.items():
        if method.replay and (other := methods[method.replay]).steps != method.steps:
            raise ValueError(f"methods[{name!r}].replay={method.replay!r}, of {other.steps} steps; allowed: "
                             f"one of {method.steps}")
    check_folders(methods)
    return methods


def read_method(name: str, values: Mapping[str, Any], config: Mapping[str, Any]) -> Method:
    cache, rival, sampler = values.get("adacache"), values.get("rival"), config["scheduler"]
    steps = checked_steps(values.get("steps", sampler["num_sampling_steps"]))
    cache = None if cache == "off" else cache
    if isinstance(rival, str):
        rival = rival_file(rival)
    if rival is not None and not isinstance(rival, Mapping):
        raise ValueError(f"rival={rival!r}; allowed: dict(type=..., ...), or a file of such")
    more = {key: values[key] for key in ("against", "replay", "published") if key in values}
    published = values.get("published", {})
    if not isinstance(published, Mapping):
        raise ValueError(f"published={published!r}; allowed: dict(psnr=..., ...)")
    for key, number in published.items():
        if not is_number(number):
            raise ValueError(f"published.{key}={number!r}; allowed: a number")
    check_keys(published, (*METRICS, "vbench"), "published")
    if "replay" in more and cache is None:
        raise ValueError(f"replay={more['replay']!r} without adacache; allowed: with adacache=dict(...)")
    return Method(
        name=name, steps=steps, **more,
        cache=None if cache is None else checked_settings(
            cache, {**config, "scheduler": {**sampler, "num_sampling_steps": steps}}),
        rival=None if rival is None else read_rival(rival),
        family=str(values.get("family", name.split(",")[0])))


def rival_file(path: str) -> Mapping[str, Any]:
    """The settings in a file that scripts/tune_rivals.py wrote."""
    try:
        return read_settings(path)
    except FileNotFoundError:
        raise ValueError(f"rival={path!r}; allowed: a JSON file of scripts/tune_rivals.py, or "
                         "dict(type=..., ...)") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"rival={path!r} cannot be read ({error}); allowed: a JSON file of "
                         "scripts/tune_rivals.py") from error


def checked_steps(steps: object) -> int:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}; allowed: whole numbers from 1")
    return steps


def check_folders(methods: Mapping[str, Method]) -> None:
    """Raise ValueError for two methods whose videos would lie in one folder, or for one with none."""
    folders: dict[str, str] = {}
    for name, method in methods.items():
        if not method.slug or method.slug in folders:
            raise ValueError(f"methods[{name!r}] has the folder {method.slug!r}, as has "
                             f"{folders.get(method.slug, 'nothing else')!r}; allowed: names of other letters")
        folders[method.slug] = name
