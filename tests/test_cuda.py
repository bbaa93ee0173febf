"""On a GPU: the same videos, the same schedules, nothing left behind, and no wait that is not needed."""
from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adacache import AdaCacheConfig, adaptive_cache
from opensora.pipeline import Pipeline
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import plan_samples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

ROOT = Path(__file__).resolve().parents[1]
FAST, PUBLISHED = (AdaCacheConfig(codebook=name, probes=("temporal_blocks.2.attn",))
                   for name in ("fast", "published-fast"))
PROMPTS = ["a large yellow circle moves left quickly on a gray background",
           "a small red square stays still on a white background",
           "a large green cross grows slowly on a navy background"]


def embedded(device: str, count: int = 1, **changes) -> Pipeline:
    values = read_config(str(ROOT / "configs/shapes/sample.py")).to_dict()
    values |= dict(device=device, prompt=PROMPTS[:count], batch_size=count, **changes)
    return Pipeline.load(InferenceConfig.from_dict(values, "sample.py"))


def sampled(pipeline: Pipeline, cache: AdaCacheConfig = FAST):
    """Videos [B, 3, F, H, W], and the computed steps of each."""
    samples = pipeline.generate(plan_samples(pipeline.config),
                                lambda model, steps: adaptive_cache(model, cache, steps))
    trace = samples[0].runs[0].context.trace
    return torch.stack([s.video for s in samples]), [video.computed_steps for video in trace]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return (10 * torch.log10(4 / (a - b).square().mean())).item()


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def on_cuda():
    return sampled(embedded("cuda", 3))


def test_a_gpu_makes_the_video_of_a_cpu_with_the_same_schedule(on_cuda):
    video, computed = sampled(embedded("cpu"))
    assert computed == on_cuda[1][:1]
    assert psnr(video[0], on_cuda[0][0]) > 50


def test_a_video_alone_is_the_one_in_a_batch(on_cuda):
    alone, computed = sampled(embedded("cuda"))
    assert computed == on_cuda[1][:1] and len(set(map(tuple, on_cuda[1]))) > 1
    assert psnr(alone[0], on_cuda[0][0]) > 60


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_shows_the_same(on_cuda, dtype):
    video, computed = sampled(embedded("cuda", 3, dtype=dtype))
    assert min(map(psnr, video, on_cuda[0])) > 18
    assert all(8 < len(steps) < 20 for steps in computed)


def test_offload_keeps_one_model_on_the_gpu_and_gives_the_same_video(on_cuda):
    pipeline = embedded("cuda", 3, offload=True)
    assert all(p.device.type == "cpu" for part in (pipeline.model, pipeline.vae) for p in part.parameters())
    assert psnr(sampled(pipeline)[0], on_cuda[0]) > 60
    assert all(p.device.type == "cpu" for part in (pipeline.model, pipeline.vae) for p in part.parameters())


def test_after_a_run_the_gpu_holds_what_it_held_before():
    pipeline = embedded("cuda", 3)
    sampled(pipeline)
    before = torch.cuda.memory_allocated()
    sampled(pipeline)
    sampled(pipeline, replace(PUBLISHED, granularity="block"))
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("videos", [1, 3])
@pytest.mark.parametrize("cache", [FAST, replace(PUBLISHED, decide="video")], ids=["fast", "published"])
def test_the_host_waits_once_for_a_decision_and_never_at_a_reused_step(cache, videos):
    pipeline = embedded("cuda", videos)
    waits: list[int] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")

        def progress(step, steps, session):
            waits.append(sum("synchroniz" in str(warning.message) for warning in seen))

        torch.cuda.set_sync_debug_mode("warn")
        try:
            sample = pipeline.generate(plan_samples(pipeline.config),
                                       lambda model, steps: adaptive_cache(model, cache, steps), progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trace = sample[0].runs[0].context.trace
    computed = {step for video in trace for step in video.computed_steps}
    decided = {decision.step for video in trace for decision in video.decisions}
    of_step = {step: waits[step] - waits[step - 1] for step in range(1, len(waits))}
    assert {of_step[step] for step in of_step if step not in computed} == {0}
    assert {of_step[step] for step in decided} == {1}


def test_the_script_samples_on_the_gpu_by_default(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/inference.py"), "configs/shapes/sample_adacache.py",
         "--save-dir", str(tmp_path), "--dtype", "bf16"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert next(tmp_path.glob("*.mp4")).stat().st_size > 1000
    assert len(record["computed_steps"]) < 20 and record["cache_bytes"] > 0
