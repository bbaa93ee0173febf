"""Which AdaCache a config and the `--adacache` flag choose, and what its sessions tell of a sample."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from adacache import PUBLISHED_KEYS, AdaCacheConfig, Ranks, Session, adaptive_cache
from adacache.ranks import ALONE
from opensora.datasets.aspect import get_image_size, get_num_frames
from opensora.registry import SCHEDULERS, build_module

CODEBOOKS = ("slow", "fast", "published-slow", "published-fast")
ALLOWED = f"off, {', '.join(CODEBOOKS)}, or a JSON file with settings of AdaCacheConfig"
ROOT = Path(__file__).resolve().parents[1]
NO_RUN: Mapping[str, Any] = MappingProxyType({})  # of which nothing is known
MIDDLE_PROBE = "temporal_blocks.middle.attn"  # as deep as the published one, block 13 of 28


def take_cache_config(values: dict[str, Any], choice: str | None = None) -> AdaCacheConfig | None:
    """Remove AdaCache's settings from a config's `values`; None: every step is computed.

    choice: the flag; a codebook's name changes that of the config, a profile replaces all.
    Raises ValueError or TypeError for settings that cannot be.
    """
    published, options = take_published(values), values.pop("adacache", None)
    if options == "off":
        options = None
    if published.get("do_cache") and options is not None:
        raise ValueError(f"adacache={options!r} and model.do_cache are both set; allowed: one of them")
    if choice == "off":
        return None
    if choice is not None and choice not in CODEBOOKS:
        return read_profile(choice, values)
    # what a preset replaces need not fit this run
    cache = AdaCacheConfig.from_published(published) if options is None else \
        checked_settings(options, values if choice is None else NO_RUN)
    return cache if choice is None else with_preset(choice, cache, said=options is not None)


def with_preset(name: str, config: AdaCacheConfig | None, said: bool) -> AdaCacheConfig:
    """A preset is whole: only what it does not speak of stays as the config has it.

    said: by this project's keys, not by the published ones, which know no granularity.
    Raises ValueError where the config asks for residuals of every block and the preset has but the stack's.
    """
    kept, as_published = config or AdaCacheConfig(probes=(MIDDLE_PROBE,)), name.startswith("published")
    if kept.granularity == "block" and said and not as_published:
        raise ValueError(f"adacache={name!r} with granularity='block'; allowed: granularity='stack', whose "
                         f"residual it extrapolates, or {', '.join(CODEBOOKS[2:])}")
    return AdaCacheConfig(codebook=name, probes=kept.probes, metric=kept.metric, moreg=kept.moreg,
                          granularity=kept.granularity if as_published else "stack",
                          rows_per_video=kept.rows_per_video, num_steps=kept.num_steps)


def take_published(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the published fork's keys, which it keeps in `model` and repeats at top level."""
    model, scheduler = values.get("model"), values.get("scheduler")
    if not (isinstance(model, dict) and isinstance(scheduler, dict)):
        return {}  # an error that whoever reads them reports
    published = {key: model.pop(key) for key in PUBLISHED_KEYS if key in model}
    for key in published:
        if key in values and (value := values.pop(key)) != published[key]:
            raise ValueError(f"{key}={value!r}; allowed: that of model.{key}={published[key]!r}")
    steps, sampled = published.get("num_sampling_steps"), scheduler.get("num_sampling_steps")
    if steps is not None and steps != sampled:
        raise ValueError(f"model.num_sampling_steps={steps}; "
                         f"allowed: that of scheduler.num_sampling_steps={sampled}")
    return published


def read_profile(path: str, run: Mapping[str, Any] = NO_RUN) -> AdaCacheConfig:
    """Settings from a file, as in `read_settings`.  run: a config's values.

    Raises ValueError, also where the file was made for another run.
    """
    try:
        read = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"adacache={path!r}; allowed: {ALLOWED}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"adacache={path!r}: {error}") from error
    try:
        settings = checked_settings(settings_in(read))
        if isinstance(read, Mapping) and not settings.any_signature:
            check_made_for(run, read)
        return settings
    except (TypeError, ValueError, OSError) as error:  # also where a file that it names is missing
        raise ValueError(f"adacache={path!r}: {error}") from error


def check_made_for(run: Mapping[str, Any], profile: Mapping[str, Any]) -> None:
    """Raise ValueError where a profile was made with another sampler, length or size than the run has.

    What a sampler leaves to its default counts, too.
    """
    here = described(run.get("scheduler"), run)
    for key, made in described(profile.get("sampler"), profile).items():
        if key in here and here[key] != made:
            raise ValueError(f"made with {key}={made!r}, but here it is {here[key]!r}; allowed: the same, "
                             f"{' or '.join(CODEBOOKS[:2])} instead, or any_signature=True in its settings")


def described(sampler: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a profile is made for, by config key; whatever cannot be told is reported elsewhere."""
    told: dict[str, Any] = {}
    with suppress(TypeError, ValueError, KeyError):
        told |= {f"scheduler.{key}": value
                 for key, value in sorted(build_module(dict(sampler), SCHEDULERS).of_a_run.items())}
    with suppress(TypeError, ValueError, KeyError):
        told["num_frames"] = get_num_frames(values["num_frames"])
    with suppress(TypeError, ValueError, KeyError):
        told["image_size"] = tuple(values.get("image_size") or get_image_size(
            str(values["resolution"]), str(values["aspect_ratio"])))
    return told


def read_settings(path: str) -> object:
    """What a JSON file holds, or its entry "settings", as scripts/calibrate.py and tune_rivals.py write it.

    path: from here, or from this project's folder.  Raises FileNotFoundError where there is none.
    """
    return settings_in(read_json(path))


def read_json(path: str) -> object:
    here = Path(path)
    return json.loads((here if here.is_file() else ROOT / path).read_text(encoding="utf-8"))


def settings_in(read: object) -> object:
    return read["settings"] if isinstance(read, dict) and "settings" in read else read


def checked_settings(options: object, run: Mapping[str, Any] = NO_RUN) -> AdaCacheConfig:
    """options: a mapping, or what the flag takes.  run: as for `read_profile`."""
    if options in CODEBOOKS:
        return AdaCacheConfig(codebook=options, probes=(MIDDLE_PROBE,))
    if isinstance(options, str):
        return read_profile(options, run)
    if not isinstance(options, dict):
        raise ValueError(f"adacache={options!r}; allowed: dict(codebook=..., ...), or {ALLOWED}")
    return AdaCacheConfig.from_dict(options)


def open_cache(
    cache: AdaCacheConfig | None, model: nn.Module, num_steps: int, ranks: Ranks = ALONE
) -> AbstractContextManager[Session | None]:
    """The context of one denoising run.  ranks: that take part in it."""
    if cache is None:
        return nullcontext()
    return adaptive_cache(model, for_model(cache, model), num_steps, ranks)


def for_model(cache: AdaCacheConfig, model: nn.Module) -> AdaCacheConfig:
    """The same, with MIDDLE_PROBE as a path."""
    middle = MIDDLE_PROBE.replace("middle", str(round(13 / 28 * len(model.temporal_blocks))))
    return replace(cache, probes=tuple(middle if probe == MIDDLE_PROBE else probe for probe in cache.probes))


def check_cache(cache: AdaCacheConfig | None, model: nn.Module, num_steps: int, ranks: Ranks = ALONE) -> None:
    """Raise ValueError where `cache` does not fit the model, the number of steps or the ranks."""
    check_opens(lambda: open_cache(cache, model, num_steps, ranks))


def check_opens(opened: Callable[[], AbstractContextManager[Any]]) -> None:
    """Enter a run's context and leave it at once; raises what entering raises."""
    with suppress(Checked), opened():
        raise Checked  # a run that ends without its steps would be reported


class Checked(Exception):
    """Leaves a cache that was opened only to see whether it opens."""


def computed_so_far(session: Session) -> int:
    """Steps that were computed for any video."""
    return len({step for video in session.trace for step in video.computed_steps})


def sampling_record(runs: Sequence[tuple[Session | None, int]], num_steps: int) -> dict[str, Any]:
    """What a sample's record says of its denoising.  runs: session and row of each clip."""
    clips = [clip_record(session, row, num_steps) for session, row in runs]
    record = {"num_steps": num_steps, **clips[0],
              "cache_bytes": max(session.cache_bytes if session else 0 for session, _ in runs),
              "uncached": runs[0][0] is None}
    return {**record, "clips": clips} if len(clips) > 1 else record


def clip_record(session: Session | None, row: int, num_steps: int) -> dict[str, Any]:
    """Computed steps and decisions; a trace has one entry per video, or one for all."""
    if session is None:
        return {"computed_steps": list(range(num_steps)), "decisions": []}
    alone = replace(session.trace, videos=[session.trace.of_video(row)], rows=1).to_json()
    videos = alone.pop("videos")
    return {**videos[0], **{key: value for key, value in alone.items() if key != "num_steps"}}
