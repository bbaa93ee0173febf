"""The inference script end to end, on random models of a few thousand weights."""
import importlib
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

from opensora.datasets.video_io import read_image, read_video
from opensora.models.vae.vae import OpenSoraVAE
from opensora.pipeline import Pipeline
from opensora.utils.command_line import inference_parser

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
KEYS = {"prompt", "seed", "config", "frames", "height", "width", "fps", "num_steps", "computed_steps",
        "decisions", "seconds", "cache_bytes", "uncached"}  # the contract's
DECISION = {"step", "distance", "motion", "motion_gradient", "regularized_distance", "rate"}
PROBE = "temporal_blocks.1.attn"


@pytest.fixture
def inference(monkeypatch):
    """`inference("--flag", ...)` runs the script's main in this process and gives its exit status."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("inference")
    monkeypatch.setattr(sys, "argv", ["inference.py"])
    return lambda *args: module.main([str(arg) for arg in args])


@pytest.fixture
def config(tiny) -> Path:
    return tiny / "sample.py"


@pytest.fixture
def cached(tiny) -> Path:
    """A config with AdaCache: rate 2 for every distance, so that steps 0, 1, 3, 4, 5 of 6 are computed."""
    path = tiny / "sample_adacache.py"
    path.write_text(f'_base_ = "sample.py"\nadacache = dict(codebook=[(1e9, 2)], probes=("{PROBE}",))\n')
    return path


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def far(first: Path, second: Path) -> float:
    """Mean difference of two videos' pixels, of 255."""
    return (read_video(first)[0].float() - read_video(second)[0].float()).abs().mean().item()


def record(path: Path) -> dict:
    return json.loads(path.read_text())


def no_models(*args, **kwargs):
    raise AssertionError("models are loaded, though there is nothing to make")


def test_a_prompt_becomes_an_mp4_and_its_record(inference, config, tmp_path, capsys):
    assert inference(config, "--prompt", "a blue square", "--save-dir", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["sample_0000.json", "sample_0000.mp4"]
    pixels, fps = read_video(tmp_path / "out/sample_0000.mp4")
    assert pixels.shape == (17, 32, 48, 3) and fps == 24 and pixels.float().std() > 1
    kept = record(tmp_path / "out/sample_0000.json")
    assert set(kept) >= KEYS
    assert (kept["prompt"], kept["seed"], kept["config"]) == ("a blue square", 7, str(config))
    assert (kept["frames"], kept["height"], kept["width"], kept["fps"]) == (17, 32, 48, 24)
    assert kept["num_steps"] == 6 and kept["computed_steps"] == [0, 1, 2, 3, 4, 5] and kept["decisions"] == []
    assert kept["uncached"] is True and kept["cache_bytes"] == 0
    assert set(kept["seconds"]) == {"text", "denoise", "decode", "total"}
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("1 video in ") and "computed 6 of 6 steps" in last


def test_with_adacache_the_record_tells_what_was_computed_and_why(inference, cached, tmp_path, capsys):
    assert inference(cached, "--save-dir", tmp_path) == 0
    kept = record(tmp_path / "sample_0000.json")
    assert kept["computed_steps"] == [0, 1, 3, 4, 5] and kept["uncached"] is False
    # a rate follows each computed step that has an earlier one to be compared with
    assert [d["step"] for d in kept["decisions"]][:2] == [1, 3]
    assert set(kept["decisions"][0]) >= DECISION
    # two residuals at most: 2 guidance rows x 5 latent frames x 2 x 3 patches x 32 channels x 4 bytes
    assert 0 < kept["cache_bytes"] <= 2 * 2 * 5 * 6 * 32 * 4
    assert "computed 5 of 6 steps" in capsys.readouterr().out.strip().splitlines()[-1]


def test_the_flag_turns_adacache_off_and_changes_its_codebook(inference, cached, tmp_path):
    assert inference(cached, "--adacache", "off", "--save-dir", tmp_path / "off") == 0
    assert record(tmp_path / "off/sample_0000.json")["uncached"] is True
    flags = ("--adacache", "fast", "--num-sampling-steps", 30)
    assert inference(cached, *flags, "--save-dir", tmp_path / "fast") == 0
    assert record(tmp_path / "fast/sample_0000.json")["uncached"] is False


def test_the_flag_alone_is_enough(inference, config, tmp_path):
    assert inference(config, "--adacache", "fast", "--num-sampling-steps", 30, "--save-dir", tmp_path) == 0
    kept = record(tmp_path / "sample_0000.json")
    assert kept["uncached"] is False and len(kept["decisions"]) > 0


def test_a_profile_is_a_json_file_with_settings(inference, config, tmp_path):
    (tmp_path / "profile.json").write_text(json.dumps({"codebook": [[1e9, 3]], "probes": [PROBE]}))
    assert inference(config, "--adacache", tmp_path / "profile.json", "--save-dir", tmp_path / "out") == 0
    assert record(tmp_path / "out/sample_0000.json")["computed_steps"] == [0, 1, 4, 5]


def test_the_published_forks_config_runs_unchanged(inference, tiny, tmp_path):
    """Its layout: settings at top level, repeated in `model`; steps told to model and scheduler."""
    path = tmp_path / "sample_adacache_moreg.py"
    path.write_text(f'''
image_size = (32, 48)
num_frames = 17
fps = 24
frame_interval = 1
save_fps = 24

num_sampling_steps = 30

do_cache = True
cache_res = 't-attn'
cache_loc = [1]
codebook = {{0.08: 6, 0.16: 5, 0.24: 4, 0.32: 3, 0.40: 2, 1.00: 1}}

apply_moreg = True
moreg_strides = [1]
moreg_steps = (4, 26)
moreg_hyp = (0.385, 8, 1,2)
mograd_mul = 10

seed = 1024
batch_size = 1
multi_resolution = "STDiT2"
dtype = "bf16"
condition_frame_length = 5
align = 5
aes = 6.5
flow = None

model = dict(
    type="STDiT3", from_pretrained="{tiny}/transformer", qk_norm=True, enable_flash_attn=False,
    enable_layernorm_kernel=False, num_sampling_steps=num_sampling_steps, do_cache=do_cache,
    cache_res=cache_res, cache_loc=cache_loc, codebook=codebook, apply_moreg=apply_moreg,
    moreg_strides=moreg_strides, moreg_steps=moreg_steps, moreg_hyp=moreg_hyp, mograd_mul=mograd_mul,
)
vae = dict(type="OpenSoraVAE_V1_2", from_pretrained="{tiny}/vae", micro_frame_size=17, micro_batch_size=4)
text_encoder = dict(type="t5", from_pretrained="{tiny}/text_encoder", model_max_length=12)
scheduler = dict(
    type="rflow", use_timestep_transform=True, num_sampling_steps=num_sampling_steps, cfg_scale=7.0)
''')
    flags = ("--prompt", "a red circle", "--flash-attn", "False", "--layernorm-kernel", "False",
             "--device", "cpu")
    assert inference(path, *flags, "--save-dir", tmp_path / "a") == 0
    kept = record(tmp_path / "a/sample_0000.json")
    assert kept["num_steps"] == 30 and kept["uncached"] is False
    assert any(d["motion"] != 1 for d in kept["decisions"])  # MoReg is on
    # 2 residuals of each of 4 blocks, 2 x 5 x 6 tokens x 32 channels in bf16, and at most the probe's
    assert 8 * 2 * 5 * 6 * 32 * 2 <= kept["cache_bytes"] <= 9 * 2 * 5 * 6 * 32 * 2
    assert inference(path, *flags, "--num-sampling-steps", 10, "--save-dir", tmp_path / "b") == 0
    assert record(tmp_path / "b/sample_0000.json")["num_steps"] == 10
    path.write_text(path.read_text().replace("do_cache = True", "do_cache = False"))
    assert inference(path, *flags, "--num-sampling-steps", 4, "--save-dir", tmp_path / "c") == 0
    assert record(tmp_path / "c/sample_0000.json")["uncached"] is True


def test_one_frame_is_a_picture(inference, config, tmp_path):
    assert inference(config, "--num-frames", 1, "--save-dir", tmp_path) == 0
    assert files(tmp_path) == ["sample_0000.json", "sample_0000.png"]
    assert read_image(tmp_path / "sample_0000.png").shape == (32, 48, 3)


def test_finished_samples_are_kept_unless_overwritten(inference, config, tmp_path, monkeypatch, capsys):
    flags = (config, "--prompt", "a red circle", "a blue square", "--save-dir", tmp_path)
    assert inference(*flags) == 0
    video = tmp_path / "sample_0001.mp4"
    made = video.rename(tmp_path / "made.mp4")
    video.write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "load", no_models)
        assert inference(*flags) == 0
    assert video.read_bytes() == b"mine"
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("0 videos") and "2 existing kept" in last
    assert inference(*flags, "--overwrite") == 0
    assert far(video, made) < 1


def test_a_lost_sample_is_made_again_as_it_was(inference, config, tmp_path):
    """Only what is missing is made, and it does not depend on what else is."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n\na red square moves right\n")
    flags = (config, "--prompt-path", prompts, "--batch-size", 2, "--save-dir", tmp_path / "out")
    assert inference(*flags) == 0
    assert files(tmp_path / "out") == [f"sample_000{i}.{s}" for i in range(3) for s in ("json", "mp4")]
    made = (tmp_path / "out/sample_0001.mp4").rename(tmp_path / "made.mp4")
    assert inference(*flags) == 0
    assert far(tmp_path / "out/sample_0001.mp4", made) < 1 < 5 < far(tmp_path / "out/sample_0002.mp4", made)
    assert inference(config, "--prompt-path", prompts, "--start-index", 1, "--end-index", 2,
                     "--save-dir", tmp_path / "part") == 0
    assert files(tmp_path / "part") == ["sample_0001.json", "sample_0001.mp4"]
    assert far(tmp_path / "part/sample_0001.mp4", made) < 1


def test_files_are_named_after_prompts_and_numbers(inference, config, tmp_path):
    flags = (config, "--prompt", "a red circle", "--num-sample", 2, "--num-frames", 1, "--save-dir", tmp_path)
    assert inference(*flags, "--prompt-as-path") == 0
    assert inference(*flags, "--sample-name", "shape") == 0
    names = [p for p in files(tmp_path) if p.endswith(".png")]
    assert names == ["a red circle-0.png", "a red circle-1.png", "shape_0000-0.png", "shape_0000-1.png"]
    pictures = [read_image(tmp_path / name).float() for name in names]
    assert (pictures[0] - pictures[2]).abs().max() <= 1 < (pictures[0] - pictures[1]).abs().max()


def test_clips_of_a_loop_become_one_video(inference, cached, tmp_path, capsys):
    prompt = "|0| a red circle |1| a blue square"
    assert inference(cached, "--num-frames", 34, "--loop", 2, "--prompt", prompt, "--save-dir", tmp_path) == 0
    assert len(read_video(tmp_path / "sample_0000.mp4")[0]) == 34 + 34 - 17
    kept = record(tmp_path / "sample_0000.json")
    assert kept["frames"] == 51 and [c["computed_steps"] for c in kept["clips"]] == [[0, 1, 3, 4, 5]] * 2
    assert "computed 10 of 12 steps" in capsys.readouterr().out.strip().splitlines()[-1]


def test_a_reference_can_come_by_flag_or_in_the_prompt(inference, config, tmp_path):
    picture = tmp_path / "red.png"
    Image.new("RGB", (60, 40), (250, 10, 10)).save(picture)
    flags = (config, "--num-sample", 1, "--num-frames", 17)
    prompt = "a red circle " + json.dumps({"reference_path": str(picture), "mask_strategy": "0"})
    assert inference(*flags, "--prompt", "a red circle", "--reference-path", picture, "--mask-strategy", "0",
                     "--save-dir", tmp_path / "flag") == 0
    assert inference(*flags, "--prompt", prompt, "--save-dir", tmp_path / "json") == 0
    assert inference(*flags, "--prompt", "a red circle", "--save-dir", tmp_path / "none") == 0
    flag, inside, none = [tmp_path / d / "sample_0000.mp4" for d in ("flag", "json", "none")]
    assert far(flag, inside) < 1 < 5 < far(flag, none)
    assert record(tmp_path / "json/sample_0000.json")["prompt"] == "a red circle"


def test_pictures_of_a_first_run_start_the_videos_of_a_second(inference, config, tmp_path):
    """The published two-stage run: a folder of pictures, named as the samples."""
    prompts = ("--prompt", "a red circle", "a blue square")
    assert inference(config, *prompts, "--num-frames", 1, "--image-size", 64, 96,
                     "--save-dir", tmp_path / "images") == 0
    assert inference(config, *prompts, "--reference-path", tmp_path / "images", "--mask-strategy", "0",
                     "--save-dir", tmp_path / "videos") == 0
    kept = record(tmp_path / "videos/sample_0001.json")
    assert kept["reference_path"] == str(tmp_path / "images/sample_0001.png")


def test_the_two_stage_script_starts_both_runs(tmp_path):
    """Seen through RUN=echo: the published settings; the second takes its references from the first."""
    done = subprocess.run(
        [str(SCRIPTS / "image_to_video.sh"), "config.py", "prompts.txt", str(tmp_path), "--batch-size", "2"],
        env={**os.environ, "RUN": "echo"}, capture_output=True, text=True, check=True)
    lines = [line.split()[1:] for line in done.stdout.splitlines()]
    image, video = [vars(inference_parser("").parse_args(line)) for line in lines]
    assert (image["resolution"], image["num_frames"], image["num_sampling_steps"]) == ("1080p", "1", 100)
    assert (video["resolution"], video["num_frames"], video["num_sampling_steps"]) == ("720p", "2s", 100)
    assert (video["aes"], video["flow"], video["mask_strategy"]) == (7, 5, ["0"])
    assert video["reference_path"] == [image["save_dir"]]
    for run in (image, video):
        assert (run["config"], run["batch_size"], run["seed"]) == ("config.py", 2, 1024)


def test_a_video_that_fails_is_named_and_the_others_kept(inference, config, tmp_path, monkeypatch, capsys):
    generate = Pipeline.generate

    def failing(self, requests, *args):
        if requests[0].index == 1:
            raise RuntimeError("out of\nmemory")
        return generate(self, requests, *args)

    monkeypatch.setattr(Pipeline, "generate", failing)
    assert inference(config, "--prompt", "a", "red", "circle", "--num-frames", 1, "--save-dir", tmp_path) == 1
    assert files(tmp_path) == ["failed.jsonl", "sample_0000.json", "sample_0000.png", "sample_0002.json",
                               "sample_0002.png"]
    printed = capsys.readouterr()
    assert "failed: sample_0001.png: RuntimeError: out of memory" in printed.err
    assert printed.out.strip().splitlines()[-1].startswith("2 videos in ") and "1 failed" in printed.out


def test_a_finished_video_is_let_go_before_the_next_is_made(inference, config, tmp_path, monkeypatch):
    """So memory does not grow with the number of prompts."""
    generate, videos, alive = Pipeline.generate, [], []

    def counting(self, requests, *args):
        alive.append(sum(video() is not None for video in videos))
        samples = generate(self, requests, *args)
        videos.extend(weakref.ref(sample.video) for sample in samples)
        return samples

    monkeypatch.setattr(Pipeline, "generate", counting)
    assert inference(config, "--prompt", "a", "red", "circle", "--num-frames", 1, "--save-dir", tmp_path) == 0
    assert alive == [0, 0, 0] and len(videos) == 3


def test_a_broken_sample_is_not_saved(inference, config, tmp_path, monkeypatch, capsys):
    decode = OpenSoraVAE.decode
    monkeypatch.setattr(OpenSoraVAE, "decode", lambda *args, **kwargs: decode(*args, **kwargs) * float("nan"))
    assert inference(config, "--save-dir", tmp_path) == 1
    assert files(tmp_path) == ["failed.jsonl"] and "NaN" in capsys.readouterr().err


def test_ctrl_c_leaves_finished_videos_and_nothing_half_written(inference, config, tmp_path, monkeypatch):
    generate = Pipeline.generate

    def interrupted(self, requests, *args):
        if requests[0].index == 1:
            raise KeyboardInterrupt
        return generate(self, requests, *args)

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    assert inference(config, "--prompt", "a", "red", "--num-frames", 1, "--save-dir", tmp_path) == 130
    assert files(tmp_path) == ["sample_0000.json", "sample_0000.png"]


def test_flags_override_the_config(inference, config, tmp_path, monkeypatch):
    seen = []
    load = Pipeline.load.__func__

    def loaded(cls, config, *options):
        seen.append((config, load(cls, config, *options)))
        return seen[-1][1]

    monkeypatch.setattr(Pipeline, "load", classmethod(loaded))
    assert inference(
        config, "--resolution", "144p", "--aspect-ratio", "1:1", "--num-frames", 1, "--cfg-scale", 2,
        "--num-sampling-steps", 3, "--seed", 5, "--aes", 6, "--flow", 2, "--camera-motion", "pan left",
        "--dtype", "bf16", "--fps", 12, "--save-fps", 6, "--verbose", 0, "--offload", "--save-dir", tmp_path,
        "--cfg-options", "vae.micro_batch_size=2", "batch_size=3") == 0
    chosen, pipeline = seen[0]
    assert chosen.size == (192, 192) and chosen.offload
    assert (chosen.seed, chosen.fps, chosen.save_fps, chosen.batch_size) == (5, 12, 6, 3)
    assert (pipeline.scheduler.num_sampling_steps, pipeline.scheduler.cfg_scale) == (3, 2)
    assert pipeline.vae.spatial_vae.micro_batch_size == 2
    assert pipeline.model.y_embedder.y_embedding.dtype == torch.bfloat16
    assert record(tmp_path / "sample_0000.json")["texts"] == [
        "a red circle moves left aesthetic score: 6.0. motion score: 2.0. camera motion: pan left."]


def test_a_config_s_flash_attention_is_turned_off_by_a_flag(inference, tiny, tmp_path):
    path = tiny / "flash.py"
    path.write_text("_base_ = 'sample.py'\nmodel = dict(attention_backend='flash-attn')\n")
    assert inference(path, "--flash-attn", "False", "--num-frames", 1, "--save-dir", tmp_path) == 0
