"""Runs of many prompts: stopped, killed and started again with another number of ranks, as a user does it."""
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensora.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [f"a {colour} {shape} moves {where}" for colour in ("red", "blue", "blue red")
           for shape in ("circle", "square") for where in ("left", "right")]
STEPS = ("--num-sampling-steps", "30")


@pytest.fixture
def inference(monkeypatch) -> Callable[..., int]:
    """`inference("--flag", ...)` runs the script's main in this process and gives its exit status."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("inference")
    return lambda *args: module.main([str(arg) for arg in args])


@pytest.fixture
def flags(tiny, tmp_path) -> list[str]:
    """12 pictures, in tmp_path/out, each made by one rank."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return [str(tiny / "sample.py"), "--prompt-path", str(tmp_path / "prompts.txt"), "--num-frames", "1",
            "--save-dir", str(tmp_path / "out"), "--sp-size", "1"]


def torchrun(ranks: int, *args: str, script: Path = ROOT / "scripts/inference.py",
             restarts: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks),
               "--max-restarts", str(restarts), str(script), *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png")) if path.is_file()}


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path), dtype=float) for path in folder.glob("*.png")}


def failed(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_killed_inside_a_shared_video_ends_the_run_and_finished_ones_are_kept(flags, tmp_path, ranks):
    out, logs = tmp_path / "out", tmp_path / "out/logs"
    run = torchrun(ranks, *flags[:-1], str(ranks), *STEPS)
    wait_for(lambda: (logs / "rank_0.log").exists() and "computed 30" in (logs / "rank_0.log").read_text())
    process = re.search(rf"rank 1 of {ranks}, process (\d+)", (logs / "rank_1.log").read_text())[1]
    os.kill(int(process), signal.SIGKILL)
    killed = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - killed < 10 and run.returncode != 0
    assert re.search(r"rank +: 1 ", said) and "SIGKILL" in said
    assert 1 <= len(contents(out)) < len(PROMPTS) and not list(out.glob(".*.partial"))


def test_a_bad_reference_among_many_prompts_is_recorded_and_the_run_goes_on(inference, flags, tmp_path,
                                                                            capsys):
    """Only where no sample is left is it bad input, and nothing is written."""
    conditioned = [f'a red circle {{"reference_path": "{name}", "mask_strategy": "0"}}'
                   for name in ("no.png", "neither.mp4")]
    (tmp_path / "prompts.txt").write_text("\n".join([conditioned[0], *PROMPTS[:2], conditioned[1]]))
    assert inference(*flags, "--verbose", "0") == 1
    assert list(contents(tmp_path / "out")) == ["sample_0001.png", "sample_0002.png"]
    first, second = failed(tmp_path / "out")
    assert (first["file"], second["file"]) == ("sample_0000.png", "sample_0003.png")
    assert first["cause"] == "FileNotFoundError: reference_path: image 'no.png' does not exist"
    assert re.search(r"^2 videos in .*, 2 failed: ", capsys.readouterr().out, re.MULTILINE)
    assert inference(*flags, "--verbose", "0") == 1  # once more: the same
    assert "2 existing kept, 2 failed" in capsys.readouterr().out
    (tmp_path / "prompts.txt").write_text("\n".join(conditioned))
    assert inference(*flags, "--save-dir", str(tmp_path / "none")) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "none").exists()


def test_a_picture_that_a_folder_lacks_is_one_sample_s_failure(inference, flags, tmp_path):
    """As after a run of pictures in which one failed."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:3]))
    pictures = str(tmp_path / "pictures")
    assert inference(*flags, "--save-dir", pictures) == 0
    (tmp_path / "pictures/sample_0001.png").unlink()
    assert inference(*flags, "--reference-path", pictures, "--mask-strategy", "0") == 1
    (entry,) = failed(tmp_path / "out")
    assert entry["file"] == "sample_0001.png" and "sample_0001.png' does not exist" in entry["cause"]
    assert list(contents(tmp_path / "out")) == ["sample_0000.png", "sample_0002.png"]


def test_what_failed_before_is_tried_last(inference, flags, tmp_path):
    """Else a sample that ends the run, as where it kills a process, would end every later one."""
    module, out = importlib.import_module("inference"), tmp_path / "out"
    plan = module.read_plan(flags)
    out.mkdir()
    entries = [{"file": f"sample_{number:04d}.png", "prompt_index": number, "sample_index": 0}
               for number in (0, 4)]
    (out / "failed.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    order = [int(request.file.stem[-4:]) for request in module.tidy_and_list_missing(plan)[0]]
    assert order == [1, 2, 3, *range(5, 12), 0, 4]


@pytest.mark.parametrize("ranks, shares_of_5", [(2, [2, 3]), (4, [1, 1, 1, 2])])
def test_a_killed_rank_ends_the_run_and_other_numbers_of_ranks_finish_it(inference, flags, tmp_path, ranks,
                                                                        shares_of_5):
    last = ranks - 1
    out, log = tmp_path / "out", tmp_path / f"out/logs/rank_{last}.log"
    (out / "sample_0003.png").mkdir(parents=True)  # in the way: this sample fails, on the last rank
    run = torchrun(ranks, *flags, *STEPS)
    wait_for(lambda: log.exists() and log.read_text().count(": computed 30 of 30 steps") >= 4 // ranks)
    os.kill(int(re.search(rf"rank {last} of {ranks}, process (\d+)", log.read_text())[1]), signal.SIGKILL)
    killed = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - killed < 10 and run.returncode != 0
    assert re.search(rf"rank +: {last} ", said) and "SIGKILL" in said
    assert "sample_0003.png" in log.read_text() and "Traceback" in log.read_text()
    made = contents(out)
    assert 1 <= len(made) < 11
    # what a kill amid writing leaves; and another run's, which is not ours to sweep
    (out / ".sample_0010.png.123.partial").touch()
    (out / ".other.png.123.partial").touch()

    assert inference(*flags, *STEPS) == 1
    (entry,) = failed(out)
    assert (entry["prompt_index"], entry["sample_index"], entry["prompt"]) == (3, 0, PROMPTS[3])
    assert entry["file"] == "sample_0003.png" and entry["cause"].startswith("IsADirectoryError: ")
    assert entry["rank"] == 0 and "T" in entry["time"]
    assert made.items() <= contents(out).items() and len(contents(out)) == 11
    assert [path.name for path in out.glob(".*")] == [".other.png.123.partial"]

    (out / "sample_0003.png").rmdir()
    whole = contents(out)
    for number in range(0, 8, 2):  # all of one rank's share, were it cut from the whole list
        (out / f"sample_{number:04d}.png").unlink()
    shares = [path.read_text().count(": computed") for path in sorted((out / "logs").glob("rank_*.log"))]
    run = torchrun(ranks, *flags, *STEPS)
    printed, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    now = [path.read_text().count(": computed") for path in sorted((out / "logs").glob("rank_*.log"))]
    assert sorted(new - old for new, old in zip(now, shares, strict=True)) == shares_of_5
    assert contents(out) == whole | {"sample_0003.png": contents(out)["sample_0003.png"]}
    assert not (out / "failed.jsonl").exists()
    lines = printed.strip().splitlines()
    assert any(re.fullmatch(r"\d of 5 videos, \d:\d\d:\d\d left", line) for line in lines)
    assert "5 of 5 videos" in lines and lines[-1].startswith("5 videos in ")
    assert "7 existing kept" in lines[-1]


FAULTY = """
import functools, os, signal, sys, torch
sys.path.insert(0, {scripts!r})
import inference, opensora.regrouping
from opensora.parallel import rank
from opensora.pipeline import Pipeline

def failing(self, *args, method=Pipeline.{method}):
    made, requests = method(self, *args), next(arg for arg in args if isinstance(arg, list))
    if any(request.file.name == "sample_0002.png" for request in requests) and rank() in {ranks}:
        {failure}
    return made

Pipeline.{method}, opensora.regrouping.ALIKE = failing, 1.0
torch.compile = functools.partial(torch.compile, backend="eager")
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(inference.main())
"""
SCARCE = 'raise MemoryError("no room")'


def faulty(tmp_path: Path, ranks: tuple[int, ...], failure: str = SCARCE, method: str = "noise") -> Path:
    """The script, in which a sample fails on some ranks, after a method of the pipeline."""
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY.format(scripts=str(ROOT / "scripts"), ranks=ranks, failure=failure,
                                    method=method))
    return script


@pytest.mark.parametrize("ranks", [(1,), (0, 1)])
def test_what_some_ranks_of_a_video_cannot_do_is_recorded_and_the_run_goes_on(flags, tmp_path, ranks):
    run = torchrun(2, *flags, "--sp-size", "2", script=faulty(tmp_path, ranks))
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    (entry,) = failed(tmp_path / "out")
    assert (entry["file"], entry["cause"]) == ("sample_0002.png", "MemoryError: no room")
    assert len(contents(tmp_path / "out")) == 11 and "11 videos in" in printed and "1 failed" in printed


def test_ranks_that_went_on_after_a_failure_make_what_they_make_without_it(inference, flags, tmp_path):
    """Rows and tokens on four ranks; one fails after the samples of its batch are denoised.  Compiled blocks
    must not keep a process group open."""
    flags = [*flags[:-2], "--end-index", "6", "--batch-size", "2", "--num-sampling-steps", "12", "--adacache",
             "fast"]
    run = torchrun(4, *flags, "--sp-size", "2", "--cfg-size", "2", "--compile",
                   script=faulty(tmp_path, (0,), method="denoise"))
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    assert [entry["cause"] for entry in failed(tmp_path / "out")] == ["MemoryError: no room"]
    assert "sample_0002.png to sample_0003.png are made one by one" in " ".join(said.split())
    assert inference(*flags, "--save-dir", str(tmp_path / "whole")) == 0
    made, whole = (pictures(tmp_path / folder) for folder in ("out", "whole"))
    assert whole.keys() - made.keys() == {"sample_0002"} and len(made) == 5
    for name, picture in made.items():
        assert np.abs(picture - whole[name]).max() <= 1, name


SCARCE_TEXT = """
import sys
sys.path[:0] = [{scripts!r}, {tests!r}]
import colossalai_on_cpu, inference, opensora.regrouping
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.parallel import rank

def scarce(x):
    raise MemoryError("no room")

def failing(self, ids, mask, embed=T5Encoder.embed, calls=[]):
    assert self.ranks is not None
    calls.append(len(calls))
    if calls[-1] in (2, 5) and rank() == 1:
        self.model.encoder.block[-1].layer[-1].forward = scarce
    return embed(self, ids, mask)

T5Encoder.embed, opensora.regrouping.ALIKE = failing, 1.0
sys.exit(inference.main())
"""


@pytest.mark.parametrize("launcher", ["torch", "colossalai"])
def test_nobody_waits_for_a_rank_that_fails_amid_shared_text_weights(inference, flags, tmp_path, launcher):
    """All load them anew, and make the other samples as one process with all weights does.  However often."""
    pytest.importorskip("colossalai", reason="needs colossalai; constraints/colossalai.txt tells how")
    script, own = tmp_path / "scarce_text.py", ROOT / "tests"
    script.write_text(SCARCE_TEXT.format(scripts=str(ROOT / "scripts"), tests=str(own)))
    run = torchrun(2, *flags, "--sp-size", "2", "--cfg-options", f"launcher={launcher}", script=script)
    run.communicate(timeout=90)
    assert run.returncode == 1
    assert [(entry["file"], entry["cause"]) for entry in failed(tmp_path / "out")] == [
        (f"sample_000{number}.png", "MemoryError: no room") for number in (2, 5)]
    assert inference(*flags, "--save-dir", str(tmp_path / "whole")) == 0
    made, whole = (pictures(tmp_path / folder) for folder in ("out", "whole"))
    assert len(made) == 10
    for name, picture in made.items():
        assert np.abs(picture - whole[name]).max() <= 1, name


def test_with_restarts_a_run_goes_on_after_a_process_died(flags, tmp_path):
    """Also one that makes all samples anew: those of before the restart stay.  What failed in an earlier run
    is tried, last."""
    (tmp_path / "out").mkdir()
    for name in ("sample_0000.png", "sample_0000.json", "sample_0002.png", "sample_0002.json"):
        (tmp_path / "out" / name).write_text("old")
    before = {"file": "sample_0001.png", "prompt_index": 1, "sample_index": 0}
    (tmp_path / "out/failed.jsonl").write_text(json.dumps(before | {"time": "2026-01-01T00:00:00+00:00"}))
    run = torchrun(2, *flags, "--sp-size", "2", "--overwrite", restarts=2,
                   script=faulty(tmp_path, (1,), "os.kill(os.getpid(), signal.SIGKILL)"))
    printed, said = run.communicate(timeout=120)
    assert run.returncode == 1
    (entry,) = failed(tmp_path / "out")
    assert entry["file"] == "sample_0002.png"
    assert entry["cause"] == "killed: its process ended meanwhile" or "closed by peer" in entry["cause"]
    made = contents(tmp_path / "out")
    assert len(made) == 12 and made.pop("sample_0002.png") == b"old" and b"old" not in made.values()
    told = re.findall(r"(\d+) videos in .* (\d+) existing kept, (\d) failed", printed)
    assert told == [("10", "1", "1")]  # once: the run is over then, and the last start has nothing to do


def test_ranks_with_different_configs_refuse_to_begin(tiny, tmp_path):
    path = tmp_path / "differs.py"
    path.write_text(f"_base_ = '{tiny}/sample.py'\nsample_name = 'of_{{{{$RANK:0}}}}'\n")
    run = torchrun(2, str(path), "--save-dir", str(tmp_path / "out"))
    _, said = run.communicate(timeout=60)
    line = "error: sample_name='of_1' on rank 1, but 'of_0' on rank 0; allowed: the same on all ranks\n"
    assert said.count(line) == 1
    # -15: torchrun was quicker to end this one, after the other
    assert {"2"} <= set(re.findall(r"exitcode +: (-?\d+)", said)) <= {"2", "-15"}
    assert not (tmp_path / "out").exists()


def test_a_batch_that_runs_out_of_memory_is_made_one_by_one(inference, flags, tmp_path, monkeypatch):
    """Memory of the batch is free again by then; one that fails alone takes no other with it."""
    generate, tensors, sizes = Pipeline.generate, [], []

    def scarce(self, requests, *args):
        held = torch.zeros(8)
        assert not any(tensor() is not None for tensor in tensors), "memory of an earlier try is still held"
        tensors.append(weakref.ref(held))
        sizes.append(len(requests))
        if len(requests) > 1 or requests[0].index == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, requests, *args)

    monkeypatch.setattr(Pipeline, "generate", scarce)
    monkeypatch.setattr("run_report.rank_log.disabled", True)  # pytest keeps the errors that are logged
    assert inference(*flags, "--end-index", 4, "--batch-size", 2) == 1
    assert sizes == [2, 1, 1, 2, 1, 1]
    assert list(contents(tmp_path / "out")) == [f"sample_000{i}.png" for i in (0, 1, 3)]
    (entry,) = failed(tmp_path / "out")
    assert (entry["file"], entry["cause"]) == ("sample_0002.png", "OutOfMemoryError: CUDA out of memory")


def test_a_failure_beside_an_earlier_video_stays_in_the_list(inference, flags, tmp_path, monkeypatch):
    assert inference(*flags, "--end-index", 2) == 0

    def failing(self, requests, clip, noise=Pipeline.noise):
        if requests[0].index == 0:
            raise MemoryError("no room")
        return noise(self, requests, clip)

    monkeypatch.setattr(Pipeline, "noise", failing)
    assert inference(*flags, "--end-index", 2, "--overwrite") == 1
    assert [entry["file"] for entry in failed(tmp_path / "out")] == ["sample_0000.png"]
    assert inference(*flags, "--end-index", 3) == 0  # without --overwrite it is finished; the list knows
    assert [entry["file"] for entry in failed(tmp_path / "out")] == ["sample_0000.png"]
    monkeypatch.undo()
    assert inference(*flags, "--end-index", 1, "--overwrite") == 0
    assert not (tmp_path / "out/failed.jsonl").exists()


def test_the_list_tells_what_is_missing_now(inference, flags, tmp_path, monkeypatch):
    """What succeeds later leaves it, also by another command; what is not asked for stays."""
    (tmp_path / "out/sample_0000.png").mkdir(parents=True)
    (tmp_path / "out/sample_0001.png").mkdir()
    assert inference(*flags, "--end-index", 2) == 1
    assert [entry["file"] for entry in failed(tmp_path / "out")] == ["sample_0000.png", "sample_0001.png"]
    (tmp_path / "out/sample_0001.png").rmdir()
    # a rank that was killed while it wrote: half a line
    (tmp_path / "out/.failed.5.jsonl").write_text('{"file": "samp')
    assert inference(*flags, "--start-index", 1, "--end-index", 2) == 0
    assert [entry["file"] for entry in failed(tmp_path / "out")] == ["sample_0000.png"]
    assert not list((tmp_path / "out").glob(".*"))
