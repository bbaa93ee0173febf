"""Bad input is one line that names key, value and what is allowed; exit status 2; nothing on disk."""
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import bad_references, plan_samples

ROOT = Path(__file__).resolve().parents[2]
PROBED = "adacache = dict(codebook=[(1e9, 2)], probes=('temporal_blocks.1.attn',))"


@pytest.fixture
def refused(tiny, tmp_path, monkeypatch, capsys):
    """`refused(*flags, extra=...)` runs the script, expects status 2 and no files, and gives its one line."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    main = importlib.import_module("inference").main
    save_dir = tmp_path / "out"

    def run(*flags: object, extra: str = "", loads: bool = False) -> str:
        config = tiny / "bad.py"
        config.write_text(f'_base_ = "sample.py"\n{extra}\n')
        if not loads:
            monkeypatch.setattr("opensora.pipeline.Pipeline.load", lambda *a, **k: pytest.fail("loaded"))
        status = main([str(config), "--save-dir", str(save_dir), *map(str, flags)])
        printed = capsys.readouterr()
        assert status == 2 and not save_dir.exists() and printed.out == ""
        lines = [line for line in printed.err.splitlines() if "WARNING" not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
        return lines[0]

    return run


@pytest.mark.parametrize("flags, message", [
    (["--promt", "a"], "'--promt'.*allowed: --prompt"),
    (["--seed", "x"], "--seed.*'x'"),
    (["--seed", "-1"], "seed=-1; allowed: a whole number from 0"),
    (["--flash-attn", "maybe"], "--flash-attn.*'maybe'; allowed: True, False"),
    (["--cfg-options", "batchsize=2"], "unknown key 'batchsize'; allowed: batch_size"),
    (["--num-frames", "2 s"], "num_frames='2 s'; allowed: a whole number from 1, or .*2s"),
    (["--resolution", "481p", "--aspect-ratio", "9:16"], "resolution='481p'; allowed: .*480p"),
    (["--resolution", "480p", "--aspect-ratio", "9:15"], "aspect_ratio='9:15'.*9:16"),
    (["--resolution", "480p"], "aspect_ratio is missing"),
    (["--image-size", "8", "48"], "image_size=.*8, 48.*whole numbers from 16"),
    (["--resolution", "480p", "--image-size", "32", "48"], "--resolution and --image-size exclude"),
    (["--prompt", "a", "--prompt-path", "b"], "--prompt and --prompt-path exclude"),
    (["--prompt-path", "no.txt"], "prompt_path='no.txt' cannot be read"),
    (["--dtype", "int8"], "dtype='int8'; allowed: fp32, bf16, fp16"),
    (["--device", "gpu"], "device='gpu'; allowed: cuda, cpu"),
    (["--device", "meta"], "device='meta'; allowed: cuda, cpu"),
    (["--loop", "2", "--num-frames", "51", "--cfg-options", "vae.micro_frame_size=None"],
     "vae.micro_frame_size=None with loop=2; allowed: 17"),
    (["--loop", "2", "--num-frames", "102", "--cfg-options", "align=10"],
     "align=10 with loop=2; allowed: a divisor of 25"),
    (["--fps", "0"], "fps=0; allowed: more than 0"),
    (["--batch-size", "0"], "batch_size=0; allowed: a whole number from 1"),
    (["--loop", "2"], "condition_frame_length=5 .17 frames. with loop=2; allowed: .*num_frames=17"),
    (["--loop", "2", "--num-frames", "51", "--condition-frame-length", "4"],
     "condition_frame_length=4; allowed: multiples of 5"),
    (["--condition-frame-edit", "1.5"], "condition_frame_edit=1.5; allowed: 0 to 1"),
    (["--prompt", 'a {"reference_path": "x.png"'], "malformed prompt JSON"),
    (["--prompt", 'a {"reference": "x.png"}'], "unknown key 'reference'"),
    (["--prompt", "|0| a |b| c"], "malformed prompt segments"),
    (["--prompt", "|0| a |2| b |1| c"], "malformed prompt segments.*ascending"),
    (["--mask-strategy", "0,x"], "malformed mask_strategy='0,x'"),
    (["--mask-strategy", "1"], "mask_strategy='1' speaks of clip 1; allowed: 0 to 0"),
    (["--mask-strategy", "0,0,0,5"], "mask_strategy='0,0,0,5' has target_start=5; allowed: -5 to 4"),
    (["--num-frames", "60", "--loop", "2"], "num_frames=60 with loop=2; allowed: multiples of 17"),
    (["--mask-strategy", "0"], "mask_strategy='0' asks for reference 0; allowed: none"),
    (["--reference-path", "no.png", "--mask-strategy", "0"], "reference_path: image 'no.png' does not exist"),
    (["--reference-path", "no.png"], "reference_path='no.png' has no mask_strategy"),
    (["--reference-path", "a", "b", "--mask-strategy", "0"], "reference_path has 2 entries; allowed: 1"),
    (["--adacache", "faster"], "adacache='faster'; allowed: off, slow, fast"),
    (["--end-index", "2"], "end_index=2.*prompt_path only"),
])
def test_bad_flags(refused, flags, message):
    assert re.search(message, refused(*flags))


@pytest.mark.parametrize("extra, message", [
    ("sed = 3", "unknown key 'sed'; allowed: seed"),
    ("adacache = dict(codebok='fast')", "codebok.*codebook"),
    ("adacache = dict(codebook=[])", "codebook=.* is empty; allowed"),
    ("adacache = 'fst'", "adacache='fst'; allowed: off, slow, fast"),
    ("adacache = 3", "adacache=3; allowed: dict"),
    ("adacache = dict(codebook=[(0.2, 3), (0.1, 2)])", "codebook.*ascend"),
    ("adacache = dict(codebook=[(0.1, 0)])", "codebook.*0"),
    ("model = dict(num_sampling_steps=9, do_cache=True)",
     "model.num_sampling_steps=9; allowed: that of scheduler.num_sampling_steps=6"),
    ("model = dict(do_cache=True)\ndo_cache = False", "do_cache=False; allowed: that of model.do_cache=True"),
    ("model = dict(do_cache=True)\n" + PROBED, "adacache=.* and model.do_cache are both set"),
    ("do_cache = True", "unknown key 'do_cache'"),
    ("model = 3", "model=3; allowed: dict"),
    ("prompt = 3", "prompt=3; allowed"),
    ("prompt = None", "prompt is missing; allowed: prompt .--prompt TEXT. or prompt_path"),
    ("num_frames = None", "num_frames is missing"),
    ("multi_resolution = 'PixArtMS'", "multi_resolution='PixArtMS'; allowed: STDiT2"),
    ("prompt = (", "does not load"),
    ("launcher = 'mpi'", "launcher='mpi'; allowed: torch, colossalai"),
])
def test_bad_configs(refused, extra, message):
    assert re.search(message, refused(extra=extra))


@pytest.mark.parametrize("extra, message", [
    ("model = dict(dept=3)", "model: unknown key 'dept'; allowed: depth"),
    ("vae = dict(micro_frames=3)", "vae: unknown key 'micro_frames'; allowed: micro_frame_size"),
    ("scheduler = dict(steps=2)", "scheduler: unknown key 'steps'; allowed: .*num_sampling_steps"),
    ("scheduler = dict(type='flow')", "scheduler type='flow' is unknown; allowed: rflow"),
    ("model = dict(from_pretrained='/no/where')", "model: from_pretrained='/no/where' does not exist"),
    ("vae = dict(from_pretrained='/no/where')", "vae: from_pretrained='/no/where' does not exist"),
    ("text_encoder = dict(from_pretrained='/no/where')",
     "text_encoder: from_pretrained='/no/where' does not exist"),
    ("text_encoder = dict(device='cuda')", "text_encoder.device='cuda'; allowed: 'cpu', as of device"),
    ("model = dict(hidden_size=64)", "does not fit STDiT3: .*is .*the model's"),
    ("adacache = dict(codebook=[(1e9, 2)], probes=('temporal_blocks.2.attn',))",
     "temporal_blocks.2.*temporal_blocks.1"),
    ("model = dict(do_cache=True, cache_loc=[13])", "13"),
])
def test_models_and_probes_that_do_not_fit(refused, extra, message):
    assert re.search(message, refused(extra=extra, loads=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(refused):
    assert "device='cuda', but there is no CUDA device here; allowed: cpu" in refused("--device", "cuda")


def test_flash_attention_where_it_is_missing_names_the_package(refused):
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash-attn is installed")
    assert "'flash_attn'" in refused("--flash-attn", "True", loads=True)


def test_colossalai_where_it_is_missing_names_the_package(refused):
    if importlib.util.find_spec("colossalai"):
        pytest.skip("colossalai is installed")
    line = refused(extra="launcher = 'colossalai'")
    assert "launcher='colossalai' needs the optional package colossalai" in line and "torch" in line


def test_a_missing_or_broken_checkpoint(refused, tiny, tmp_path):
    weights = tmp_path / "model.safetensors"
    assert f"from_pretrained='{weights}' does not exist" in refused("--ckpt-path", weights, loads=True)
    state = load_file(tiny / "transformer/model.safetensors")
    save_file({k: v for k, v in state.items() if ".attn." not in k}, weights)
    (tmp_path / "config.json").write_text((tiny / "transformer/config.json").read_text())
    assert "missing spatial_blocks.0.attn" in (line := refused("--ckpt-path", weights, loads=True))
    assert re.search(r"and \d+ more", line)
    weights.write_bytes(b"x" * 100)
    refused("--ckpt-path", weights, loads=True)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 half a zip"])
def test_a_damaged_checkpoint_is_named(refused, tmp_path, content):
    weights = tmp_path / "model.pt"
    weights.write_bytes(content)
    assert f"'{weights}' is no readable weights file" in refused("--ckpt-path", weights, loads=True)


def test_a_reference_shorter_than_the_strategy_asks(refused, tmp_path):
    Image.new("RGB", (48, 32)).save(picture := tmp_path / "a.png")
    line = refused("--reference-path", picture, "--mask-strategy", "0,0,1")
    assert "mask_strategy='0,0,1' has ref_start=1; allowed: -1 to 0 latent frames" in line


@pytest.mark.parametrize(("given", "strategy", "said"), [
    (False, "1,-1,0,5,2", None), (True, "0;1,-1,10,5,5", None), (True, "0;1,-2,0,5,1", None),
    (True, "0;1,-2,1,5,1", "ref_start=1; allowed: -1 to 0"),
    (True, "0;1,1,15,5,1", "ref_start=15; allowed: -15"),
])
def test_a_clip_made_on_the_way_is_a_reference_as_long_as_a_clip(tmp_path, given, strategy, said):
    Image.new("RGB", (48, 32)).save(picture := tmp_path / "a.png")
    config = InferenceConfig(model={}, vae={}, text_encoder={}, scheduler={}, num_frames=51, loop=2,
                             prompt="a", image_size=(32, 48), mask_strategy=strategy, device="cpu",
                             reference_path=str(picture) if given else None, save_dir=str(tmp_path))
    found = [str(error) for error in bad_references(plan_samples(config), config).values()]
    assert found == [] if said is None else said in found[0]


@pytest.mark.parametrize(("option", "said"), [
    ("scheduler.cfg_scale=high", "cfg_scale='high'; allowed: a number"),
    ("scheduler.num_sampling_steps=2.5", "num_sampling_steps=2.5; allowed: whole numbers from 1"),
    ("scheduler.num_timesteps=0", "num_timesteps=0; allowed: whole numbers from 1"),
])
def test_a_sampler_of_other_kinds_of_numbers(refused, option, said):
    assert said in refused("--prompt", "a", "--cfg-options", option, loads=True)


def test_a_missing_config_and_a_missing_value(refused, capsys):
    main = importlib.import_module("inference").main
    assert main(["no/config.py"]) == 2
    assert "config='no/config.py' does not exist" in capsys.readouterr().err
    assert "--seed" in refused("--seed")


def test_unreadable_and_empty_files(refused, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert "holds no prompts" in refused("--prompt-path", empty)
    broken = (("a.png", b"", "empty"), ("b.png", b"no picture", "cannot be read"),
              ("c.mp4", b"no video", "cannot be read"), ("d.txt", b"text", "allowed: .png"))
    for name, content, message in broken:
        (tmp_path / name).write_bytes(content)
        line = refused("--reference-path", tmp_path / name, "--mask-strategy", "0")
        assert name in line and message in line
    (tmp_path / "pictures").mkdir()
    line = refused("--reference-path", tmp_path / "pictures", "--mask-strategy", "0")
    assert "pictures/sample_0000.png' does not exist" in line


def test_a_bad_profile(refused, tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text("{")
    assert str(profile) in refused("--adacache", profile)
    profile.write_text(json.dumps({"codebook": "fast", "probe": []}))
    assert "probe" in refused("--adacache", profile)


def test_a_folder_that_is_a_file(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    (tmp_path / "file").touch()
    main = importlib.import_module("inference").main
    assert main([str(tiny / "sample.py"), "--save-dir", str(tmp_path / "file/x")]) == 2
    assert "save_dir=" in capsys.readouterr().err


def test_a_shell_sees_the_same(tiny, tmp_path):
    """One run as a user starts it: the status, one line on stderr, none on stdout."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/inference.py"), str(tiny / "sample.py"), "--loops", "2"],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: unknown argument '--loops'; allowed: --loop.*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
