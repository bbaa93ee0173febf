"""What is measured of a video, most of it against the one with every step computed, of the same seed."""
from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contact_sheet import uint8_frames
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evaluation.made import Made
from opensora.datasets.shapes import parse_caption
from opensora.datasets.shapes_score import score_clip
from opensora.utils.config import check_keys

RANGE = 2  # of a video's values, -1 to 1
NO_DIFFERENCE = 100.0  # dB


@dataclass(frozen=True)
class Metric:
    """label, digits: of its column.  of: (video, reference) -> value, or None where there is none.
    timed: whether the median tells more than the mean, for a machine is busy with other things now and then.
    missing: (prompts, device) -> the sentence that stands in the table in place of numbers, or None.
    """

    label: str
    digits: int
    of: Callable[[Made, Made], float | None]
    missing: Callable[[Sequence[str], torch.device], str | None] = lambda prompts, device: None
    timed: bool = False

    def typical(self, values: np.ndarray) -> tuple[float, float]:
        """Mean or median, and half of its 95 % interval."""
        if not self.timed:
            return float(values.mean()), interval(values)
        return float(np.median(values)), interval_of_median(values)


def psnr(truth: np.ndarray, video: np.ndarray) -> float:
    """In dB, of values in [-1, 1]; 100 where nothing differs, -inf for a video that is not finite."""
    with np.errstate(divide="ignore"):
        value = float(peak_signal_noise_ratio(truth, video, data_range=RANGE))
    return -math.inf if math.isnan(value) else min(NO_DIFFERENCE, value)


def ssim(truth: np.ndarray, video: np.ndarray) -> float:
    """Mean over the frames, each [H, W, 3]; scikit-image's, windows of 7 pixels."""
    return float(np.mean([structural_similarity(a, b, channel_axis=-1, data_range=RANGE)
                          for a, b in zip(truth, video, strict=True)]))


def motion_preservation(made: Made, reference: Made) -> float | None:
    """Mean absolute difference of neighbouring frames, as a part of the reference's; 1 is as much motion."""
    own, all_steps = (np.abs(np.diff(x.frames(), axis=0)).mean(dtype=np.float64) if x.video.shape[1] > 1
                      else 0.0 for x in (made, reference))
    return float(own / all_steps) if all_steps > 0 else None


def adherence(made: Made, reference: Made) -> float:
    """Part of the prompt's attributes that the clip shows (embedded model)."""
    return score_clip(uint8_frames(made.video), made.prompt).mean


def adherence_missing(prompts: Sequence[str], device: torch.device) -> str | None:
    try:
        for prompt in prompts:
            parse_caption(prompt)
    except ValueError:
        return "adherence: needs prompts of the embedded model"
    return None


def alexnet_file() -> Path:
    """Where torchvision keeps the weights that LPIPS needs."""
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name


def lpips_missing(prompts: Sequence[str], device: torch.device) -> str | None:
    if importlib.util.find_spec("torchmetrics") is None:
        return "LPIPS: needs the package torchmetrics"
    return None if alexnet_file().is_file() else f"LPIPS: needs AlexNet weights at {alexnet_file()}"


@cache
def lpips_model() -> torch.nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=False).eval()


@torch.no_grad()
def lpips(made: Made, reference: Made) -> float:
    """Zhang et al., arXiv 1801.03924, AlexNet; mean over the frames."""
    pair = (x.video.clamp(-1, 1).transpose(0, 1) for x in (made, reference))
    return float(lpips_model()(*pair))


def memory_missing(prompts: Sequence[str], device: torch.device) -> str | None:
    return None if device.type == "cuda" else "peak memory: is counted on CUDA only"


def ratio(stage: str) -> Callable[[Made, Made], float]:
    return lambda made, reference: reference.seconds[stage] / made.seconds[stage]


# in the order of the table's columns
METRICS: Mapping[str, Metric] = {
    "speedup": Metric("speed-up, denoising", 2, ratio("denoise"), timed=True),
    "speedup_total": Metric("speed-up, in all", 2, ratio("total"), timed=True),
    "seconds": Metric("seconds, denoising", 2, lambda made, _: made.seconds["denoise"], timed=True),
    "seconds_total": Metric("seconds, in all", 2, lambda made, _: made.seconds["total"], timed=True),
    "computed": Metric("computed steps", 1, lambda made, _: len(made.computed_steps)),
    "tflops": Metric("TFLOPs", 3, lambda made, _: None if made.flops is None else made.flops / 1e12),
    "cache_mb": Metric("cache, MB", 1, lambda made, _: made.cache_bytes / 1e6),
    "peak_mb": Metric("peak memory, MB", 0,
                      lambda made, _: None if made.peak_bytes is None else made.peak_bytes / 1e6,
                      memory_missing),
    "psnr": Metric("PSNR, dB", 1, lambda made, ref: psnr(ref.frames(), made.frames())),
    "ssim": Metric("SSIM", 4, lambda made, ref: ssim(ref.frames(), made.frames())),
    "lpips": Metric("LPIPS", 4, lpips, lpips_missing),
    "motion": Metric("motion preserved", 3, motion_preservation),
    "adherence": Metric("adherence", 3, adherence, adherence_missing),
}
AGAINST_REFERENCE = ("psnr", "ssim", "lpips", "motion")  # of the reference itself they say nothing


def chosen_metrics(names: object) -> tuple[str, ...]:
    """names: None for all.  Raises ValueError for an unknown one."""
    if names is None:
        return tuple(METRICS)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"evaluation.metrics={names!r}; allowed: a list of {', '.join(METRICS)}")
    check_keys(names, METRICS, "evaluation.metrics")
    return tuple(name for name in METRICS if name in tuple(names))


def measured(made: Made, reference: Made, names: Iterable[str]) -> dict[str, float]:
    """Of one video; what cannot be told is left out."""
    same = made is reference
    found = {name: METRICS[name].of(made, reference) for name in names
             if not (same and name in AGAINST_REFERENCE)}
    return {name: float(value) for name, value in found.items() if value is not None}


def interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean, by Student's t."""
    if (count := len(values)) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)


def interval_of_median(values: np.ndarray) -> float:
    """The same of the median, by order statistics: no distribution is assumed."""
    count, ordered = len(values), np.sort(values)
    reach = stats.norm.ppf(0.975) * count**0.5 / 2
    low, high = max(0, int(count / 2 - reach) - 1), min(count - 1, int(np.ceil(count / 2 + reach)))
    return float(ordered[high] - ordered[low]) / 2


def available(names: Iterable[str], prompts: Sequence[str], device: torch.device) -> list[str]:
    return [name for name in names if METRICS[name].missing(prompts, device) is None]


def columns(names: Iterable[str], prompts: Sequence[str],
            known: Collection[str]) -> dict[str, dict[str, Any]]:
    """What results.json says of each metric: label and digits, or why it is missing.

    known: those that were measured.
    """
    described = {}
    for name in names:
        why = None if name in known else METRICS[name].missing(prompts, torch.device("cpu"))
        described[name] = {"label": METRICS[name].label, "digits": METRICS[name].digits,
                           **({} if why is None else {"missing": why})}
    return described
