"""A schedule for each video of a batch: what else is in the batch plays no part."""
import pytest
import torch
from toy_dit import noise, sample, toy

from adacache import AdaCacheConfig, FixedSchedule, MoRegConfig, adaptive_cache

STEPS = 16
# thresholds within the spread of the toy's distances, so that videos differ
CODEBOOK = [(0.105, 5), (0.112, 4), (0.12, 3), (0.14, 2), (9.0, 1)]


def config(**settings) -> AdaCacheConfig:
    return AdaCacheConfig(**{"codebook": CODEBOOK, "probes": ["blocks.1.attn"], **settings})


def videos(count: int) -> torch.Tensor:
    """[2 count, (T S), C]: conditional rows, then unconditional ones; very different videos."""
    rows = noise(rows=2 * count, seed=3)
    return rows * torch.linspace(0.3, 3.0, count).repeat(2)[:, None, None]


def run(model, x, masks=None, **settings):
    with adaptive_cache(model, config(**settings), STEPS) as session:
        out = sample(model, STEPS, x, masks)
    return out, session


def of_video(x: torch.Tensor, index: int) -> torch.Tensor:
    return x[index :: len(x) // 2]


@pytest.mark.parametrize("granularity", ["stack", "block"])
@pytest.mark.parametrize("moreg", [None, MoRegConfig(window=(2, 14), scale=0.4, power=1, gradient=1)])
def test_a_video_alone_and_in_any_batch_is_the_same_video(granularity, moreg):
    model, x = toy(), videos(4)
    together, session = run(model, x, granularity=granularity, moreg=moreg)
    for index in range(4):
        alone, own = run(model, of_video(x, index), granularity=granularity, moreg=moreg)
        assert session.trace[index].computed_steps == own.trace[0].computed_steps
        assert [d.rate for d in session.trace[index].decisions] == [d.rate for d in own.trace[0].decisions]
        torch.testing.assert_close(of_video(together, index), alone, rtol=1e-5, atol=1e-6)
    assert len({tuple(video.computed_steps) for video in session.trace}) > 1, "the test shows nothing"


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_a_video_that_reuses_costs_no_block(granularity):
    model = toy()
    _, session = run(model, videos(4), granularity=granularity)
    computed = sum(len(video.computed_steps) for video in session.trace)
    rows_reused = 2 * (4 * STEPS - computed) if granularity == "block" else 0  # they pass, but add only
    assert model.rows_run - rows_reused == 2 * computed
    assert computed < 4 * STEPS


def test_a_row_can_decide_for_itself():
    model, x = toy(), videos(2)
    out, session = run(model, x, decide="row")
    for index in range(4):
        alone, own = run(model, x[index : index + 1], decide="row")
        assert session.trace[index].computed_steps == own.trace[0].computed_steps
        torch.testing.assert_close(out[index : index + 1], alone, rtol=1e-5, atol=1e-6)


def test_of_a_video_whose_rows_decide_for_themselves_the_trace_tells_both():
    model, x = toy(), videos(2)
    _, session = run(model, x, decide="row")
    steps = [set(row.computed_steps) for row in session.trace]
    assert len({frozenset(each) for each in steps}) > 1, "the test shows nothing"
    for video in (0, 1):  # rows 0 and 2, 1 and 3
        own = session.trace.of_video(video)
        assert own.computed_steps == sorted(steps[video] | steps[video + 2])
        assert len(own.decisions) == sum(len(session.trace[row].decisions) for row in (video, video + 2))
    names = [line[:13] for line in session.trace.timeline().splitlines()]
    assert names == ["video 0 row 0", "video 1 row 0", "video 0 row 1", "video 1 row 1"]
    replay = FixedSchedule.from_json(session.trace.to_json())
    _, again = run(model, x, schedule=replay)
    assert [row.computed_steps for row in again.trace] == [row.computed_steps for row in session.trace]


def test_one_decision_for_the_batch_has_one_entry_in_the_trace():
    _, session = run(toy(), videos(4), decide="batch")
    assert len(session.trace) == 1


def test_a_change_of_one_video_s_frame_mask_computes_that_video_alone():
    model, x = toy(), videos(2)
    masks = [torch.ones(4, 3, dtype=torch.bool) for _ in range(STEPS)]
    for mask in masks[4:]:
        mask[1::2, 0] = False  # both rows of video 1
    settings = dict(codebook=[(9.0, 9)])
    _, session = run(model, x, masks, **settings)
    assert session.trace[0].computed_steps == [0, 1, 10, 14, 15]
    assert session.trace[1].computed_steps == [0, 1, 4, 13, 14, 15]


def test_a_batch_that_does_not_hold_whole_videos_is_an_error():
    with pytest.raises(ValueError, match="rows_per_video=2, but the model is called with a batch of 3; all"):
        run(toy(), noise(rows=3))
    _, session = run(toy(), noise(rows=3), rows_per_video=1)  # without guidance
    assert len(session.trace) == 3


def test_the_cache_of_a_batch_is_that_of_its_videos():
    model, x = toy(), videos(4)
    _, session = run(model, x)
    assert session.cache_bytes == 2 * x.nbytes
