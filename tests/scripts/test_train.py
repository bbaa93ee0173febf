"""The training scripts as a user starts them, on tiny models: CSV videos, cached latents, autoencoder."""
import csv
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchrun import torchrun

from opensora.datasets.video_csv import VariableVideoTextDataset
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.registry import MODELS, build_module
from opensora.training.video_batches import VideoBatches

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BUCKETS = {"144p": {1: (1.0, 2), 17: (1.0, 1)}}


@pytest.fixture
def videos(tmp_path) -> Path:
    """A CSV of three videos of 20 frames, 144 x 256, each of another grey, and of two images."""
    rows = []
    for i, level in enumerate((20, 100, 180)):
        with av.open(str(tmp_path / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=24)
            stream.height, stream.width, stream.pix_fmt = 144, 256, "yuv420p"
            for _ in range(20):
                frame = av.VideoFrame.from_ndarray(np.full((144, 256, 3), level, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        rows.append(f"{i}.mp4,a red circle,20,144,256")
    for i in range(2):
        av.VideoFrame.from_ndarray(np.full((144, 256, 3), 60, np.uint8), format="rgb24").to_image().save(
            tmp_path / f"{i}.png")
        rows.append(f"{i}.png,a blue square,1,144,256")
    (tmp_path / "videos.csv").write_text("\n".join(["path,text,num_frames,height,width", *rows]) + "\n")
    return tmp_path / "videos.csv"


def status(monkeypatch, script: str, config: Path) -> int:
    monkeypatch.setattr(sys, "argv", [script, str(config)])
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    return ended.value.code or 0


def run(monkeypatch, script: str, config: Path) -> None:
    assert status(monkeypatch, script, config) == 0


def refused(monkeypatch, capsys, script: str, config: Path, said: str) -> None:
    assert status(monkeypatch, script, config) == 2
    assert said in capsys.readouterr().err


def batches(tiny, videos, **options) -> VideoBatches:
    vae = build_module(dict(type="OpenSoraVAE_V1_2", from_pretrained=str(tiny / "vae")), MODELS)
    text = T5Encoder(str(tiny / "text_encoder"), model_max_length=12, device="cpu")
    one = {"per_step": 1, "shares": [0]}
    return VideoBatches(VariableVideoTextDataset(videos), BUCKETS, vae, text, **{**one, **options})


def test_a_batch_is_one_bucket_of_latents_with_captions_and_sizes(tiny, videos):
    at = batches(tiny, videos)
    epoch = [at(step) for step in range(4)]  # three videos and one pair of images
    shapes = sorted(tuple(batch.z.shape) for batch in epoch)
    assert shapes == [(1, 4, 5, 18, 32)] * 3 + [(2, 4, 1, 18, 32)]
    video = next(batch for batch in epoch if batch.z.shape[2] == 5)
    assert {k: v.tolist() for k, v in video.sizes.items()} == {
        "fps": [24], "height": [144], "width": [256], "num_frames": [17]}
    assert video.mask.sum() == 4  # a, red, circle, end


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_the_batches_that_an_unbroken_one_sees(tiny, videos, workers):
    def seen(at: VideoBatches, step: int) -> torch.Tensor:
        torch.manual_seed(step)  # as the loop does: the autoencoder draws
        return at(step).z

    unbroken = batches(tiny, videos)
    expected = [seen(unbroken, step) for step in range(7)]  # into the second epoch
    resumed = batches(tiny, videos, workers=workers)
    for step in (5, 6, 2):
        assert torch.equal(seen(resumed, step), expected[step])


def test_ranks_share_a_bucket_and_no_video(tiny, videos):
    ranks = [batches(tiny, videos, per_step=2, shares=[rank]) for rank in range(2)]
    first, second = (at(index) for index, at in enumerate(ranks))
    assert first.z.shape == second.z.shape and not torch.equal(first.z, second.z)


def config(tiny, videos, tmp_path, steps: int) -> Path:
    path = tmp_path / f"train_{steps}.py"
    path.write_text(f"""
model = dict(type="STDiT3", from_pretrained="{tiny}/transformer")
vae = dict(type="OpenSoraVAE_V1_2", from_pretrained="{tiny}/vae")
text_encoder = dict(type="t5", from_pretrained="{tiny}/text_encoder", model_max_length=12)
dataset = dict(type="VariableVideoTextDataset", data_path="{videos}")
bucket_config = {BUCKETS}
flow = dict(use_timestep_transform=True, sample_method="logit-normal")
objective = dict(mask_ratios=dict(image_head=0.5))
loop = dict(steps={steps}, lr=1e-3, warmup=1, dtype="fp32", log_every=1, ckpt_every=1, decay_fraction=0.0)
workers = 0
seed = 1
out = "{tmp_path}/out"
""")
    return path


def test_videos_from_a_csv_train_a_transformer_that_loads(tiny, videos, tmp_path, monkeypatch):
    run(monkeypatch, "train", config(tiny, videos, tmp_path, 2))
    run(monkeypatch, "train", config(tiny, videos, tmp_path, 3))  # goes on at step 2
    rows = list(csv.DictReader((tmp_path / "out/loss.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3] and all(float(row["loss"]) > 0 for row in rows)
    trained = build_module(dict(type="STDiT3", from_pretrained=str(tmp_path / "out/transformer")), MODELS)
    first = build_module(dict(type="STDiT3", from_pretrained=str(tiny / "transformer")), MODELS)
    assert not torch.equal(trained.final_layer.linear.weight, first.final_layer.linear.weight)
    assert not list((tmp_path / "out").rglob("*.part"))


def trained_on(ranks: int, path: Path, *options: str) -> dict[str, torch.Tensor]:
    """The averaged weights after `torchrun scripts/train.py`."""
    torchrun(ranks, SCRIPTS / "train.py", path, "--cfg-options", "workers=0", *options)
    return load_file(path.parent / "out/transformer/model.safetensors")


def test_a_transformer_trains_on_ranks_sharded_or_not_as_on_one(tiny, videos, tmp_path):
    """Two steps by two ranks under FSDP2, with blocks recomputed; a third by four, each with all weights."""
    quick = "loop.ema_decay=0"  # or three steps would not show in the averages
    expected = trained_on(1, config(tiny, videos, tmp_path, 3), quick, "loop.batches=2")
    shutil.move(tmp_path / "out", tmp_path / "one")
    trained_on(2, config(tiny, videos, tmp_path, 2), quick, "loop.batches=2", "loop.shard=True",
               "model.grad_checkpoint=True")
    found = trained_on(4, config(tiny, videos, tmp_path, 3), quick)
    # Adam's steps are as large whatever the size of gradients
    one, several = (list(csv.DictReader((tmp_path / name / "loss.csv").open())) for name in ("one", "out"))
    assert [float(row["grad_norm"]) for row in several] == pytest.approx(
        [float(row["grad_norm"]) for row in one], rel=1e-4)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)  # a step is 1e-3


def test_shapes_train_from_nothing_through_all_three_scripts(tmp_path, monkeypatch, capsys):
    """Autoencoder, latents, diffusion: each reads what the one before wrote."""
    vae = tmp_path / "vae.py"
    vae.write_text(f"""
model = dict(type="OpenSoraVAE_V1_2", micro_batch_size=None, spatial_config=dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=2, sample_size=32,
    block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4),
    temporal_config=dict(filters=16, num_res_blocks=1, channel_multipliers=(1, 1, 1, 1), num_groups=2))
dataset = dict(type="ShapesDataset", length=8, num_frames=17, size=32)
stages = [
    dict(kind="spatial", steps=1, lr=1e-3, dataset=dict(num_frames=1),
         batch=dict(clips=2, frames=1, size=16)),
    dict(kind="temporal", steps=1, lr=1e-3, batch=dict(clips=1, frames=17, size=32)),
]
statistics_clips = 2
seed = 0
out = "{tmp_path}/autoencoder"
""")
    latents = tmp_path / "latents.py"
    latents.write_text(f"""
vae = dict(type="OpenSoraVAE_V1_2", from_pretrained="{tmp_path}/autoencoder/vae", micro_batch_size=None)
dataset = dict(type="ShapesDataset", length=5, num_frames=17, size=32)
shard_size = 2
dtype = "fp32"
out = "{tmp_path}/latents"
""")
    diffusion = tmp_path / "diffusion.py"
    diffusion.write_text(f"""
model = dict(type="STDiT3", depth=1, hidden_size=16, num_heads=2)
text_encoder = dict(type="t5-new", vocabulary="shapes", model_max_length=32, d_model=16, num_layers=1)
dataset = dict(type="LatentDataset", folder="{tmp_path}/latents")
flow = dict(use_timestep_transform=True)
objective = dict(train_text_encoder=True)
stages = [
    dict(until=1, latent_frames=1, num_frames=1, batch=2),
    dict(until=2, latent_frames=5, num_frames=17, batch=2),
]
loop = dict(lr=1e-3, muon_lr=1e-3, log_every=1)
sizes = dict(height=32, width=32, fps=24)
seed = 0
out = "{tmp_path}/diffusion"
""")
    for wrong, said in (("statistics_clips = 9", "statistics_clips=9; allowed: 1 to 8"),
                        ("stages[1]['kind'] = 'temporl'", "kind='temporl'; allowed: spatial, temporal"),
                        ("del stages[1]['batch']", "batch is missing"),
                        ("stages[1]['dtype'] = 'fp16'", "dtype='fp16'; allowed: bf16, fp32")):
        (tmp_path / "wrong.py").write_text(f"{vae.read_text()}{wrong}\n")
        refused(monkeypatch, capsys, "train_vae", tmp_path / "wrong.py", said)
    assert not (tmp_path / "autoencoder").exists()  # before the first stage
    run(monkeypatch, "train_vae", vae)
    run(monkeypatch, "cache_latents", latents)
    (tmp_path / "wrong.py").write_text(latents.read_text().replace("shard_size = 2", "shard_size = 4"))
    refused(monkeypatch, capsys, "cache_latents", tmp_path / "wrong.py", "000000.safetensors was made with")
    assert len(list((tmp_path / "latents").glob("*.safetensors"))) == 3
    run(monkeypatch, "train", diffusion)
    text = T5Encoder(str(tmp_path / "diffusion/text_encoder"), model_max_length=32, device="cpu")
    model = build_module(dict(type="STDiT3", from_pretrained=str(tmp_path / "diffusion/transformer")), MODELS)
    assert model.config.caption_channels == text.output_dim == 16


def test_a_key_that_nothing_reads_is_an_error_in_one_line(tiny, videos, tmp_path):
    path = config(tiny, videos, tmp_path, 1)
    path.write_text(path.read_text() + "stages = []\n")
    command = [sys.executable, str(SCRIPTS / "train.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "stages" in done.stderr
    assert not (tmp_path / "out").exists()
