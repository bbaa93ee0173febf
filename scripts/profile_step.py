"""Where the time of a computed step goes: `python scripts/profile_step.py CONFIG`, or `... --attention`.

Prints the operations of one model call, the longest first; or, for sequences of several lengths (as many
tokens each), the time of plain products and of SDPA's kernel, medians of alternating calls.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from cache_choice import take_cache_config
from exit_status import exit_status
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from opensora.models.layers.attention import plain_attention
from opensora.pipeline import Pipeline
from opensora.schedulers.rf import model_arguments
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.resolution_info import prepare_multi_resolution_info
from opensora.utils.sample_request import plan_samples

TOKENS, HEADS, HEAD_WIDTH = 1920, 4, 64
LENGTHS = (8, 15, 32, 64, 128, 240)
REPEATS = 21


@torch.no_grad()
def operations_table(config_path: str) -> Table:
    values = read_config(config_path).to_dict()
    take_cache_config(values, "off")
    config = InferenceConfig.from_dict(values, config_path)
    pipeline, requests = Pipeline.load(config), plan_samples(config)[:1]
    y, y_mask = pipeline.encode_texts(requests)[0]
    z = pipeline.noise(requests, clip=0)
    sizes = prepare_multi_resolution_info(config.multi_resolution, 1, config.size, config.clip_frames,
                                          config.fps, pipeline.device, torch.float32)
    arguments = model_arguments(pipeline.model, z, y, y_mask, sizes)
    both, t = torch.cat([z, z]), torch.full((2,), 500.0, device=pipeline.device)
    for _ in range(3):  # the first calls are slower
        pipeline.model(both, t, **arguments)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as recorded:
        pipeline.model(both, t, **arguments)
    # of what a GPU does the launches say nothing
    kind = "self_device_time_total" if pipeline.device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(recorded.key_averages(), key=lambda row: -getattr(row, kind))
    total = sum(getattr(row, kind) for row in rows)
    shown = Table("operation", "calls", "ms", "share", title=f"one model call: {total / 1000:.1f} ms")
    for row in rows[:14]:
        shown.add_row(row.key, str(row.count), f"{getattr(row, kind) / 1000:.2f}",
                      f"{getattr(row, kind) / total:.1%}")
    return shown


def attention_table() -> Table:
    shown = Table("tokens per sequence", "sequences", "dtype", "plain, ms", "SDPA, ms", "SDPA / plain")
    for dtype in (torch.float32, torch.bfloat16):
        for length in LENGTHS:
            q, k, v = torch.randn(3, TOKENS // length, HEADS, length, HEAD_WIDTH).to(dtype)
            plain, kernel = alternating_medians(q, k, v)
            shown.add_row(str(length), str(len(q)), str(dtype).removeprefix("torch."), f"{1000 * plain:.3f}",
                          f"{1000 * kernel:.3f}", f"{kernel / plain:.2f}")
    return shown


def alternating_medians(*qkv: torch.Tensor) -> tuple[float, float]:
    """Seconds of plain products and of SDPA."""
    seconds = ([], [])
    for _ in range(REPEATS):
        for own, way in zip(seconds, (plain_attention, scaled_dot_product_attention), strict=True):
            start = time.perf_counter()
            way(*qkv)
            own.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?")
    parser.add_argument("--attention", action="store_true")
    args = parser.parse_args()
    if (args.config is None) != args.attention:
        parser.error("allowed: CONFIG or --attention")
    return exit_status(lambda: Console().print(
        attention_table() if args.attention else operations_table(args.config)))


if __name__ == "__main__":
    sys.exit(main())
