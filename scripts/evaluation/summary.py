"""From records to results.json: means (of times medians), 95 % intervals, differences video by video."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fingerprints import fingerprints

from evaluation.metrics import METRICS, columns, interval
from evaluation.plan import Plan

VBENCH = "vbench.json"  # of scripts/vbench_scores.py
NO_VBENCH = "VBench: not scored; scripts/vbench_scores.py does, where vbench is installed"
PAIRED = ("psnr", "ssim", "lpips", "adherence", "motion")

Record = Mapping[str, Any]


def summarise(plan: Plan, records: Sequence[Record], folder: Path) -> dict[str, Any]:
    """What results.json holds."""
    vbench = read_vbench(folder)
    shown = columns(plan.metrics, plan.prompts, {name for record in records for name in record["metrics"]})
    shown["vbench"] = vbench_column(vbench)
    if "missing" not in shown.get("tflops", {"missing": ""}):
        counted = sum("tflops" in record["metrics"] for record in records) // max(1, len(plan.methods))
        shown["tflops"]["label"] += f" ({counted} videos)"
    groups = {}
    for name, pattern in plan.options.groups.items():
        own = [record for record in records if re.search(pattern, record["prompt"])]
        prompts = [prompt for prompt in plan.prompts if re.search(pattern, prompt)]
        groups[name] = {"prompts": prompts, "methods": method_rows(plan, own, {})}
    return {"config": plan.path, "num_steps": plan.steps, "prompts": plan.prompts, "seeds": plan.seeds,
            "metrics": shown, "methods": method_rows(plan, records, vbench), "groups": groups,
            "videos": [{k: v for k, v in r.items() if k not in ("settings", "asked")} for r in records]}


def method_rows(plan: Plan, records: Sequence[Record], vbench: Mapping[str, Any]) -> dict[str, Any]:
    """What the records tell of each method."""
    of_methods = {name: [r for r in records if r["method"] == name] for name in plan.methods}
    methods = {}
    for name, method in plan.methods.items():
        own = of_methods[name]
        row = {"family": method.family, "num_steps": method.steps, "videos": len(own), **means(own)}
        if scores := vbench.get(method.slug):
            row["mean"]["vbench"] = float(np.mean(list(scores.values())))
            row["vbench"] = scores
        if method.published:
            row["published"] = dict(method.published)
        if own and method.against in of_methods:
            row["against"] = {"method": method.against, **differences(own, of_methods[method.against])}
        methods[name] = row
    return methods


def means(records: Sequence[Record]) -> dict[str, Any]:
    """Of every metric the mean (of times the median), its interval and the spread, over the prompts that have
    it: seeds of one prompt count as one, for they are no independent sample of what prompts do."""
    found: dict[str, Any] = {"mean": {}, "interval": {}, "least": {}, "most": {}}
    for name in dict.fromkeys(name for record in records for name in record["metrics"]):
        values = of_metric(records, name)
        own = [record for record in records if name in record["metrics"]]
        found["mean"][name], found["interval"][name] = METRICS[name].typical(by_prompt(own, values))
        found["least"][name], found["most"][name] = float(values.min()), float(values.max())
    quality = of_metric(records, "psnr")
    if len(quality):
        found["psnr_tenth"] = float(np.quantile(quality, 0.1))
        found["psnr_pooled"] = float(-10 * np.log10((10 ** (-quality / 10)).mean()))
    return found


def differences(records: Sequence[Record], others: Sequence[Record]) -> dict[str, Any]:
    """Video by video to another method's: mean, interval, least and most of each metric that both have.

    steps_follow: correlation of the computed steps with the other's PSNR; below 0 more are computed where the
    other is worse.
    """
    by_video = {key_of(record): record for record in others}
    paired = [record for record in records if key_of(record) in by_video]
    pairs = [(record["metrics"], by_video[key_of(record)]["metrics"]) for record in paired]
    found: dict[str, Any] = {"videos": len(pairs)}
    for name in PAIRED:
        having = [i for i, (a, b) in enumerate(pairs) if name in a and name in b]
        gains = np.array([pairs[i][0][name] - pairs[i][1][name] for i in having])
        if len(gains):
            each = by_prompt([paired[i] for i in having], gains)
            found[name] = {"mean": float(each.mean()), "interval": interval(each),
                           "least": float(gains.min()), "most": float(gains.max())}
    both = [(a["computed"], b["psnr"]) for a, b in pairs if "computed" in a and "psnr" in b]
    if both and all(np.std(both, axis=0)):
        found["steps_follow"] = float(np.corrcoef(np.transpose(both))[0, 1])
    return found


def of_metric(records: Sequence[Record], name: str) -> np.ndarray:
    return np.array([r["metrics"][name] for r in records if name in r["metrics"]], float)


def by_prompt(records: Sequence[Record], values: np.ndarray) -> np.ndarray:
    """Of the records' values the mean over the seeds of each prompt."""
    seeds: dict[tuple[str, int], list[float]] = {}
    for record, value in zip(records, values, strict=True):
        seeds.setdefault((record["prompt"], record["prompt_index"]), []).append(value)
    return np.array([np.mean(each) for each in seeds.values()])


def key_of(record: Record) -> tuple[str, int, int]:
    return record["prompt"], record["prompt_index"], record["seed"]


def vbench_column(vbench: Mapping[str, Any]) -> dict[str, Any]:
    """The published number, in brackets, is VBench's own weighted mean of all its dimensions."""
    if not vbench:
        return {"label": "VBench", "digits": 4, "missing": NO_VBENCH}
    return {"label": f"VBench, mean of {len(next(iter(vbench.values())))} dimensions", "digits": 4}


def read_vbench(folder: Path) -> dict[str, Any]:
    """Of each method's folder the scores of its present videos, those dimensions that all have."""
    file = folder / VBENCH
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    scores = {slug: scored["dimensions"] for slug, scored in told.items()
              if scored["videos"] == fingerprints(folder / "videos" / slug)}
    common = set.intersection(*map(set, scores.values())) if scores else set()
    return {slug: {name: value for name, value in each.items() if name in common}
            for slug, each in scores.items() if common}


def unfinished(plan: Plan, records: Sequence[Record]) -> int:
    """Videos that are still to be made."""
    return len(plan.methods) * len(plan.requests) - len(records)
