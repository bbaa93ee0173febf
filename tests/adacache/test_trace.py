"""The record of a run, there and back."""
import json
import math

import pytest

from adacache import Decision, Trace, VideoTrace

TRACE = Trace(8, [
    VideoTrace([0, 1, 4, 6, 7], [Decision(1, 0.1, 1.0, 0.0, 0.1, 3), Decision(4, 0.2, 1.5, -0.25, 0.35, 6)]),
    VideoTrace([0, 1, 2, 6, 7], []),
])


def test_the_json_has_the_keys_of_the_record_beside_a_sample():
    data = json.loads(json.dumps(TRACE.to_json()))
    assert data["num_steps"] == 8 and data["videos"][0]["computed_steps"] == [0, 1, 4, 6, 7]
    assert data["videos"][0]["decisions"][0] == {
        "step": 1, "distance": 0.1, "motion": 1.0, "motion_gradient": 0.0, "regularized_distance": 0.1,
        "rate": 3}
    assert Trace.from_json(data) == TRACE


def test_a_file_is_read_too_and_the_record_beside_a_sample(tmp_path):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(TRACE.to_json()))
    assert Trace.from_json(file) == TRACE
    sample = {"prompt": "a red square", "num_steps": 8, **TRACE.to_json()["videos"][0]}
    assert Trace.from_json(sample) == Trace(8, TRACE.videos[:1])


def test_a_sample_of_several_clips_has_no_one_schedule():
    clips = TRACE.to_json()["videos"]
    with pytest.raises(ValueError, match="a sample of 2 clips, each with a schedule of its own"):
        Trace.from_json({"num_steps": 8, **clips[0], "clips": clips})


def test_numbers_that_json_has_not_become_null():
    trace = Trace(3, [VideoTrace([0, 1, 2], [Decision(1, math.inf, 1.0, 0.0, math.nan, 1)])])
    data = json.loads(json.dumps(trace.to_json(), allow_nan=False))
    assert data["videos"][0]["decisions"][0]["distance"] is None
    assert math.isnan(Trace.from_json(data)[0].decisions[0].regularized_distance)


@pytest.mark.parametrize("data", [{}, {"num_steps": 3}, {"num_steps": 3, "videos": [1]},
                                  {"num_steps": 3, "computed_steps": [0], "decisions": [{"step": 1}]}])
def test_data_that_are_no_trace_are_an_error(data):
    with pytest.raises(ValueError, match="no trace"):
        Trace.from_json(data)


def test_the_timeline_marks_computed_and_reused_steps():
    assert TRACE.timeline() == "video 0  ##..#.##  5 of 8\nvideo 1  ###...##  5 of 8"


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    TRACE.plot(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
