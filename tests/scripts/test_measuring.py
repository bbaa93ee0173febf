"""The scripts that measure: what they print comes from what was run."""
import importlib
import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import opensora.models  # noqa: F401  registers the text encoder
from adacache import AdaCacheConfig, FixedSchedule, MoRegConfig, Signature
from adacache.recording import Recording
from opensora.datasets.shapes import held_out_prompts
from opensora.datasets.video_io import read_image, read_video, save_sample
from opensora.registry import MODELS, build_module

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    """`script(name)` imports scripts/NAME.py."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def sample(folder: Path, level: float, seconds: float, steps: list[int]) -> Path:
    """A grey video of 17 frames, 32 x 48, and its record."""
    file = save_sample(torch.full((3, 17, 32, 48), level), folder / "sample_0000")
    decisions = [{"step": 1, "distance": 0.2, "motion": 1.0, "motion_gradient": 0.0,
                  "regularized_distance": 0.2, "rate": 2}]
    file.with_suffix(".json").write_text(json.dumps({
        "prompt": "grey", "seed": 1, "num_steps": 6, "frames": 17, "computed_steps": steps,
        "decisions": decisions, "seconds": {"denoise": seconds}}))
    return file


def test_the_benchmark_tells_computed_from_reused_steps(script, tiny, tmp_path, monkeypatch):
    config = tiny / "cached.py"
    config.write_text('_base_ = "sample.py"\nadacache = dict(codebook=[(1e9, 2)], '
                      'probes=("temporal_blocks.1.attn",))\n')
    out = tmp_path / "numbers.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", str(config), "--repeats", "2", "--json", str(out)])
    assert script("benchmark").main() == 0
    numbers = json.loads(out.read_text())
    assert (numbers["steps"], numbers["computed_steps"]) == (6, 5)
    assert numbers["steps_over_computed"] == pytest.approx(6 / 5)
    assert 0 < numbers["cache_bytes"] <= 2 * numbers["residual_bytes"]
    assert numbers["residual_bytes"] == 2 * 5 * 6 * 32 * 4  # rows, latent frames, patches, width, fp32
    assert numbers["reused_step_ms"] > 0 and numbers["computed_step_ms"] > 0
    assert 0 < numbers["bookkeeping_clocked"] < 1


def test_a_benchmark_of_nothing_is_an_error(script, tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", str(tiny / "sample.py")])
    assert script("benchmark").main() == 2
    assert "has no adacache; allowed: one that has" in capsys.readouterr().err


def test_a_runs_summary_is_made_of_medians_and_paired_ratios(script):
    benchmark, Run = script("benchmark"), script("denoising_time").Run
    plain = [Run([4.0] * 4, [[0, 1, 2, 3]], 0, 8), Run([2.0] * 4, [[0, 1, 2, 3]], 0, 8)]
    deciding = [Run([4.1] * 4, [[0, 1, 2, 3]], 16, 8, 0.02), Run([2.0] * 4, [[0, 1, 2, 3]], 16, 8, 0.04)]
    cached = [Run([4.0, 4.0, 0.1, 0.1], [[0, 1]], 16, 8), Run([2.0, 2.0, 0.1, 0.1], [[0, 1]], 16, 8)]
    numbers = benchmark.summary({"plain": plain, "deciding": deciding, "cached": cached}, 4)
    assert numbers["computed_step_ms"] == 3000 and numbers["reused_step_ms"] == pytest.approx(100)
    assert numbers["reused_over_computed"] == pytest.approx(0.1 / 3)
    assert numbers["bookkeeping"] == pytest.approx((4.1 / 4.0 + 1.0) / 2 - 1)
    assert numbers["bookkeeping_clocked"] == pytest.approx(0.03)
    assert numbers["speed_up"] == pytest.approx((16 / 8.2 + 8 / 4.2) / 2)
    assert numbers["steps_over_computed"] == 2


def test_videos_of_a_batch_count_their_own_steps(script):
    run = script("denoising_time").Run([4.0, 4.0, 2.0, 0.1], [[0, 1], [0, 1, 2]], 16, 8)
    assert run.computed == 2.5
    assert (run.computed_seconds, run.reused_seconds) == ([4.0, 4.0], [0.1])


def test_two_runs_are_compared_by_file(script, tmp_path, capsys):
    first = sample(tmp_path / "a", 0.0, 6.0, [0, 1, 2, 3, 4, 5])
    second = sample(tmp_path / "b", 0.2, 2.0, [0, 1, 3])
    psnr, ssim, computed, speed_up = script("compare").compare(first, second)
    gap = np.mean((read_video(first)[0].numpy() - read_video(second)[0].numpy().astype(float)) ** 2)
    assert psnr == pytest.approx(10 * np.log10(255**2 / gap)) and 18 < psnr < 22  # 0.1 of the range: 20 dB
    assert 0.5 < ssim < 1 and (computed, speed_up) == (3, 3)
    record = second.with_suffix(".json")
    record.write_text(record.read_text().replace("grey", "red"))
    with pytest.raises(ValueError, match="prompt of .* is 'red'; allowed: 'grey', the other's"):
        script("compare").compare(first, second)


def test_adherence_is_held_against_rendered_clips_through_the_autoencoder(script, tmp_path, monkeypatch):
    """Two steps show nothing of a prompt, the autoencoder all of it."""
    config = str(SCRIPTS.parent / "configs/shapes/sample.py")
    out, sheet = tmp_path / "adherence.json", tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["adherence.py", config, "--prompts", "2", "--json", str(out), "--sheet",
                                      str(sheet), "--cfg-options", "scheduler.num_sampling_steps=2",
                                      "num_sample=2"])  # one of each prompt is scored
    assert script("adherence").main() == 0
    found = json.loads(out.read_text())
    assert [video["prompt"] for video in found["videos"]] == held_out_prompts(2)
    assert found["mean"] == pytest.approx(np.mean([video["mean"] for video in found["videos"]]))
    assert found["ratio"] == pytest.approx(found["mean"] / found["bound"])
    assert found["mean"] < 0.7 < 0.95 < found["bound"] <= 1
    assert read_image(sheet).shape[1] == 2 * (6 * 128 + 8)


def test_words_that_an_encoder_confuses_are_set_apart(script, tiny, tmp_path, monkeypatch, capsys):
    words = ["left", "right", "up", "down"]
    shipped, out = SCRIPTS.parent / "opensora/assets/shapes/text_encoder", tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["separate_words.py", str(shipped), str(out), *words, "--draws", "3"])
    assert script("separate_words").main() == 0
    least = float(capsys.readouterr().out.split(": ")[1])
    encoders = [build_module(dict(type="t5", from_pretrained=str(path), model_max_length=32, device="cpu"),
                             MODELS) for path in (shipped, out)]
    ids = encoders[0].tokenize([" ".join(words)])[0][0, :4].tolist()
    before, after = (encoder.model.get_input_embeddings().weight for encoder in encoders)
    others = [i for i in range(len(before)) if i not in ids]
    assert torch.equal(before[others], after[others])
    products = after[ids] @ after[ids].T
    assert (products - products.diag().diag()).abs().max() < 1e-3 * products.diag().min()
    captions = [script("separate_words").CAPTION.format(word) for word in words]
    assert script("separate_words").least_distance(encoders[1], captions) == pytest.approx(least, abs=0.01)


def test_the_picture_of_a_schedule_is_a_picture(script, tmp_path):
    script("schedule_picture").draw(sample(tmp_path, 0.0, 1.0, [0, 1, 3, 4, 5]), tmp_path / "schedule.png")
    pixels = read_image(tmp_path / "schedule.png")
    assert pixels.shape[1] == 9 * 150
    blue = (pixels.float() - torch.tensor([31.0, 111.0, 180.0])).abs().sum(dim=-1) < 3
    assert blue.sum() > 1000  # bars of computed steps


def test_a_contact_sheet_has_a_row_for_every_clip(script, tmp_path):
    clips = [np.full((17, 32, 48, 3), level, np.uint8) for level in (0, 100, 200)]
    script("contact_sheet").save_sheet(tmp_path / "sheet.png", clips, ["a", "b", "c"], columns=1)
    pixels = read_image(tmp_path / "sheet.png")
    assert pixels.shape == (3 * (32 + 18), 6 * 48 + 8, 3)
    assert [int(pixels[14 + 16 + i * 50, 10, 0]) for i in range(3)] == [0, 100, 200]


def test_shipped_weights_are_those_that_training_wrote(script, tiny, tmp_path):
    script("ship_weights").ship(tiny, tiny, tmp_path)
    for part in ("transformer", "vae", "text_encoder"):
        before, after = (load_file(root / part / "model.safetensors") for root in (tiny, tmp_path))
        assert set(before) == set(after)
        for name, tensor in after.items():
            expected = before[name].to(torch.bfloat16) if part == "transformer" else before[name]
            assert torch.equal(tensor, expected), name
    assert (tmp_path / "text_encoder/tokenizer.json").exists()


SHORT = ["--cfg-options", "scheduler.num_sampling_steps=6", "num_frames=17"]


def test_steps_are_placed_by_recorded_runs(script, tmp_path, monkeypatch, capsys):
    out, config = tmp_path / "found.json", str(SCRIPTS.parent / "configs/shapes/sample.py")
    command = ["place_steps.py", config, "--prompts", "2", "--batch", "1", "--json", str(out), *SHORT]
    monkeypatch.setattr(sys, "argv", [*command[:2], "--computed", "3", *command[2:]])
    assert script("place_steps").main() == 0
    steps = json.loads(out.read_text())["schedule"]["computed_steps"]
    assert len(steps) == 3 and steps[:2] == [0, 1]
    assert f"3 of 6 steps, forecast 2: {steps}" in capsys.readouterr().out
    chosen = script("cache_choice").read_profile(str(out))
    assert chosen.resolved().schedule.steps == tuple(steps) and chosen.resolved().forecast == 2
    monkeypatch.setattr(sys, "argv", [*command[:2], "--computed", "3", "4", *command[2:]])
    assert script("place_steps").main() == 2
    assert "computed=[3, 4], forecast=[2] with json=" in capsys.readouterr().err


def test_a_calibrated_profile_meets_its_target_and_refuses_other_runs(script, tmp_path, monkeypatch, capsys):
    out, config = tmp_path / "profile.json", str(SCRIPTS.parent / "configs/shapes/sample.py")
    command = ["calibrate.py", config, "--prompts", "2", "--verify", "2", "--batch", "2", "--out", str(out)]

    def calibrate(*target: str) -> int:
        monkeypatch.setattr(sys, "argv", [*command, *target, *SHORT])
        return script("calibrate").main()

    assert calibrate("--target-psnr", "99") == 1 and not out.exists()
    assert "no settings that were tried meet the target of 99; nothing" in capsys.readouterr().out
    assert calibrate("--target-psnr", "20") == 0
    written = json.loads(out.read_text())
    assert written["measured"]["psnr"] >= 20 and written["measured"]["computed_steps"] < 6
    settings = script("cache_choice").read_profile(str(out))
    assert settings.signature.num_steps == 6
    assert calibrate("--target-speedup", "50") == 2
    assert "target_speedup=50; allowed: above 1, to " in capsys.readouterr().err
    assert calibrate("--target-speedup", "1.0") == 2
    assert calibrate("--target-psnr", "20", "--prompt-seed", "2") == 2
    assert "prompt_seed=2; allowed: any but 2" in capsys.readouterr().err
    assert calibrate("--target-psnr", "20", "30") == 2
    assert "for several targets; allowed: a name with {} in it" in capsys.readouterr().err
    (tmp_path / "few.txt").write_text("a red circle\na blue square\n\na green cross\n")
    assert calibrate("--target-psnr", "20", "--prompt-path", str(tmp_path / "few.txt")) == 2
    assert "few.txt' holds 3 prompts; allowed: 4 or more, to find" in capsys.readouterr().err
    assert calibrate("--target-psnr", "20", "--prompt-seed", "0") == 2
    assert "prompt_seed=0; allowed: any but 0" in capsys.readouterr().err

    def generate(folder: str, *options: str) -> int:
        monkeypatch.setattr(sys, "argv", [
            "inference.py", config, "--prompt", "a small red circle stays still on a white background",
            "--adacache", str(out), "--save-dir", str(tmp_path / folder), *SHORT, *options])
        return script("inference").main()

    assert generate("made") == 0
    made = json.loads((tmp_path / "made/sample_0000.json").read_text())
    assert made["num_steps"] == 6 and len(made["computed_steps"]) < 6
    assert generate("longer", "num_frames=34") == 2
    assert "made with num_frames=17, but here it is 34; allowed: the same" in capsys.readouterr().err


def test_prompts_to_choose_by_are_none_of_those_that_are_reported(script, tmp_path):
    flags = script("prompt_flags")
    chosen = flags.unreported_prompts(40, 1)
    assert len(chosen) == 40 and not set(chosen) & set(held_out_prompts(128))
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(9)))
    found, tried = flags.split_prompts(str(tmp_path / "p.txt"), 4, 16)
    assert (found, tried) == ([f"prompt {i}" for i in range(4)], ["prompt 6", "prompt 7", "prompt 8"])


def test_computed_steps_for_a_speed_and_a_guarded_profile_by_hand(script, tmp_path):
    calibrate = script("calibrate")
    recorded = SimpleNamespace(recording=SimpleNamespace(num_steps=30))
    known = calibrate.Calibration(recorded, 0.05, AdaCacheConfig())
    assert known.count_for(2.5) == 11  # 11 + 19 x 0.05 = 11.95; one more, and it is 12.9 of 30
    assert known.count_for(1.001) == 29
    with pytest.raises(ValueError, match="target_speedup=20; allowed: above 1, to 8.8"):
        known.count_for(20)
    for cost in (1.0, 1.1):  # on a busy machine a reused step may seem as dear as a computed one
        with pytest.raises(ValueError, match="target_speedup=2; allowed: above 1, to 1.0"):
            calibrate.Calibration(recorded, cost, AdaCacheConfig()).count_for(2)
    settings = AdaCacheConfig(probes=["a.attn"], codebook="fast", forecast=2, guard=0.21)
    outcome = script("trials").Outcome(np.array([39.0, 41.0]), np.array([11, 12]), np.array([2.4, 2.5, 2.7]),
                                       Signature("m", 30, (4, 5, 6, 7)))
    foretold = script("recorded_prompts").Foretold(np.array([41.0, 43.0]), np.array([10, 12]))
    found = calibrate.Found("guard", settings, foretold, outcome)
    assert calibrate.Target(2.5, True).met_by(found) and not calibrate.Target(40.1, False).met_by(found)
    written = calibrate.profile(found, known)
    assert written["foretold"]["psnr"] == 42.0 and written["foretold"]["computed_steps"] == 11.0
    assert written["foretold"]["speed_up"] == round((30 / (10 + 20 * 0.05) + 30 / (12 + 18 * 0.05)) / 2, 3)
    assert written["measured"]["speed_up"] == 2.5 and written["measured"]["speed_up_interval"] > 0
    assert written["measured"]["computed_steps"] == 11.5 and written["measured"]["psnr"] == 40.0
    (tmp_path / "p.json").write_text(json.dumps(written))
    read = script("cache_choice").read_profile(str(tmp_path / "p.json"))
    assert read == replace(settings, signature=outcome.signature)


def test_a_profile_of_a_codebook_holds_thresholds_rates_and_motion(script, tmp_path):
    settings = AdaCacheConfig(probes=["a.attn"], codebook=[(0.1, 3), (1.0, 1)], forecast=2,
                              moreg=MoRegConfig(scale=0.14, power=1))
    options = script("recorded_prompts").as_options(settings)
    (tmp_path / "p.json").write_text(json.dumps({"settings": options}))
    assert script("cache_choice").read_profile(str(tmp_path / "p.json")) == settings


def test_settings_are_found_under_the_config_s_moreg(script):
    """By simulation: steady residuals, for whose sake few steps would do, and motion that asks for all."""
    moreg = MoRegConfig(scale=0.14, power=1, gradient=0, window=(1, 30))
    _, probes = script("recorded_prompts").open_pipeline(
        str(SCRIPTS.parent / "configs/shapes/sample.py"),
        {"adacache": {"codebook": "fast", "probes": ["temporal_blocks.1.attn"], "moreg": asdict(moreg)}})
    assert probes.moreg == moreg
    drift = torch.arange(30, dtype=torch.float64)
    vectors = torch.stack([torch.ones(30).double(), 0.01 * drift], dim=1)  # [K, 2]
    products = (vectors @ vectors.T).expand(1, 2, 2, 30, 30).permute(0, 1, 3, 2, 4).contiguous()
    changes = 0.01 * (drift[:, None] - drift).abs()[None].float()

    def counts(motion: float) -> list[float]:
        recording = Recording(products, {"temporal_blocks.1.attn": changes},
                              {"temporal_blocks.1.attn": torch.full((1, 30), motion)})
        prompts = script("recorded_prompts").RecordedPrompts(recording, torch.ones(30).double())
        choices = script("calibrate").Calibration(prompts, 0.02, probes).choices(8)
        assert set(choices) == {"fixed steps", "guard", "codebook"}
        assert all(settings.moreg == moreg and settings.forecast == 2 for settings, _ in choices.values())
        return [entry[0] for entry in choices["codebook"][0].codebook.entries]

    slow, fast = counts(0.07), counts(0.7)
    assert all(high == pytest.approx(10 * low, rel=0.05) for low, high in zip(slow, fast, strict=True))


def conditioned(script, tiny, tmp_path, strategy: str, probe: str = "temporal_blocks.1.attn"):
    """A pipeline, settings, and a batch of two prompts with a given frame."""
    Image.new("RGB", (60, 40), (250, 10, 10)).save(tmp_path / "red.png")
    given = json.dumps({"reference_path": str(tmp_path / "red.png"), "mask_strategy": strategy})
    recorded = script("recorded_prompts")
    pipeline, base = recorded.open_pipeline(str(tiny / "sample.py"), {"num_frames": 17, "align": None,
                                                                      "adacache": {"probes": [probe]}})
    prompts = [f"a red circle {given}", f"a blue square {given}"]
    return pipeline, base, recorded.in_batches(pipeline.config, prompts, 2)


def test_uncached_runs_are_timed_with_the_frames_that_a_prompt_gives(script, tiny, tmp_path, monkeypatch):
    pipeline, base, batches = conditioned(script, tiny, tmp_path, "0")
    masks, denoise = [], pipeline.denoise
    monkeypatch.setattr(pipeline, "denoise", lambda z, y, mask, *more: masks.append(mask) or
                        denoise(z, y, mask, *more))
    every = replace(base, schedule=FixedSchedule(tuple(range(6)), 6), forecast=0)
    opened = partial(script("cache_choice").open_cache, every)
    outcome = script("trials").Trials(pipeline, batches).of(opened)
    assert outcome.psnr.tolist() == [100, 100]
    script("denoising_time").time_run(pipeline, batches[0], every)
    # the truth, the uncached run that is timed, the cached one, and the benchmark's
    assert len(masks) == 4 and all(torch.equal(mask, masks[0]) for mask in masks) and masks[0][0, 0] == 0


def test_videos_with_a_frame_that_joins_midway_have_runs_of_their_own(script, tiny, tmp_path):
    pipeline, base, (batch,) = conditioned(script, tiny, tmp_path, "0,0,0,0,1,0.5")
    recording, truth = script("recorded_prompts").record(pipeline, batch, base)
    assert recording.videos == len(truth) == 2
    schedules = iter([(0, 1, 3), (0, 1, 2, 3, 4)])

    def opened(model, steps):
        cache = replace(base, schedule=FixedSchedule(next(schedules), steps), forecast=0)
        return script("cache_choice").open_cache(cache, model, steps)

    assert script("trials").Trials(pipeline, [batch]).of(opened).computed.tolist() == [3, 5]


class Tried:
    """Instead of runs: settings are as fast as a table says."""

    def __init__(self, outcome, speeds: dict) -> None:
        self.outcome, self.speeds, self.seen = outcome, speeds, []

    def of(self, opened):
        (settings,) = opened.args
        self.seen.append(settings.codebook if settings.schedule is None else settings.schedule.steps)
        psnr, speed = self.speeds[self.seen[-1]]
        return self.outcome(np.array([psnr]), np.array([10.0]), np.array([speed]))


def test_each_kind_of_settings_has_its_own_number_of_steps(script):
    """The guard is too slow at first; one step fewer, and it beats the steps that were fast enough before."""
    calibrate, outcome = script("calibrate"), script("trials").Outcome
    foretold = script("recorded_prompts").Foretold(np.array([40.0]), np.array([10]))

    def choices(steps: tuple[int, ...], codebook: str):
        return {"fixed steps": (AdaCacheConfig(schedule=FixedSchedule(steps, 30)), foretold),
                "guard": (AdaCacheConfig(codebook=codebook), foretold)}

    rounds = [choices((0, 1, 2), "slow"), choices((0, 1), "fast"), choices((0,), "published-fast")]
    target = SimpleNamespace(choices=lambda known: iter(rounds), met_by=calibrate.Target(2.5, True).met_by,
                             worth=calibrate.Target(2.5, True).worth)
    trials = Tried(outcome, {(0, 1, 2): (38.0, 2.6), "slow": (43.0, 2.4), "fast": (40.0, 2.7)})
    best = calibrate.best_found(target, None, trials)
    assert best.settings.codebook == "fast" and best.settings.schedule is None
    assert trials.seen == [(0, 1, 2), "slow", "fast"]
    nothing = Tried(outcome, {key: (20.0, 1.0) for key in [(0, 1, 2), (0, 1), (0,), "slow", "fast",
                                                           "published-fast"]})
    assert calibrate.best_found(target, None, nothing) is None


def test_for_a_quality_the_fewest_steps_are_best_for_a_speed_the_best_quality(script):
    calibrate, outcome = script("calibrate"), script("trials").Outcome
    better, faster = (
        calibrate.Found("guard", AdaCacheConfig(), None,
                        outcome(np.array([psnr]), np.array([steps]), np.ones(1)))
        for psnr, steps in ((45.0, 12.0), (41.0, 10.0)))
    assert max((better, faster), key=calibrate.Target(1.5, True).worth) is better
    assert max((better, faster), key=calibrate.Target(40.0, False).worth) is faster


def test_a_quality_that_simulation_overrates_is_met_with_more_steps(script):
    """Foretold with 10 of 100, reached with 30: strides grow, and the search goes on."""
    calibrate, recorded = script("calibrate"), script("recorded_prompts")
    asked: list[int] = []

    def choices(count: int):
        asked.append(count)
        settings = AdaCacheConfig(schedule=FixedSchedule(tuple(range(count)), 100))
        foretold = recorded.Foretold(np.array([30.0 + count]), np.array([count]))
        return {"fixed steps": (settings, foretold)}

    class Trials:
        def of(self, opened):
            count = len(opened.args[0].schedule.steps)
            return script("trials").Outcome(np.array([10.0 + count]), np.array([count]), np.array([2.0]))

    known = SimpleNamespace(num_steps=100, choices=choices)
    best = calibrate.best_found(calibrate.Target(40.0, False), known, Trials())
    assert 30 <= len(best.settings.schedule.steps) <= 36
    assert asked[:12] == [*range(2, 14)] and len(asked) < 22
    assert calibrate.best_found(calibrate.Target(129.0, False), known, Trials()) is None
