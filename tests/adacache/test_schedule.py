"""Which steps are computed."""
import json

import pytest

from adacache import Codebook, FixedSchedule, Trace, VideoTrace
from adacache.schedule import AdaptiveSchedule


def computed(schedule: AdaptiveSchedule, distance: float) -> list[int]:
    steps = [0]
    for step in range(1, schedule.num_steps):
        if schedule.computes(step):
            steps.append(step)
            schedule.plan(step, distance)
    return steps


def test_the_first_two_and_the_last_two_steps_are_always_computed():
    assert computed(AdaptiveSchedule(Codebook([(1.0, 100)]), 30), 0.5) == [0, 1, 28, 29]
    assert computed(AdaptiveSchedule(Codebook([(1.0, 100)]), 30, last=0), 0.5) == [0, 1]


def test_the_rate_leads_from_one_computed_step_to_the_next():
    assert computed(AdaptiveSchedule(Codebook([(1.0, 6)]), 30), 0.5) == [0, 1, 7, 13, 19, 25, 28, 29]
    assert computed(AdaptiveSchedule(Codebook([(1.0, 1)]), 5), 0.5) == [0, 1, 2, 3, 4]


def test_uniform_starts_with_the_first_step():
    assert FixedSchedule.uniform(10, 30).steps == tuple(range(0, 30, 3))
    assert FixedSchedule.uniform(4, 10).steps == (0, 2, 5, 7)
    assert FixedSchedule.uniform(30, 30).steps == tuple(range(30))


def test_a_recorded_run_becomes_a_schedule(tmp_path):
    trace = Trace(10, [VideoTrace([0, 1, 4, 8, 9])])
    beside_the_sample = {"prompt": "a red square", "num_steps": 10, "computed_steps": [0, 1, 4, 8, 9]}
    file = tmp_path / "sample_0000.json"
    file.write_text(json.dumps(beside_the_sample))
    for source in (beside_the_sample, file, str(file)):  # of an earlier version
        assert FixedSchedule.from_json(source) == FixedSchedule((0, 1, 4, 8, 9), 10)
    assert FixedSchedule.from_json(trace.to_json()) == FixedSchedule((0, 1, 4, 8, 9), 10, changes=())


def test_videos_with_different_schedules_keep_their_own():
    schedule = FixedSchedule.from_json(Trace(10, [VideoTrace([0, 1]), VideoTrace([0, 2])]).to_json())
    assert schedule == FixedSchedule([[0, 1], [0, 2]], 10, changes=((), ()))
    assert [schedule.of_video(i).steps for i in (0, 1)] == [(0, 1), (0, 2)]
    with pytest.raises(ValueError, match="schedule of 2 videos in a run that needs 3; allowed: as many"):
        schedule.check_count(3)


def test_changes_are_of_computed_steps_and_shown_where_there_are_any():
    with pytest.raises(ValueError, match="changes=.*: '2'; allowed: computed steps"):
        FixedSchedule.from_json({"num_steps": 9, "computed_steps": [0, 2], "changed_steps": ["2"]})
    with pytest.raises(ValueError, match="allowed: a list of steps for each"):
        FixedSchedule([[0, 1], [0, 2]], 9, changes=(1,))
    assert FixedSchedule([[0, 1], [0, 2]], 9, changes=[[], [2]]).of_video(1).changes == (2,)
    assert "changes" not in repr(FixedSchedule((0, 2), 9)) and "changes=(2,)" in repr(
        FixedSchedule((0, 2), 9, changes=(2,)))


@pytest.mark.parametrize("steps, said", [((1, 2), "lacks step 0"), ((), "lacks step 0"),
                                         ((-1, 0), "step -1; allowed: 0 to 9"),
                                         ((0, 10), "step 10; allowed: 0 to 9"),
                                         ((0, 1.5), "allowed: whole numbers")])
def test_a_schedule_that_cannot_run_is_an_error(steps, said):
    with pytest.raises(ValueError, match=said):
        FixedSchedule(steps, 10)


def test_a_file_that_holds_no_trace_is_named(tmp_path):
    file = tmp_path / "trace.json"
    for text in ("{", "[]", '{"num_steps": 3}', '{"num_steps": 3, "computed_steps": 1}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="no trace: .*trace.json.*; allowed: num_steps and computed_st"):
            FixedSchedule.from_json(file)
    with pytest.raises(FileNotFoundError, match="no trace: 'none.json' does not exist"):
        FixedSchedule.from_json("none.json")
    with pytest.raises(ValueError, match="num_steps='3'; allowed: whole numbers"):
        FixedSchedule.from_json({"num_steps": "3", "computed_steps": [0]})


@pytest.mark.parametrize("k", [0, 11])
def test_more_or_fewer_computed_steps_than_there_are(k):
    with pytest.raises(ValueError, match=f"k={k} computed steps; allowed: 1 to num_steps=10"):
        FixedSchedule.uniform(k, 10)
