"""Ranks that make a video together take the decisions that one rank takes."""
import json
from pathlib import Path

import pytest
import torch
from runs_on_ranks import SETTINGS, STEPS, VIDEOS, Part, run, videos
from torchrun import load_results, torchrun

WORLDS = (2, 4)
SPLITS = ("patches", "rows")


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return {name: run(name) for name in SETTINGS}


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory) -> list[dict]:
    """What each rank found, for 2 and for 4 of them."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    torchrun(request.param, Path(__file__).with_name("runs_on_ranks.py"), folder)
    return load_results(folder, request.param)


def assert_same_decisions(ours: dict, theirs: dict) -> None:
    """Computed steps and rates exactly, what they rest on to fp32."""
    for mine, its in zip(ours["videos"], theirs["videos"], strict=True):
        assert mine["computed_steps"] == its["computed_steps"]
        for decision, expected in zip(mine["decisions"], its["decisions"], strict=True):
            numbers, wanted = dict(decision), dict(expected)
            assert numbers.pop("rate") == wanted.pop("rate")
            weights, wanted_weights = numbers.pop("weights", []), wanted.pop("weights", [])
            assert weights == pytest.approx(wanted_weights, rel=1e-3, abs=1e-5)
            assert numbers == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def assert_same_run(found: dict, expected: dict) -> None:
    assert_same_decisions(found["trace"], expected["trace"])
    torch.testing.assert_close(found["out"], Part(*found["part"]).of(expected["out"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SETTINGS)
def test_several_ranks_take_the_decisions_of_one(ranks, alone, name, split):
    for found in ranks:
        assert_same_run(found[split][name], alone[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_the_runs_that_are_compared_reuse_something_and_videos_differ(alone, name):
    steps = [video["computed_steps"] for video in alone[name]["trace"]["videos"]]
    assert all(len(computed) < STEPS for computed in steps)
    if name not in ("batch", "replay"):
        assert len({tuple(computed) for computed in steps}) > 1


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_of_a_video_have_the_same_numbers_to_the_last_bit(ranks, name, split):
    assert len({json.dumps(found[split][name]["trace"]["videos"]) for found in ranks}) == 1


def test_ranks_of_other_videos_are_not_asked(ranks):
    for rank, found in enumerate(ranks):
        expected = run("moreg", x=videos()[rank // 2 :: VIDEOS])
        assert_same_run(found["pairs"], expected)


def test_a_residual_that_is_no_number_on_one_rank_makes_all_ranks_compute(ranks):
    for found in ranks:
        (video,) = found["broken"]["videos"]
        # compared with step 1 and by step 4, the residual of step 3 has no distance
        assert video["computed_steps"] == [0, 1, 3, 4, 5, 7, 8, 9]
        assert [d["rate"] for d in video["decisions"] if d["distance"] is None] == [1, 1]


def decided_steps(trace: dict) -> set[int]:
    return {step for video in trace["videos"] for step in video["computed_steps"]} - {0}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SETTINGS)
def test_all_decisions_of_a_step_are_one_all_reduce(ranks, name, split):
    for found in ranks:
        calls = found[split][name]["calls"]["all_reduce"]
        assert len(calls) == len(decided_steps(found[split][name]["trace"]))


@pytest.mark.parametrize("split", SPLITS)
def test_every_exchange_is_counted_when_it_begins(ranks, split):
    """So that ranks that failed at one video know whether they got equally far."""
    for found in ranks:
        for each in found[split].values():
            assert each["begun"] == sum(map(len, each["calls"].values()))


# fp32 numbers for each video: two for the probe, and two for each of MoReg's strides; under forecast or guard
# also inner products of change and differences: 2 and 12 within its two rows; and two norms after guidance
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name, numbers", [("distance", 2), ("moreg", 2 + 2 * 2), ("l2", 2), ("cosine", 3),
                                           ("guard", 2 + 2 + 2), ("forecast", 2 + 12 + 2),
                                           ("all", 2 + 2 * 2 + 12 + 2)])
def test_bytes_of_a_decision(ranks, name, numbers, split):
    for found in ranks:
        first = found[split][name]["calls"]["all_reduce"][0]  # at step 1, of all videos
        assert first == 4 * numbers * VIDEOS < 100 * VIDEOS


def test_only_a_forecast_and_only_with_rows_on_several_ranks_sends_residuals(ranks):
    for found in ranks:
        sent = {split: {name for name in SETTINGS if found[split][name]["calls"]["all_to_all"]}
                for split in SPLITS}
        assert sent == {"patches": set(), "rows": {"batch", "guard", "forecast", "all", "replay"}}


@pytest.mark.parametrize("name, tensors", [("guard", 2), ("forecast", 4)])
def test_of_each_tensor_rows_on_two_ranks_exchange_one_half(ranks, name, tensors):
    half = len(ranks) // 2
    for first, second in zip(ranks[:half], ranks[half:], strict=True):  # of the same patches
        sent = [sum(found["rows"][name]["calls"]["all_to_all"][:tensors]) for found in (first, second)]
        whole = first["rows"][name]["out"].nbytes  # all videos are due at step 1
        assert sum(sent) == tensors * whole and abs(sent[0] - sent[1]) < whole


def test_rows_on_several_ranks_cannot_decide_alone(ranks):
    for found in ranks:
        assert found["refused"] == [
            "decide='row', but a video's rows are on 2 ranks; allowed: 'video', 'batch'",
            "rows_per_video=1, but a video's rows are on 2 ranks; allowed: multiples of 2"]


def test_parts_make_the_whole():
    x = videos()
    parts = [Part(patches, 3, rows, 2).of(x) for rows in range(2) for patches in range(3)]
    assert sum(part.numel() for part in parts) == x.numel()
