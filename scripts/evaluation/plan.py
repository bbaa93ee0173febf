"""What an evaluation runs: an inference config with `methods` and `evaluation`, checked before loading."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from evaluation.methods import Method, read_methods
from evaluation.metrics import chosen_metrics
from opensora.datasets.shapes import held_out_prompts
from opensora.utils.config import check_keys, read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest, plan_samples


@dataclass(frozen=True, kw_only=True)
class Options:
    """The `evaluation = dict(...)` of a config.

    prompts: so many held-out prompts of the embedded model; None: the config's prompt or prompt_path.
    prompt_seed: other prompts, to choose settings by; 0 are those that are reported.  seeds: of the noise;
    None: the config's.  metrics: None for all.  batch: videos together; 1, for published caches decide for a
    batch.  flops_videos: on how many, the first, operations are counted.  gallery: videos of each method on
    the page.  groups: {name: pattern}, for a table of its own of the prompts in which the pattern is found.
    """

    prompts: int | None = None
    prompt_seed: int = 0
    seeds: Sequence[int] | None = None
    metrics: Sequence[str] | None = None
    batch: int = 1
    flops_videos: int = 4
    gallery: int = 6
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("prompts", 1), ("prompt_seed", 0), ("batch", 1), ("flops_videos", 0),
                            ("gallery", 0)):
            value = getattr(self, name)
            if not (name == "prompts" and value is None) and (not isinstance(value, int) or value < least):
                raise ValueError(f"evaluation.{name}={value!r}; allowed: whole numbers from {least}")
        if not isinstance(self.groups, Mapping) or not all(map(is_pattern, self.groups.values())):
            raise ValueError(f"evaluation.groups={self.groups!r}; allowed: {{name: regular expression}}")
        seeds = self.seeds
        whole = isinstance(seeds, list | tuple) and all(isinstance(s, int) and s >= 0 for s in seeds)
        if seeds is not None and not (whole and seeds and len(set(seeds)) == len(seeds)):
            raise ValueError(f"evaluation.seeds={seeds!r}; allowed: a list of different whole numbers from 0")


@dataclass(frozen=True)
class Plan:
    """requests: of every seed in turn, prompt by prompt.  steps: of the reference, which computes each."""

    path: str
    config: InferenceConfig
    options: Options
    methods: Mapping[str, Method]
    metrics: tuple[str, ...]
    requests: tuple[SampleRequest, ...]

    @property
    def steps(self) -> int:
        return self.config.scheduler["num_sampling_steps"]

    @property
    def prompts(self) -> list[str]:
        """One for each place in the list, as a prompt that stands there twice has two samples a seed."""
        return list({request.index: request.prompt for request in self.requests}.values())

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(request.seed for request in self.requests))

    def only(self, names: Sequence[str] | None) -> Plan:
        """With the methods of those names, and those that they replay.  Raises ValueError for others."""
        wanted = set(names or self.methods)
        if unknown := sorted(wanted - set(self.methods)):
            raise ValueError(f"only={unknown[0]!r}; allowed: {', '.join(self.methods)}")
        for name in reversed(self.methods):  # a method may only replay an earlier one
            if name in wanted:
                wanted.add(self.methods[name].replay)
        return replace(self, methods={name: m for name, m in self.methods.items() if name in wanted})

    def batches(self) -> list[Sequence[SampleRequest]]:
        """Videos that are made together, each batch of one seed."""
        size = self.options.batch
        of_seeds = ([r for r in self.requests if r.seed == seed] for seed in self.seeds)
        return [own[start : start + size] for own in of_seeds for start in range(0, len(own), size)]

    def counts_flops(self, batch: Sequence[SampleRequest]) -> bool:
        return "tflops" in self.metrics and batch[0] in self.requests[: self.options.flops_videos]


def is_pattern(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(re.compile(text))
    except re.error:
        return False


def read_plan(path: str, overrides: Mapping[str, Any] | None, flags: Mapping[str, Any]) -> Plan:
    """flags: of the command line, which replace the config's options; None there says nothing.

    Raises ValueError, TypeError or FileNotFoundError naming key, value and what is allowed.
    """
    values = read_config(path, dict(overrides or {})).to_dict()
    methods, given = values.pop("methods", None), values.pop("evaluation", {})
    if not isinstance(given, dict):
        raise ValueError(f"evaluation={given!r}; allowed: dict(prompts=..., ...)")
    check_keys(given, [f.name for f in fields(Options)], "evaluation")
    options = Options(**{**given, **{k: v for k, v in flags.items() if v is not None}})
    config = InferenceConfig.from_dict({**values, "batch_size": options.batch, "num_sample": 1}, path)
    if config.loop > 1:
        raise ValueError(f"loop={config.loop}; allowed: 1, for schedules are compared clip by clip")
    if options.prompts is not None:
        config = replace(config, prompt=held_out_prompts(options.prompts, options.prompt_seed),
                         prompt_path=None)
    requests = tuple(request for seed in options.seeds or (config.seed,)
                     for request in plan_samples(replace(config, seed=seed)))
    read = read_methods(methods, vars(config))
    return Plan(path, config, options, read, chosen_metrics(options.metrics), requests)
