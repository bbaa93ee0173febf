"""Prompt files, scores, segments, JSON, and the paths and size arguments that go with a prompt."""
import os

import pytest
import torch

from opensora.utils.prompts import (
    append_score_to_prompts,
    extract_json_from_prompts,
    extract_prompts_loop,
    load_prompts,
    merge_prompt,
    split_prompt,
)
from opensora.utils.resolution_info import prepare_multi_resolution_info
from opensora.utils.sample_path import get_save_path_name


def test_a_prompt_file_has_one_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\n\n  a dog  \r\nein Vögelchen\n", encoding="utf-8")
    assert load_prompts(file) == ["a cat", "a dog", "ein Vögelchen"]
    assert load_prompts(file, 1) == ["a dog", "ein Vögelchen"]
    assert load_prompts(file, 0, 2) == ["a cat", "a dog"]
    assert load_prompts(file, 1, 99) == ["a dog", "ein Vögelchen"]


@pytest.mark.parametrize("content", [None, b"", b" \n\n", b"\xff\xfe\x00\xd8"])
def test_a_prompt_file_without_prompts_is_named(tmp_path, content):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_prompts(file)
    assert f"prompt_path={str(file)!r}" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_no_prompt_file(tmp_path):
    with pytest.raises(ValueError, match="prompt_path=.*cannot be read"):
        load_prompts(tmp_path)


def test_a_range_that_selects_nothing_is_named(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n")
    with pytest.raises(ValueError, match=r"start_index=2, end_index=None .*allowed: 0 to 2"):
        load_prompts(file, 2)


def test_scores_are_added_once():
    scored = append_score_to_prompts(["a cat."], aes=6.5, flow=4, camera_motion="pan left")
    assert scored == ["a cat. aesthetic score: 6.5. motion score: 4.0. camera motion: pan left."]
    assert append_score_to_prompts(scored, aes=7, flow=1, camera_motion="none") == scored
    assert append_score_to_prompts(["a cat."]) == ["a cat."]


def test_segments_split_merge_and_hold_until_the_next():
    prompt = "|0| day |2| night"
    assert split_prompt(prompt) == (["day", "night"], [0, 2])
    assert merge_prompt(["day", "night"], [0, 2]) == "|0|day|2|night"
    clips = [extract_prompts_loop([prompt], i)[0].strip() for i in range(4)]
    assert clips == ["day", "day", "night", "night"]
    assert merge_prompt(*split_prompt("no segments")) == "no segments"


@pytest.mark.parametrize("prompt", ["|0| a | b", "|0| a |1", "|0| a |x| b", "|0| a |-1| b", "|0| a |1.5| b"])
def test_malformed_segments_are_named(prompt):
    for function, argument in ((split_prompt, prompt), (lambda p: extract_prompts_loop(p, 0), [prompt])):
        with pytest.raises(ValueError, match="malformed prompt segments") as error:
            function(argument)
        assert repr(prompt) in str(error.value) and "\n" not in str(error.value)


def test_json_replaces_what_the_command_line_gave():
    prompts = ['a cat{"reference_path": "cat.png", "mask_strategy": "0"}', "a dog"]
    out = extract_json_from_prompts(prompts, ["x.png", "x.png"], ["", "1"])
    assert out == (["a cat", "a dog"], ["cat.png", "x.png"], ["0", "1"])


@pytest.mark.parametrize(("tail", "reason"), [
    ('{"bad": 1}', "unknown key 'bad'"),
    ("{not json}", "property name"),
    ('{"a": {"b": 1}}', "unknown key 'a'"),
    ('{"mask_strategy": 0}', "mask_strategy is not a string"),
    ('{"mask_strategy": "0"} tail', "Extra data"),
    ('{"mask_strategy": "0"}{}', "Extra data"),
])
def test_malformed_json_is_named_and_changes_nothing(tail, reason):
    references, strategies = ["", "r"], ["", "s"]
    prompts = ['fine {"reference_path": "a.png"}', f"x {tail}"]
    with pytest.raises(ValueError, match="malformed prompt JSON") as error:
        extract_json_from_prompts(prompts, references, strategies)
    message = str(error.value)
    assert repr(f"x {tail}") in message and reason in message and "reference_path, mask_strategy" in message
    assert "\n" not in message and (references, strategies) == (["", "r"], ["", "s"])


def test_a_prompt_becomes_a_file_name():
    def name(prompt: str, **kwargs) -> str:
        path = get_save_path_name("D", prompt=prompt, prompt_as_path=True, **kwargs)
        assert os.path.dirname(path) == "D"
        return os.path.basename(path)

    assert name("a cat.") == "a cat."
    for bad in ("a/b", "../up", "/etc/passwd", ".", "..", "", "line\nbreak", "nul\0", "x" * 500, "猫" * 200):
        made = name(bad)
        assert made and not made.startswith(".") and not set(made) & set("/\\\n\0"), bad
        assert len(f".{made}.mp4.1234567.partial".encode()) <= 255
    assert name("a/b") != name("a_b") and name("x" * 500) != name("x" * 501)
    assert name("x" * 500, num_sample=2, k=1) == name("x" * 500) + "-1"


def test_size_arguments_are_one_row_per_video():
    info = prepare_multi_resolution_info("STDiT2", 2, (128, 256), 51, 24, "cpu", torch.float32)
    assert {k: v.tolist() for k, v in info.items()} == {
        "height": [128, 128], "width": [256, 256], "num_frames": [51, 51], "ar": [0.5, 0.5], "fps": [24, 24]}
    image = prepare_multi_resolution_info("STDiT2", 1, (128, 128), 1, 24, "cpu", torch.float32)
    assert image["fps"].tolist() == [120]
    with pytest.raises(ValueError, match="multi_resolution='STDiT9'; allowed: None, PixArtMS, STDiT2, Open"):
        prepare_multi_resolution_info("STDiT9", 1, (1, 1), 1, 1, "cpu", torch.float32)
