"""Several ranks make what one rank makes: forward, schedules, latents, pixels, files."""
import importlib
import json
import sys
from math import ceil
from pathlib import Path

import pytest
import torch
from parallel_runs import BLOCKS, HEADS, LATENT, PATCHES, RUNS, STEPS, VIDEOS, WIDTH, results
from torchrun import ROOT, load_results, torchrun

from opensora import parallel
from opensora.datasets.video_io import read_video
from opensora.models.layers.token_split import SP_ATTENTION, padded
from opensora.parallel import mesh_shape, shares
from opensora.pipeline import Pipeline
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig

WORLDS = (2, 4)
MESHES = ("sp", "cfg")  # all ranks share tokens; or each half has one kind of rows, and shares their tokens


@pytest.fixture(scope="module")
def alone() -> dict:
    return results()


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory) -> list[dict]:
    """What each rank found, for 2 and for 4 of them."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    torchrun(request.param, Path(__file__).with_name("parallel_runs.py"), folder)
    return load_results(folder, request.param)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("attention", SP_ATTENTION)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frames", [5, 1])
def test_the_model_on_several_ranks_is_the_model_on_one(ranks, alone, frames, masked, attention):
    """5 frames of 15 patches, 3 heads: nothing divides; one frame, and 4 ranks, leave some without any."""
    case = frames, masked, attention
    for found in ranks:
        assert_close(found["sp"]["forward"][case], alone["forward"][case])


@pytest.mark.parametrize("attention", SP_ATTENTION)
def test_compiled_blocks_share_tokens_as_well(ranks, alone, attention):
    for found in ranks:
        assert_close(found["sp"]["compiled"][attention], alone["forward"][5, True, attention])


def test_schedules_and_latents_are_the_same_by_frames(ranks, alone):
    expected = alone["sampled"]["published"]
    for found in ranks:
        run = found["sp"]["sampled by frames"]
        assert_close(run["z"], expected["z"])
        assert [video["computed_steps"] for video in videos_of(run)] == \
            [video["computed_steps"] for video in videos_of(expected)]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_several_ranks_is_the_run_on_one(ranks, alone, name, mesh):
    expected = alone["sampled"][name]
    for found in ranks:
        run = found[mesh]["sampled"][name]
        assert_close(run["z"], expected["z"])
        for video, wanted in zip(videos_of(run), videos_of(expected), strict=True):
            assert video["computed_steps"] == wanted["computed_steps"]
            for decision, its in zip(video["decisions"], wanted["decisions"], strict=True):
                weights, wanted_weights = decision.get("weights", []), its.get("weights", [])
                assert weights == pytest.approx(wanted_weights, rel=1e-3, abs=1e-4)
                for key in set(its) - {"weights"}:
                    assert decision[key] == pytest.approx(its[key], rel=1e-3, abs=1e-4)


def videos_of(run: dict) -> list[dict]:
    return run["trace"]["videos"] if "trace" in run else []


def test_the_runs_that_are_compared_reuse_something(alone):
    for name in RUNS:
        assert all(len(video["computed_steps"]) < STEPS for video in videos_of(alone["sampled"][name]))
    first, second = videos_of(alone["sampled"]["moreg"])
    assert first["computed_steps"] != second["computed_steps"]


@pytest.mark.parametrize("mesh", MESHES)
def test_all_ranks_of_a_video_end_with_the_same_bits(ranks, mesh):
    for name in RUNS:
        first, *others = (found[mesh]["sampled"][name] for found in ranks)
        for other in others:
            assert torch.equal(other["z"], first["z"])
            assert json.dumps(other.get("trace")) == json.dumps(first.get("trace"))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("frames", [40, 1])
def test_decoding_on_several_ranks_is_decoding_on_one(ranks, alone, frames, mesh):
    for found in ranks:
        assert_close(found[mesh]["decoded"][frames], alone["decoded"][frames])


def test_a_computed_step_sends_what_spatial_attention_needs_and_the_output(ranks):
    """Bytes from each rank to others: q, k, v of other ranks' heads and the output for their patches, around
    each spatial attention, in pieces of the largest share; then its own part of the output."""
    frames, rows, others = LATENT[1], 2 * VIDEOS, len(ranks) - 1
    h, s = (ceil(count / len(ranks)) for count in (HEADS, PATCHES))
    piece = 4 * rows * frames * h * s * WIDTH // HEADS
    for rank, found in enumerate(ranks):
        step = [others * 3 * piece, others * piece] * (BLOCKS // 2)
        own = len(torch.arange(PATCHES).tensor_split(len(ranks))[rank])
        step.append(others * 4 * rows * 32 * frames * own)  # 8 channels of 2 x 2 pixels
        assert found["sp"]["sampled"]["uncached"]["calls"] == {"all_to_all": step * STEPS, "all_reduce": []}


def test_by_frames_a_computed_step_sends_tokens_there_and_back(ranks):
    t, s = (ceil(count / len(ranks)) for count in (LATENT[1], PATCHES))
    switch = (len(ranks) - 1) * 4 * 2 * VIDEOS * t * s * WIDTH
    for found in ranks:
        calls = found["sp"]["sampled by frames"]["calls"]["all_to_all"]
        assert calls[:BLOCKS] == [switch] * BLOCKS


@pytest.mark.parametrize("by", SP_ATTENTION)
def test_what_is_foretold_of_sizes_that_do_not_divide_is_what_is_sent(ranks, monkeypatch, by):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    predict = importlib.import_module("predict_scaling")
    size = predict.Size(latent=LATENT[1:], frames=17, pixels=(48, 80), depth=BLOCKS // 2, hidden_size=WIDTH,
                        num_heads=HEADS, bytes_per_value=4, computed_step=1, reused_step=1, decode_time=1,
                        decode_frames=1)
    for found in ranks:
        run = found["sp"]["sampled"]["published"] if by == "heads" else found["sp"]["sampled by frames"]
        sent = sum(run["calls"]["all_to_all"][:BLOCKS])
        assert sent == VIDEOS * predict.step_bytes(size, 1, len(ranks), by)


@pytest.mark.parametrize("sizes, expected", [
    ({}, [[1, 2], [3, 4]]), ({1: 2}, [[1, 2], [3, 4]]),
    ({0: 3}, [[1, 2], [3, 4], [0, 0]]), ({0: 3, 1: 3}, [[1, 2, 0], [3, 4, 0], [0, 0, 0]])])
def test_zeros_pad_what_is_exchanged_to_the_largest_share(sizes, expected):
    assert padded(torch.tensor([[1, 2], [3, 4]]), sizes).tolist() == expected


def test_a_reused_step_sends_its_output_alone(ranks):
    for found in ranks:
        run = found["sp"]["sampled"]["schedule"]
        # one video's frame mask changes where its schedule knows of nothing
        computed = {step for video in videos_of(run) for step in video["computed_steps"]}
        assert len(run["calls"]["all_to_all"]) == STEPS + len(computed) * BLOCKS


def test_guidance_exchanges_one_prediction_a_step(ranks):
    if len(ranks) > 2:
        return  # tokens are shared as well
    prediction = 4 * VIDEOS * torch.Size(LATENT).numel()
    for found in ranks:
        assert found["cfg"]["sampled"]["uncached"]["calls"]["all_to_all"] == [prediction] * STEPS


def test_the_mesh_tells_each_rank_its_place(ranks):
    """(dp_size, dp_rank, is_first)."""
    world = len(ranks)
    for rank, found in enumerate(ranks):
        assert found["places"] == {
            "sp": (1, 0, rank == 0), "cfg": (1, 0, rank == 0), "dp": (world, rank, True),
            "half": (world // 2, rank // 2, rank % 2 == 0)}


def test_a_frame_of_fewer_patches_than_ranks_is_an_error(ranks):
    for found in ranks:
        assert found["sp"]["refused"] == f"sp_size={len(ranks)}, but a frame has 1 patches; allowed: 1 to 1"


@pytest.mark.parametrize("sp, cfg, world, local, shape", [
    (None, 1, 1, 1, (1, 1, 1)), (4, 1, 8, 8, (2, 1, 4)), (None, 1, 8, 8, (1, 1, 8)),
    (None, 2, 8, 8, (1, 2, 4)), (None, 1, 16, 8, (2, 1, 8)), (1, 1, 6, 2, (6, 1, 1)), (1, 2, 6, 2, (3, 2, 1)),
    (16, 1, 16, 8, (1, 1, 16)),
])
def test_what_torchrun_and_the_flags_give(sp, cfg, world, local, shape):
    assert mesh_shape(sp, cfg, world, local) == shape


@pytest.mark.parametrize("sp, cfg, world, local, message", [
    (3, 1, 8, 8, "sp_size=3 with cfg_size=1 does not divide 8 processes; "
                 "allowed: 1, 2, 4, 8 with cfg_size=1; 1, 2, 4 with cfg_size=2"),
    (2, 2, 6, 6, "sp_size=2 with cfg_size=2 does not divide 6 processes; "
                 "allowed: 1, 2, 3, 6 with cfg_size=1; 1, 3 with cfg_size=2"),
    (None, 2, 6, 3, "cfg_size=2 does not divide the 3 processes of a node; allowed: 1"),
    (2, 1, 1, 1, "sp_size=2 with cfg_size=1 does not divide 1 processes; allowed: 1 with cfg_size=1"),
])
def test_sizes_that_do_not_divide_are_named(sp, cfg, world, local, message):
    with pytest.raises(ValueError) as raised:
        mesh_shape(sp, cfg, world, local)
    assert str(raised.value) == message


def test_shares_of_one_rank_are_all():
    assert shares(5, None) == (5,)


def test_ranks_that_were_released_did_not_meet(monkeypatch):
    """On GPUs a sum that was broken off raises nothing by itself."""
    monkeypatch.setattr(parallel, "group_size", lambda group: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda x, group: None)
    with pytest.raises(RuntimeError, match="1 of 2 ranks came together"):
        parallel.meet("a group", torch.device("cpu"))
    parallel.meet(None, torch.device("cpu"))


@pytest.fixture
def inference(monkeypatch):
    """`inference("--flag", ...)` runs the script's main in this process and gives its exit status."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("inference")
    monkeypatch.setattr(sys, "argv", ["inference.py"])
    return lambda *args: module.main([str(arg) for arg in args])


@pytest.mark.parametrize("flags, message", [
    (("--sp-size", 2), "sp_size=2 with cfg_size=1 does not divide 1 processes; allowed: 1 with cfg_size=1"),
    (("--cfg-size", 2), "cfg_size=2 does not divide the 1 processes of a node; allowed: 1"),
    (("--cfg-size", 3), "cfg_size=3; allowed: 1, or 2, for guidance has two rows"),
    (("--sp-size", 0), "sp_size=0; allowed: a whole number from 1"),
    (("--cfg-options", "sp_attention=rows"), "sp_attention='rows'; allowed: heads, frames"),
])
def test_bad_sizes_are_one_line_and_exit_status_2(inference, tiny, tmp_path, capsys, flags, message):
    assert inference(tiny / "sample.py", "--save-dir", tmp_path / "out", *flags) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_a_script_without_a_mesh_refuses_its_sizes(tiny):
    config = InferenceConfig.from_dict({**read_config(tiny / "sample.py"), "sp_size": 2}, "sample.py")
    with pytest.raises(ValueError, match="sp_size=2; allowed: 1, for here every process makes videos of its"):
        Pipeline.load(config)


@pytest.fixture(scope="module")
def several(tiny) -> Path:
    """A config of three prompts in two clips each, with a codebook in the range of this model's distances."""
    path = tiny / "sample_several.py"
    path.write_text(
        '_base_ = "sample.py"\nprompt = ["a red circle", "a blue square moves right", "a red square"]\n'
        'num_frames = 34\nloop = 2\nscheduler = dict(num_sampling_steps=12)\n'
        'adacache = dict(codebook=[(0.8, 3), (0.9, 2), (9.0, 1)], probes=("temporal_blocks.1.attn",), '
        'moreg=dict(window=(2, 8), power=1, scale=0.7, gradient=0.1))\n')
    return path


@pytest.mark.parametrize("count, flags", [(2, ("--cfg-size", 2)), (4, ("--sp-size", 2))])
def test_files_are_the_same_on_any_number_of_ranks(inference, several, tmp_path, count, flags):
    assert inference(several, "--save-dir", tmp_path / "one") == 0
    printed = torchrun(count, ROOT / "scripts/inference.py", several, "--save-dir", tmp_path / "many", *flags)
    names = [f"sample_{i:04}{suffix}" for i in range(3) for suffix in (".json", ".mp4")]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["logs", *names]
    assert printed.splitlines()[-1].startswith("3 videos in ")
    for name in names[::2]:
        one, many = (json.loads((tmp_path / folder / name).read_text()) for folder in ("one", "many"))
        assert 0 < len(one["computed_steps"]) < 12 and len(one["clips"]) == 2
        for clip, wanted in zip(many["clips"], one["clips"], strict=True):
            assert clip["computed_steps"] == wanted["computed_steps"]
            assert [d["rate"] for d in clip["decisions"]] == [d["rate"] for d in wanted["decisions"]]
        assert {key: many[key] for key in ("prompt", "seed", "frames")} == \
            {key: one[key] for key in ("prompt", "seed", "frames")}
        first, second = (read_video((tmp_path / folder / name).with_suffix(".mp4"))[0].float()
                         for folder in ("one", "many"))
        assert (first - second).abs().mean() < 0.5  # of 255
