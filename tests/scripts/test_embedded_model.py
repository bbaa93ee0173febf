"""The model that ships: the README's first command, with few steps, and what its weights are."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from opensora.datasets.shapes import parse_caption, place, render, sample_scene
from opensora.datasets.shapes_score import score_clip
from opensora.datasets.video_io import read_video
from opensora.registry import MODELS, build_module
from opensora.utils.weights import packaged_path

ROOT = Path(__file__).resolve().parents[2]
ASSETS = Path(packaged_path("opensora/assets/shapes"))
PROMPT = "a large yellow circle moves left quickly on a gray background"
NAMES = ("sample", "sample_adacache", "sample_calibrated")
SAME_CLIP = 30  # dB


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two samples of the README's script, without and with AdaCache."""
    folder = tmp_path_factory.mktemp("samples")
    for name in NAMES:
        command = [sys.executable, "scripts/inference.py", f"configs/shapes/{name}.py", "--prompt", PROMPT,
                   "--save-dir", str(folder), "--sample-name", name]
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_clip_shows_what_the_prompt_says(folder, name):
    frames, fps = read_video(folder / f"{name}_0000.mp4")
    assert frames.shape == (51, 128, 128, 3) and fps == 24
    score = score_clip(frames.numpy(), PROMPT)
    assert {k for k, v in score.present().items() if v < 1} == set()


# residuals that are kept: one to reuse, two orders of the forecast, and one to compare where videos decide
@pytest.mark.parametrize(("name", "kept"), [("sample_adacache", 4), ("sample_calibrated", 3)])
def test_adacache_computes_less_than_half_of_the_steps_of_visibly_the_same_clip(folder, name, kept):
    plain, cached = (json.loads((folder / f"{each}_0000.json").read_text()) for each in ("sample", name))
    assert plain["uncached"] and not cached["uncached"]
    assert len(plain["computed_steps"]) == 30 and 4 < len(cached["computed_steps"]) < 15
    videos = [read_video(folder / f"{each}_0000.mp4")[0].numpy() for each in ("sample", name)]
    assert peak_signal_noise_ratio(*videos) > SAME_CLIP
    assert cached["cache_bytes"] == kept * 2 * 15 * 16 * 192 * 4  # of 2 rows of 15 x 16 tokens
    assert cached["forecast"] == 2 and cached["signature"]["input_shape"] == [4, 15, 16, 16]


def test_the_same_circle_a_little_off_is_not_visibly_the_same():
    """What the limit means: the circle of a rendered clip, five pixels off."""
    clip = render(place(parse_caption(PROMPT), 0))
    assert peak_signal_noise_ratio(clip, np.roll(clip, 5, axis=2)) < SAME_CLIP


def test_the_autoencoder_keeps_a_clip_it_never_saw():
    vae = build_module(dict(type="OpenSoraVAE_V1_2", from_pretrained=str(ASSETS / "vae")), MODELS)
    clip = render(sample_scene(10**9), 17)
    video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        error = (vae.decode(vae.encode(video, sample=False), 17) - video).square().mean().item()
    assert 10 * np.log10(4 / error) > 28  # dB


def test_the_weights_fit_in_40_mb_and_come_with_a_card():
    files = [p for p in ASSETS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 40e6
    weights = {p.parent.name for p in files if p.suffix == ".safetensors"}
    assert weights == {"transformer", "vae", "text_encoder"}
    card = (ASSETS / "README.md").read_text()
    assert all(word in card for word in ("Data", "Steps", "Hours", "Scores", "Limits"))
