"""scripts/evaluate.py: what it tabulates is what was run, and what was run is not run again."""
import csv
import importlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora.datasets.video_io import read_video

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
METHODS = """
probes = ["temporal_blocks.1.attn"]
methods = {
    "no cache": dict(),
    "fewer steps, 3": dict(steps=3),
    "AdaCache, rate 2": dict(adacache=dict(codebook=[(1e9, 2)], probes=probes), against="fewer steps, 3"),
    "again": dict(adacache=dict(probes=probes), replay="AdaCache, rate 2", against="AdaCache, rate 2"),
    "TeaCache": dict(rival=dict(type="teacache", threshold=0.0)),
}
del probes
"""
PROMPTS = ["a red circle moves left", "a blue square moves right"]


@pytest.fixture
def script(monkeypatch):
    """`script(name)` imports scripts/NAME.py, or a module of a package in scripts."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def config(tiny, tmp_path):
    file = tmp_path / "methods.py"
    file.write_text(f'_base_ = "{tiny}/sample.py"\nprompt = {PROMPTS!r}\n{METHODS}')
    return file


@pytest.fixture
def evaluate(script, monkeypatch):
    """`evaluate(config, folder, *flags)` -> exit status."""
    def run(config: Path, folder: Path, *flags: str) -> int:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(config), "--out", str(folder), *flags])
        return script("evaluate").main()

    return run


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_every_video_has_a_record_and_every_method_a_row(evaluate, config, tmp_path):
    folder = tmp_path / "out"
    assert evaluate(config, folder) == 0
    results = results_of(folder)
    assert len(results["videos"]) == 5 * 2 and results["prompts"] == PROMPTS
    for record in results["videos"]:
        assert read_video(folder / record["file"])[0].shape == (17, 32, 48, 3)
    rows = results["methods"]
    assert {name: row["mean"]["computed"] for name, row in rows.items()} == {
        "no cache": 6, "fewer steps, 3": 3, "AdaCache, rate 2": 5, "again": 5, "TeaCache": 6}
    assert rows["TeaCache"]["mean"]["psnr"] == 100 and "psnr" not in rows["no cache"]["mean"]
    assert rows["no cache"]["mean"]["speedup"] == 1
    assert rows["again"]["against"]["psnr"] == {"mean": 0, "interval": 0, "least": 0, "most": 0}
    one, other = rows["AdaCache, rate 2"], rows["fewer steps, 3"]
    assert one["against"]["psnr"]["mean"] == pytest.approx(one["mean"]["psnr"] - other["mean"]["psnr"])
    plain, few = (rows[name]["mean"]["tflops"] for name in ("no cache", "fewer steps, 3"))
    assert 0.4 < few / plain < 0.6  # captions are embedded once in either
    assert {video["rank"] for video in results["videos"]} == {0}
    assert one["mean"]["tflops"] / plain == pytest.approx(5 / 6, abs=0.03)
    for name in ("table.md", "quality_latency.png", "timelines.png", "gallery.html"):
        assert (folder / name).stat().st_size > 100


def test_a_table_has_numbers_or_says_why_not(evaluate, config, tmp_path, capsys):
    folder = tmp_path / "out"
    assert evaluate(config, folder, "--only", "no cache", "fewer steps, 3") == 0
    printed, table = capsys.readouterr().out, (folder / "table.md").read_text()
    for sentence in ("peak memory: is counted on CUDA only", "LPIPS: needs AlexNet weights at ",
                     "adherence: needs prompts of the embedded model"):
        assert sentence in printed.replace("\n", " ") and sentence in table
    with (folder / "table.csv").open() as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    few = results_of(folder)["methods"]["fewer steps, 3"]
    assert float(lines["fewer steps, 3"]["psnr"]) == few["mean"]["psnr"]
    assert float(lines["fewer steps, 3"]["psnr_interval"]) == few["interval"]["psnr"]
    assert "lpips" not in lines["fewer steps, 3"] and lines["no cache"]["psnr"] == ""
    assert f"{few['mean']['psnr']:.1f} ± {few['interval']['psnr']:.1f}" in table


def test_groups_of_prompts_have_tables_of_their_own(evaluate, config, tmp_path):
    folder = tmp_path / "out"
    config.write_text(config.read_text() + 'evaluation = dict(groups=dict(red="^a red", none="green"))\n')
    assert evaluate(config, folder, "--only", "fewer steps, 3") == 0
    results = results_of(folder)
    red, none = results["groups"]["red"], results["groups"]["none"]
    videos = {video["prompt_index"]: video["metrics"] for video in results["videos"]}
    assert red["prompts"] == PROMPTS[:1] and none["prompts"] == []
    assert red["methods"]["fewer steps, 3"]["mean"]["psnr"] == videos[0]["psnr"] != videos[1]["psnr"]
    assert "red: 1 of these prompts." in (folder / "table.md").read_text()


def test_what_is_there_is_not_made_again(evaluate, script, config, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    assert evaluate(config, folder) == 0
    made = {file: file.stat().st_mtime_ns for file in folder.glob("videos/*/*.mp4")}
    lost = folder / "videos/teacache/0001_s7.json"
    lost.unlink()
    generated = []
    Pipeline = script("opensora.pipeline").Pipeline
    generate = Pipeline.generate
    monkeypatch.setattr(Pipeline, "generate", lambda self, requests, *more: (
        generated.append((self.scheduler.num_sampling_steps, [r.index for r in requests])),
        generate(self, requests, *more))[1])
    assert evaluate(config, folder) == 0
    # a warm-up, then of the second prompt the reference and TeaCache, each once more for its operations
    assert generated == [(2, [0]), (6, [1]), (6, [1]), (6, [1]), (6, [1])]
    remade = [file for file in made if file.stat().st_mtime_ns != made[file]]
    assert remade == [lost.with_suffix(".mp4")]
    generated.clear()
    assert evaluate(config, folder, "--report") == 0 and generated == []
    assert evaluate(config, folder, "--cfg-options", "evaluation.metrics=['psnr']") == 0
    assert generated == [(2, [0])]


def test_a_report_needs_no_model_and_takes_what_another_machine_made(evaluate, script, config, tmp_path,
                                                                    monkeypatch):
    folder = tmp_path / "out"
    assert evaluate(config, folder, "--only", "fewer steps, 3") == 0
    table = (folder / "table.md").read_text()
    elsewhere = json.loads((folder / "run.json").read_text()) | {"device": "NVIDIA H200", "model": "other"}
    (folder / "run.json").write_text(json.dumps(elsewhere))
    (folder / "table.md").unlink()
    assert evaluate(config, folder, "--only", "fewer steps, 3") == 2
    monkeypatch.setattr(script("opensora.pipeline").Pipeline, "load", None)
    assert evaluate(config, folder, "--report") == 0
    assert (folder / "table.md").read_text() == table
    assert evaluate(config, folder, "--report", "--cfg-options", "scheduler.cfg_scale=4.0") == 2


def test_results_of_another_run_are_refused(evaluate, config, tiny, tmp_path, capsys):
    folder, other = tmp_path / "out", tmp_path / "transformer"
    assert evaluate(config, folder, "--only", "fewer steps, 3") == 0
    shutil.copytree(tiny / "transformer", other)
    weights = load_file(other / "model.safetensors")
    save_file({k: v * 1.01 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for option, said in ((f"model.from_pretrained={other}", "results with model='STDiT3-"),
                         ("scheduler.cfg_scale=4.0", "results with scheduler={"),
                         ("num_frames=34", "results with num_frames=17, but this run has 34"),
                         ("aes=6.5", "results with aes=None, but this run has 6.5"),
                         ("methods.fewer steps, 3.steps=2", "made with settings='3 steps, None'"),
                         ("prompt=a red circle", "made with prompt=")):
        capsys.readouterr()
        assert evaluate(config, folder, "--only", "fewer steps, 3", "--cfg-options", option) == 2, option
        error = capsys.readouterr().err
        assert said in error and "allowed: another --out" in error and len(error.splitlines()) < 4


@pytest.mark.parametrize("line, said", [
    ("methods = {}", "methods is missing or empty"),
    ("methods = dict(a=3)", "methods['a']=3; allowed: dict(adacache=...)"),
    ("methods = dict(a=dict(adacahe=dict()))", "methods['a']: unknown key 'adacahe'; allowed: adacache"),
    ("methods = dict(a=dict(against='b'))", "methods['a'].against='b'; allowed: a"),
    ("methods = dict(a=dict(adacache=dict(), replay='b'), b=dict())", "['a'].replay='b'; allowed: none"),
    ("methods = dict(a=dict(), b=dict(replay='a'))", "replay='a' without adacache"),
    ("methods = dict(a=dict(adacache=dict(), rival=dict()))", "has adacache and rival; allowed: one"),
    ("methods = dict(a=dict(rival=dict(type='teacach')))", "type='teacach'; allowed: teacache"),
    ("methods = dict(a=dict(rival='none.json'))", "rival='none.json'; allowed: a JSON file of scripts/tune_"),
    ("methods = dict(a=dict(adacache='none.json'))", "adacache='none.json'"),
    ("methods = dict(a=dict(adacache=dict(codebook='fst')))", "methods['a']: codebook='fst'"),
    ("methods = dict(a=dict(adacache=dict(probes=['x.attn'])))", "methods['a']: probe 'x.attn': no block x"),
    ("methods = dict(a=dict(rival=3))", "methods['a']: rival=3; allowed: dict(type=..., ...)"),
    ("methods = dict(a=dict(rival=dict(type='tgate', gate=9)))", "methods['a']: tgate.gate=9; allowed"),
    ("methods = dict(a=dict(adacache={}, steps=4), b=dict(adacache={}, replay='a'))",
     "methods['b'].replay='a', of 4 steps; allowed: one of 6"),
    ("methods = dict(a=dict(published=dict(psnr='a')))", "published.psnr='a'; allowed: a number"),
    ("methods = dict(a=dict(published=dict(psrn=3)))", "published: unknown key 'psrn'; allowed: psnr"),
    ("methods = dict(a=dict(published=3))", "methods['a']: published=3; allowed: dict(psnr=..., ...)"),
    ("methods = {1: dict()}", "methods[1]; allowed: names that are texts"),
    ("methods = dict(a=dict(rival='setup.py'))", "rival='setup.py' cannot be read"),
    ("methods = dict(a=dict(steps=0))", "methods['a']: steps=0; allowed: whole numbers from 1"),
    ("methods = {'a, b': dict(), 'A b': dict()}", "has the folder 'a-b', as has 'a, b'"),
    ("evaluation = dict(metrics=['psnr', 'ssmi'])", "evaluation.metrics: unknown key 'ssmi'; allowed: ssim"),
    ("evaluation = dict(prompt=3)", "evaluation: unknown key 'prompt'; allowed: prompts"),
    ("evaluation = dict(groups=dict(a='('))", "evaluation.groups={'a': '('}; allowed: {name: regular"),
    ("evaluation = dict(batch=0)", "evaluation.batch=0; allowed: whole numbers from 1"),
    ("evaluation = dict(seeds=[1, 1])", "evaluation.seeds=[1, 1]; allowed: a list of different"),
    ("num_frames = 34\nloop = 2\ncondition_frame_length = 5", "loop=2; allowed: 1"),
])
def test_a_config_that_cannot_run_is_one_line(evaluate, config, tmp_path, capsys, line, said):
    config.write_text(config.read_text() + line + "\n")
    assert evaluate(config, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not (tmp_path / "out").exists()


EVALUATIONS = sorted((SCRIPTS.parent / "configs/eval").glob("*.py"))


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_every_shipped_evaluation_is_one(script, monkeypatch, path):
    monkeypatch.chdir(SCRIPTS.parent)
    config = str(path.relative_to(SCRIPTS.parent))
    device = {"device": "cpu"}
    plan = script("evaluation.plan").read_plan(config, device, {})
    assert len(plan.methods) > 2 and plan.requests
    assert all(method.against != name for name, method in plan.methods.items())


def test_published_numbers_stand_beside_the_measured_ones(script, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    plan = script("evaluation.plan").read_plan("configs/eval/opensora_480p_table1.py", {"device": "cpu"}, {})
    fast = plan.methods["AdaCache as published, fast"].published
    assert (fast["psnr"], fast["tflops"], fast["vbench"]) == (24.92, 1331.97, pytest.approx(0.7939))
    cell = script("evaluation.tables").cell
    assert cell({"mean": {"psnr": 25.0}, "interval": {"psnr": 0.26}, "published": fast}, "psnr", 1) == \
        "25.0 ± 0.3 [24.9]"
    assert cell({"mean": {}, "interval": {}, "published": fast}, "ssim", 3) == "[0.838]"


def test_a_video_that_is_not_finite_fails_by_itself(evaluate, script, config, tmp_path, monkeypatch, caplog):
    pipeline = script("evaluation.sampling").Pipeline
    generate = pipeline.generate

    def one_breaks(self, requests, *more):
        samples = generate(self, requests, *more)
        if self.scheduler.num_sampling_steps == 3 and requests[0].prompt == PROMPTS[1]:
            samples[0].video[0, 0, 0, 0] = math.inf
        return samples

    monkeypatch.setattr(pipeline, "generate", one_breaks)
    assert evaluate(config, tmp_path / "out") == 1
    assert f"failed: fewer steps, 3, {PROMPTS[1]!r}: the video" in caplog.text
    rows = results_of(tmp_path / "out")["methods"]
    assert {name: row["videos"] for name, row in rows.items()} == {
        "no cache": 2, "fewer steps, 3": 1, "AdaCache, rate 2": 2, "again": 2, "TeaCache": 2}
    monkeypatch.setattr(pipeline, "generate", generate)
    assert evaluate(config, tmp_path / "out") == 0
    assert results_of(tmp_path / "out")["methods"]["fewer steps, 3"]["videos"] == 2


def test_a_prompt_that_stands_there_twice_is_two_samples(evaluate, config, tmp_path):
    config.write_text(config.read_text().replace(repr(PROMPTS), repr([PROMPTS[0], PROMPTS[0]])))
    assert evaluate(config, tmp_path / "out", "--only", "no cache") == 0
    assert "2 prompts, 1 seeds, 2 videos a method" in (tmp_path / "out/table.md").read_text()


def test_half_precision_is_measured_in_single(evaluate, config, tmp_path):
    folder, bf16 = tmp_path / "out", ("--cfg-options", "dtype=bf16", "prompt=a red circle")
    assert evaluate(config, folder, "--only", "fewer steps, 3", *bf16) == 0
    assert 5 < results_of(folder)["methods"]["fewer steps, 3"]["mean"]["psnr"] < 100


def test_attention_counts_on_a_cpu(script):
    """2 x 2 products of 64 x 16 with 16 x 64, twice: q k^T, and the weights times v."""
    sampling = script("evaluation.sampling")
    q = torch.randn(2, 2, 64, 16)
    with sampling.FlopCounterMode(display=False, custom_mapping=sampling.CPU_ATTENTION) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * 2 * (2 * 64 * 64 * 16) * 2


def test_one_method_anew_leaves_the_others_in_the_report(evaluate, config, tmp_path):
    folder = tmp_path / "out"
    assert evaluate(config, folder, "--only", "fewer steps, 3") == 0
    assert evaluate(config, folder, "--only", "AdaCache, rate 2") == 0
    rows = results_of(folder)["methods"]
    assert [rows[name]["videos"] for name in ("fewer steps, 3", "AdaCache, rate 2", "again")] == [2, 2, 0]
    assert rows["AdaCache, rate 2"]["against"]["videos"] == 2
    assert "| method | videos |" in (folder / "table.md").read_text()


def test_unknown_methods_of_the_command_line_are_named(evaluate, config, tmp_path, capsys):
    assert evaluate(config, tmp_path / "out", "--only", "TeaCash") == 2
    assert "only='TeaCash'; allowed: no cache, fewer steps, 3" in capsys.readouterr().err
    assert evaluate(config, tmp_path / "out", "--report") == 2
    assert "has no results; allowed: a run without --report first" in capsys.readouterr().err


def on_two(config: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(SCRIPTS / "evaluate.py"), str(config), "--out", str(folder), *flags],
        capture_output=True, text=True, cwd=SCRIPTS.parent)


def test_what_no_process_can_run_is_said_once(config, tmp_path):
    config.write_text(config.read_text().replace('"temporal_blocks.1.attn"', '"nowhere.attn"'))
    done = on_two(config, tmp_path / "two")
    assert done.returncode != 0 and done.stderr.count("error: methods['AdaCache, rate 2']: probe 'nowh") == 1
    assert "error on rank" not in done.stderr and not (tmp_path / "two").exists()


def test_two_processes_make_what_one_makes(evaluate, config, tmp_path):
    assert evaluate(config, tmp_path / "one", "--only", "AdaCache, rate 2") == 0
    done = on_two(config, tmp_path / "two", "--only", "AdaCache, rate 2")
    assert done.returncode == 0, done.stderr
    one, two = (results_of(tmp_path / name)["videos"] for name in ("one", "two"))
    assert [video["rank"] for video in two] == [0, 1]
    assert [(v["prompt"], v["computed_steps"], v["metrics"]["psnr"]) for v in one] == \
        [(v["prompt"], v["computed_steps"], pytest.approx(v["metrics"]["psnr"], abs=0.01)) for v in two]


def made(script, video: torch.Tensor, **more):
    Made = script("evaluation.made").Made
    return Made(**{"prompt": "p", "video": video, "seconds": {"denoise": 2.0, "total": 4.0}, "num_steps": 6,
                   "computed_steps": (0, 1), **more})


def test_metrics_by_hand(script):
    metrics = script("evaluation.metrics")
    ramp = torch.linspace(-0.5, 0.5, 5)[None, :, None, None].expand(3, 5, 16, 16)
    reference = made(script, ramp, seconds={"denoise": 6.0, "total": 10.0})
    slower = made(script, ramp / 2, flops=3e12, cache_bytes=5e6)
    names = [name for name in metrics.METRICS if name not in ("lpips", "adherence")]
    found = metrics.measured(slower, reference, names)
    assert (found["speedup"], found["speedup_total"], found["seconds"]) == (3, 2.5, 2)
    assert (found["computed"], found["tflops"], found["cache_mb"]) == (2, 3, 5)
    assert found["motion"] == pytest.approx(0.5)
    gap = (ramp / 2).square().mean().item()
    assert found["psnr"] == pytest.approx(10 * np.log10(4 / gap))
    assert "peak_mb" not in found  # None on a CPU
    assert metrics.measured(reference, reference, ["psnr", "ssim", "computed"]) == {"computed": 2}
    same = made(script, ramp.clone())
    assert metrics.measured(same, reference, ["psnr", "ssim", "motion"]) == {
        "psnr": 100, "ssim": 1, "motion": 1}
    broken = ramp.clone()
    broken[0, 2, 3, 4] = math.nan  # worse than any other, so that no search takes it for the best
    assert metrics.psnr(reference.frames(), made(script, broken).frames()) == -math.inf
    still = made(script, torch.zeros(3, 5, 16, 16))
    assert "motion" not in metrics.measured(same, still, ["motion"])


def test_lpips_comes_with_its_weights(script, tmp_path, monkeypatch):
    """Random ones here: what they say means nothing, but no difference is none."""
    from torchvision.models import alexnet

    metrics, cpu = script("evaluation.metrics"), torch.device("cpu")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert metrics.lpips_missing([], cpu) == f"LPIPS: needs AlexNet weights at {metrics.alexnet_file()}"
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), metrics.alexnet_file())
    metrics.lpips_model.cache_clear()
    assert metrics.lpips_missing([], cpu) is None
    video = torch.rand(3, 2, 64, 64) * 2 - 1
    same, other = made(script, video), made(script, -video)
    assert metrics.lpips(same, same) == 0 and metrics.lpips(other, same) > 0
    metrics.lpips_model.cache_clear()


def record(index: int, **metrics: float) -> dict:
    return {"prompt": "p", "prompt_index": index, "seed": 1, "metrics": metrics}


def test_means_intervals_and_differences_by_hand(script):
    summary = script("evaluation.summary")
    a = [record(0, psnr=20.0, computed=30), record(1, psnr=30.0, computed=30)]
    b = [record(1, psnr=31.0, computed=12), record(0, psnr=22.0, computed=8), record(2, psnr=50.0)]
    found = summary.means(b[:2])
    assert found["mean"] == {"psnr": 26.5, "computed": 10}
    assert (found["least"]["psnr"], found["most"]["computed"]) == (22, 12)
    assert found["psnr_tenth"] == pytest.approx(22.9)
    assert found["psnr_pooled"] == pytest.approx(-10 * np.log10((10**-2.2 + 10**-3.1) / 2))
    # 31 and 22: sd 6.36, over the root of two videos, times Student's 12.71
    assert found["interval"]["psnr"] == pytest.approx(12.706 * 4.5, rel=1e-3)
    times = [record(i, speedup=value) for i, value in enumerate((1.0, 2.0, 2.1, 2.2, 90.0))]
    assert summary.means(times)["mean"]["speedup"] == 2.1
    hundred = script("evaluation.metrics").interval_of_median(np.arange(100.0))
    assert hundred == 10.5  # from 39 values below to 39 above it, or more
    gain = summary.differences(b, a)
    assert gain["videos"] == 2 and gain["steps_follow"] == pytest.approx(1)
    half = pytest.approx(12.706 * 0.5, rel=1e-3)
    assert gain["psnr"] == {"mean": 1.5, "interval": half, "least": 1, "most": 2}


def test_seeds_of_one_prompt_count_as_one(script):
    """The same again with another seed tells nothing new of what prompts do."""
    summary = script("evaluation.summary")
    once = [record(0, psnr=20.0), record(1, psnr=30.0), record(2, psnr=34.0)]
    twice = [*once, *({**each, "seed": 2} for each in once)]
    assert summary.means(twice)["interval"] == summary.means(once)["interval"]
    others = [{**each, "metrics": {"psnr": 10.0 + each["prompt_index"]}} for each in twice]
    found, single = summary.differences(twice, others), summary.differences(once, others)
    assert found["videos"] == 6 and found["psnr"] == single["psnr"]


def test_what_was_published_stands_in_the_table_also_where_nothing_was_measured(script):
    tables = script("evaluation.tables")
    row = {"mean": {"psnr": 25.0}, "interval": {}, "videos": 1, "family": "a", "published": {"vbench": 0.79}}
    results = {"config": "c", "prompts": ["p"], "seeds": [1], "num_steps": 30, "groups": {},
               "methods": {"a": row}, "metrics": {
                   "psnr": {"label": "PSNR, dB", "digits": 1},
                   "lpips": {"label": "LPIPS", "digits": 3, "missing": "LPIPS: needs AlexNet weights"},
                   "vbench": {"label": "VBench", "digits": 4, "missing": "VBench: not scored"}}}
    text = tables.markdown(results)
    assert "| method | PSNR, dB | VBench |" in text and "| a | 25.0 | [0.7900] |" in text
    assert "LPIPS: needs AlexNet weights" in text and "VBench: not scored" in text


def test_vbench_scores_stand_beside_the_others(script, evaluate, config, tmp_path, monkeypatch):
    """A package of its interface, for its own weights are not to be had here."""
    folder = tmp_path / "out"
    assert evaluate(config, folder, "--only", "fewer steps, 3") == 0
    seen = []

    class VBench:
        def __init__(self, device: str, full_info_dir: str, output_path: str) -> None:
            self.out = Path(output_path)

        def evaluate(self, videos_path: str, name: str, dimension_list: list[str], mode: str) -> None:
            seen.append((sorted(path.name for path in Path(videos_path).iterdir()), mode))
            self.out.mkdir()
            (self.out / f"{name}_eval_results.json").write_text(json.dumps(
                {dimension: [0.5 + i / 4, []] for i, dimension in enumerate(dimension_list)}))

    package = SimpleNamespace(__file__=str(tmp_path / "vbench/__init__.py"), VBench=VBench)
    monkeypatch.setitem(sys.modules, "vbench", package)
    command = ["vbench_scores.py", str(folder), "--dimensions", "motion_smoothness", "imaging_quality"]
    monkeypatch.setattr(sys, "argv", command)
    assert script("vbench_scores").main() == 0 and script("vbench_scores").main() == 0
    assert seen == [(["0000_s7.mp4", "0001_s7.mp4"], "custom_input")]  # once, and no record among the videos
    kept = json.loads((folder / "vbench.json").read_text())
    (folder / "vbench.json").write_text(json.dumps({k: {**v, "videos": []} for k, v in kept.items()}))
    assert script("vbench_scores").main() == 0 and len(seen) == 2  # other videos have other scores
    assert evaluate(config, folder, "--only", "fewer steps, 3", "--report") == 0
    results = results_of(folder)
    assert "missing" not in results["metrics"]["vbench"]
    row = results["methods"]["fewer steps, 3"]
    assert row["mean"]["vbench"] == 0.625 and row["vbench"]["imaging_quality"] == 0.75
    summary, told = script("evaluation.summary"), json.loads((folder / "vbench.json").read_text())
    told["other"] = {"videos": {}, "dimensions": {"imaging_quality": 0.3, "dynamic_degree": 1.0}}
    (folder / "vbench.json").write_text(json.dumps(told))
    assert summary.read_vbench(folder) == {  # what not all have is left out
        "fewer-steps-3": {"imaging_quality": 0.75}, "other": {"imaging_quality": 0.3}}
    with (folder / "videos/fewer-steps-3/0000_s7.mp4").open("ab") as video:
        video.write(b"x")
    assert set(summary.read_vbench(folder)) == {"other"}  # not scored as the video is now
    monkeypatch.setattr(sys, "argv", ["vbench_scores.py", str(tmp_path)])
    assert script("vbench_scores").main() == 2
