"""Prompt adherence of the embedded model: `python scripts/adherence.py CONFIG [--prompts 128] [--json FILE]`.

Held-out prompts are sampled and scored off the pixels; the same score of rendered clips, encoded and decoded
by the same autoencoder, is the bound.  --sheet FILE.png shows every clip as a row of frames.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache_choice import ALLOWED, open_cache, take_cache_config
from contact_sheet import save_sheet, uint8_frames
from exit_status import exit_status
from mmengine.config import DictAction
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adacache import AdaCacheConfig
from opensora.datasets.shapes import held_out_prompts, parse_caption, place, render
from opensora.datasets.shapes_score import Adherence, average, score_clip
from opensora.pipeline import Pipeline
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import plan_samples


def sampled(pipeline: Pipeline, cache: AdaCacheConfig | None) -> Iterator[np.ndarray]:
    """Clips of all prompts of the config, uint8 [T, H, W, 3]."""
    requests, size = plan_samples(pipeline.config), pipeline.config.batch_size
    for start in track(range(0, len(requests), size), "sampling", console=Console(stderr=True)):
        for sample in pipeline.generate(requests[start : start + size], partial(open_cache, cache)):
            yield uint8_frames(sample.video)


@torch.no_grad()
def reconstructed(pipeline: Pipeline, prompts: list[str]) -> Iterator[np.ndarray]:
    """Rendered clips of the prompts, encoded and decoded."""
    frames, (size, _), vae = pipeline.config.clip_frames, pipeline.config.size, pipeline.vae
    for seed, prompt in enumerate(track(prompts, "autoencoding", console=Console(stderr=True))):
        clip = torch.from_numpy(render(place(parse_caption(prompt), seed), frames, size))
        video = clip.permute(3, 0, 1, 2)[None].to(vae.device, vae.dtype) / 127.5 - 1
        yield uint8_frames(vae.decode(vae.encode(video, sample=False), frames)[0])


def table(model: Adherence, bound: Adherence, ratio: float) -> Table:
    shown = Table("attribute", "model", "rendered clips through the VAE", title="prompt adherence")
    reached = model.present()
    for name, value in bound.present().items():
        shown.add_row(name, f"{reached[name]:.3f}" if name in reached else "-", f"{value:.3f}")
    shown.add_row("ratio of the means", f"{ratio:.3f}", "1")
    return shown


def measure(args: argparse.Namespace) -> dict[str, Any]:
    values = read_config(args.config, args.cfg_options).to_dict()
    cache = take_cache_config(values, args.adacache)
    prompts = held_out_prompts(args.prompts, args.prompt_seed)
    config = InferenceConfig.from_dict({**values, "prompt": prompts, "num_sample": 1}, args.config)
    pipeline = Pipeline.load(config)
    clips = list(sampled(pipeline, cache))
    if args.sheet:
        save_sheet(args.sheet, clips, prompts)
    scores = [score_clip(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
    bounds = list(map(score_clip, reconstructed(pipeline, prompts), prompts))
    mean, bound = (float(np.mean([s.mean for s in found])) for found in (scores, bounds))
    Console().print(table(average(scores), average(bounds), mean / bound))
    videos = [{"prompt": p, "mean": s.mean, **s.present()} for p, s in zip(prompts, scores, strict=True)]
    return {"config": args.config, "prompts": len(prompts), "mean": mean, "bound": bound,
            "ratio": mean / bound, "all_right": float(np.mean([s.mean == 1 for s in scores])),
            "attributes": average(scores).present(), "bound_attributes": average(bounds).present(),
            "videos": videos}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--prompts", type=int, default=128, metavar="N")
    parser.add_argument("--prompt-seed", type=int, default=0, metavar="N",
                        help="other prompts, to choose settings by; 0 are those that are reported")
    parser.add_argument("--adacache", metavar="NAME", help=ALLOWED)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()

    def run() -> None:
        result = measure(args)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
