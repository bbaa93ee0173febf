"""The folder of an evaluation: a video and a record for every method, prompt and seed; what is there, stays.

    run.json                          which models, size and steps
    videos/METHOD/0003_s1024.mp4      and .json beside it: settings, schedule, seconds, metrics
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.made import Made
from evaluation.methods import Method
from evaluation.metrics import available
from evaluation.plan import Plan
from opensora.datasets.video_io import save_sample
from opensora.parallel import rank
from opensora.pipeline import Pipeline
from opensora.utils.sample_request import SampleRequest
from opensora.utils.whole_file import write_whole

# keys of a config that say which samples, or where they go
OF_A_SAMPLE = ("prompt", "prompt_path", "start_index", "end_index", "num_sample", "prompt_as_path", "seed",
               "reference_path", "mask_strategy", "save_dir", "sample_name", "batch_size", "overwrite",
               "verbose")
SAMPLED = 1024  # values of each tensor that enter a fingerprint


class Records:
    """folder: of the evaluation.  pipeline: None only reads what there is, whatever made it, where and with
    which metrics.  Raises ValueError where the folder holds results of another model or run.
    """

    def __init__(self, folder: Path, plan: Plan, pipeline: Pipeline | None = None) -> None:
        self.folder, self.plan, self.only_reads = folder, plan, pipeline is None
        self.settings = {name: settings_of(method, plan.methods) for name, method in plan.methods.items()}
        self.identity = identity(plan, pipeline)
        self.metrics = [] if pipeline is None else available(plan.metrics, plan.prompts, pipeline.device)
        self._check_identity()

    def _check_identity(self) -> None:
        file = self.folder / "run.json"
        if not file.is_file():
            return
        before = read_json(file)
        for key, value in self.identity.items():
            if before.get(key) != value:
                raise ValueError(f"{file}: results with {key}={before.get(key)!r}, but this run has "
                                 f"{value!r}; allowed: another --out, or the same run")

    def begin(self) -> None:
        """Write down whose results these are."""
        write_whole(self.folder / "run.json", json.dumps(self.identity, indent=2) + "\n")

    def file(self, method: Method, request: SampleRequest) -> Path:
        """Of the record."""
        name = f"{request.index:04d}_s{request.seed}.json"
        return self.folder / "videos" / method.slug / name

    def find(self, method: Method, request: SampleRequest) -> dict[str, Any] | None:
        """A finished record with all metrics that are asked for and can be had; otherwise None.

        Raises ValueError for one made with other settings or of another sample.
        """
        file = self.file(method, request)
        if not file.is_file():
            return None
        record = read_json(file)
        for key, value in (("settings", self.settings[method.name]), *sample_of(request).items()):
            if record.get(key) != value:
                raise ValueError(f"{file}: made with {key}={record.get(key)!r}, but this run has {value!r}; "
                                 "allowed: another --out, or the same")
        uncounted = self.plan.counts_flops([request]) and "tflops" not in record["metrics"]
        whole = set(self.metrics) <= set(record["asked"]) and not uncounted
        return record if whole or self.only_reads else None

    def write(self, method: Method, request: SampleRequest, made: Made,
              metrics: Mapping[str, float]) -> None:
        """The video, then its record: without one there is no finished sample."""
        file = self.file(method, request)
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        video = save_sample(made.video, file.with_suffix(""), fps=self.plan.config.file_fps)
        write_whole(file, json.dumps({
            "method": method.name, "settings": self.settings[method.name], **sample_of(request),
            "prompt_index": request.index, "seed": request.seed, "rank": rank(),
            "file": str(video.relative_to(self.folder)), "num_steps": made.num_steps,
            "computed_steps": list(made.computed_steps), "partly": list(made.partly),
            "seconds": {stage: round(value, 4) for stage, value in made.seconds.items()},
            "asked": list(self.metrics), "metrics": metrics}, indent=1) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All finished ones of the plan, method by method."""
        found = (self.find(method, request) for method in self.plan.methods.values()
                 for request in self.plan.requests)
        return [record for record in found if record is not None]


def settings_of(method: Method, methods: Mapping[str, Method]) -> str:
    """What decides about its videos, in words; of a replayed method too."""
    what = method.rival if method.rival is not None else method.cache and method.cache.resolved()
    replayed = f", replaying {settings_of(methods[method.replay], methods)}" if method.replay else ""
    return f"{method.steps} steps, {what}{replayed}"


def sample_of(request: SampleRequest) -> dict[str, Any]:
    """What the sample is made from, apart from models and noise."""
    return {"prompt": request.prompt, "texts": list(request.texts), "reference_path": request.reference_path,
            "mask_strategy": request.mask_strategy}


def identity(plan: Plan, pipeline: Pipeline | None) -> dict[str, Any]:
    """Of all on which results depend, but methods, prompts and noise, which each record tells itself.

    pipeline: None leaves its models and their device out.
    """
    config = {key: value for key, value in asdict(plan.config).items()
              if key not in ("model", "vae", "text_encoder", "device", *OF_A_SAMPLE)}
    told = {**config, "size": plan.config.size, "frames": plan.config.clip_frames,
            "batch": plan.options.batch}
    if pipeline is not None:
        cuda = pipeline.device.type == "cuda"
        told |= {"model": fingerprint(pipeline.model), "vae": fingerprint(pipeline.vae),
                 "text_encoder": fingerprint(pipeline.text_encoder.model),
                 "device": torch.cuda.get_device_name() if cuda else "cpu"}
    return json.loads(json.dumps(told))  # tuples become lists, as in the file


def fingerprint(module: nn.Module) -> str:
    """Of names, shapes and the first values of every tensor: weights trained further have another."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        first = tensor.detach().flatten()[:SAMPLED].to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + first.numpy().tobytes())
    return f"{type(module).__name__}-{digest.hexdigest()[:12]}"


def read_json(file: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); allowed: a file of this evaluation, whole") from error


def missing_methods(records: Records, methods: Iterable[Method],
                    batch: Sequence[SampleRequest]) -> list[Method]:
    """Those of which a video of the batch is still to be made."""
    return [method for method in methods
            if any(records.find(method, request) is None for request in batch)]
