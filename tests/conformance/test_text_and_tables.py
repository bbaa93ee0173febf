"""Every recorded text, prompt, table and path comes out as published; recorded crashes are clear errors."""
import json

import pytest
import torch
from golden import GOLDEN, needs_golden

from opensora.datasets.aspect import (
    ASPECT_RATIO_MAP,
    ASPECT_RATIOS,
    get_closest_ratio,
    get_h_w,
    get_image_size,
    get_num_frames,
    get_num_pixels,
)
from opensora.models.text_encoder.caption_cleaning import basic_clean, clean_caption, text_preprocessing
from opensora.utils.mask_strategy import (
    append_generated,
    dframe_to_frame,
    find_nearest_point,
    parse_mask_strategy,
)
from opensora.utils.prompts import (
    append_score_to_prompts,
    extract_json_from_prompts,
    extract_prompts_loop,
    merge_prompt,
    split_prompt,
)
from opensora.utils.resolution_info import prepare_multi_resolution_info
from opensora.utils.sample_path import get_save_path_name

pytestmark = needs_golden
META = json.loads((GOLDEN / "text_and_tables.json").read_text()) if GOLDEN.exists() else {}
COVERED = {
    "preprocessing", "append_score_to_prompts", "split_merge", "extract_json", "parse_mask_strategy",
    "find_nearest_point", "dframe_to_frame", "append_generated", "prepare_multi_resolution_info",
    "get_save_path_name", "get_image_size", "get_image_size_by_key", "get_num_pixels", "aspect_ratio_map",
    "get_num_frames", "get_num_frames_bad", "get_closest_ratio", "get_h_w",
}
ELSEWHERE = {"apply_mask_strategy", "_versions"}  # test_mask_strategy_golden.py; not data


def records(name: str) -> list:
    return META.get(name, [])


def check(recorded: dict, function, *args) -> None:
    """`function` returns what was recorded, or raises a one-line ValueError where it was an exception."""
    if "ok" in recorded:
        assert plain(function(*args)) == recorded["ok"]
    else:
        with pytest.raises(ValueError) as error:
            function(*args)
        assert "\n" not in str(error.value) and "allowed" in str(error.value)


def plain(value):
    """Tuples as lists, as JSON has them."""
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def test_no_recorded_group_is_left_out():
    assert set(META) == COVERED | ELSEWHERE


@pytest.mark.parametrize("case", records("preprocessing"), ids=lambda c: c["input"][:24])
def test_captions_are_cleaned_as_in_training(case):
    assert text_preprocessing(case["input"]) == case["text_preprocessing"]
    assert clean_caption(case["input"]) == case["clean_once"]
    assert basic_clean(case["input"]) == case["basic_clean"]
    assert text_preprocessing(case["input"], use_text_preprocessing=False) == case["off"]


@pytest.mark.parametrize("case", records("append_score_to_prompts"))
def test_scores(case):
    scores = case["aes"], case["flow"], case["camera_motion"]
    assert append_score_to_prompts(case["prompts"], *scores) == case["out"]


@pytest.mark.parametrize("case", records("split_merge"), ids=lambda c: c["input"])
def test_prompt_segments(case):
    check(case["split"], split_prompt, case["input"])
    if "merge" in case:
        check(case["merge"], merge_prompt, *case["split"]["ok"])
    for loop, recorded in case["extract_loop"].items():
        check(recorded, lambda loop=loop: extract_prompts_loop([case["input"]], int(loop))[0])


@pytest.mark.parametrize("case", records("extract_json"), ids=lambda c: c["input"][0])
def test_json_in_prompts(case):
    count = len(case["input"])
    reference, strategy = [""] * count, [""] * count
    check(case["out"], extract_json_from_prompts, case["input"], reference, strategy)
    assert (reference, strategy) == (case["reference_after"], case["mask_strategy_after"])


@pytest.mark.parametrize("case", records("parse_mask_strategy"), ids=lambda c: str(c["input"]))
def test_mask_strategies_are_parsed(case):
    check(case["out"], parse_mask_strategy, case["input"])


def test_nearest_points():
    for case in META["find_nearest_point"]:
        assert find_nearest_point(case["value"], case["point"], case["max_value"]) == case["out"], case


def test_latent_frames_to_frames():
    for num, recorded in META["dframe_to_frame"].items():
        check(recorded, dframe_to_frame, int(num))


@pytest.mark.parametrize("case", records("append_generated"), ids=lambda c: c["error"] or "plain")
def test_generated_clips_become_references(case):
    """The first case was recorded as a crash half-way (references None); what it should give is known."""

    class Vae:
        def encode(self, x):
            return x

    refs = [None if n is None else [torch.zeros(4, 1, 2, 2)] * n for n in case["refs_before"]]
    clip = torch.ones(len(refs), 4, 15, 2, 2)
    carried = case["loop"], case["condition_frame_length"], case["condition_frame_edit"]
    refs, strategies = append_generated(Vae(), clip, refs, case["before"], *carried)
    if case["error"]:
        assert strategies == ["1,0,-5,0,5,0.0", "1,0,-5,0,5,0.0", "0,0,0,0,1,0;1,1,-5,0,5,0.0"]
        assert [len(r) for r in refs] == [1, 1, 2]
    else:
        assert strategies == case["after"] and [len(r) for r in refs] == case["refs_after"]
    assert all(torch.equal(r[-1], clip[0]) for r in refs)


@pytest.mark.parametrize("case", sorted(META.get("prepare_multi_resolution_info", {})))
def test_size_arguments(case):
    info_type, batch, size, frames, fps, dtype = case.split(".")
    info = prepare_multi_resolution_info(
        None if info_type == "None" else info_type, int(batch), tuple(map(int, size.split("x"))), int(frames),
        int(fps), "cpu", getattr(torch, dtype))
    assert {k: v.tolist() for k, v in info.items()} == META["prepare_multi_resolution_info"][case]
    assert all(v.dtype == getattr(torch, dtype) for v in info.values())


@pytest.mark.parametrize("case", records("get_save_path_name"), ids=lambda c: c["out"])
def test_sample_paths(case):
    assert get_save_path_name("D", **case["args"]) == case["out"]


@pytest.mark.parametrize("resolution", sorted(META.get("get_image_size", {})))
def test_image_sizes(resolution):
    for ratio, recorded in META["get_image_size"][resolution].items():
        check(recorded, get_image_size, resolution, ratio)
    sizes = META["get_image_size_by_key"][resolution]
    assert {key: list(size) for key, size in ASPECT_RATIOS[resolution][1].items()} == sizes
    for key, size in sizes.items():
        assert get_image_size(resolution, key) == tuple(size)
    assert get_num_pixels(resolution) == META["get_num_pixels"][resolution]


def test_the_tables_have_the_recorded_names_only():
    assert META["aspect_ratio_map"] == ASPECT_RATIO_MAP
    assert set(ASPECT_RATIOS) == set(META["get_image_size"]) == set(META["get_image_size_by_key"])
    assert set(ASPECT_RATIOS) == set(META["get_num_pixels"])


def test_lengths():
    for name, frames in META["get_num_frames"].items():
        assert get_num_frames(name) == frames
    check(META["get_num_frames_bad"], get_num_frames, "3x")


def test_closest_ratios():
    for case in META["get_closest_ratio"]:
        assert get_closest_ratio(case["h"], case["w"], ASPECT_RATIOS[case["res"]][1]) == case["out"], case


def test_sizes_of_a_ratio():
    for case in META["get_h_w"]:
        assert get_h_w(case["a"], case["ts"]) == tuple(case["out"]), case
