"""Decisions of whole runs, worked out by hand on models whose residuals are given."""
import logging
import re
import time
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from toy_dit import ScriptedDiT, ToyDiT, noise, play, sample, toy

from adacache import AdaCacheConfig, MoRegConfig, Session, adaptive_cache
from adacache.session import differing_rows

BY_BLOCK = {"probes": ["blocks.0.attn"], "granularity": "block", "decide": "batch"}
TWO_LEVELS = [(0.15, 2), (0.5, 1)]


class Size(NamedTuple):
    height: int
    width: int


def growing(factor: float, steps: int, frame: tuple[float, ...] = (1.0, 1.0)) -> list[torch.Tensor]:
    """Residuals factor^k at step k, [1, (T S), 1], one patch per frame."""
    return [torch.tensor(frame)[None, :, None] * factor**k for k in range(steps)]


def run(model: ScriptedDiT, num_steps: int, **settings):
    config = AdaCacheConfig(**{**BY_BLOCK, "codebook": TWO_LEVELS, **settings})
    with adaptive_cache(model, config, num_steps) as session:
        play(model, num_steps)
    return session.trace[0]


def test_the_distance_is_per_step_of_the_rate_in_force():
    video = run(ScriptedDiT(growing(1.1, 10)), 10)
    # step 1: .1; two steps later (1.21 - 1) / 2 = .105; both below .15, so every second step
    assert video.computed_steps == [0, 1, 3, 5, 7, 8, 9]
    # step 8 comes one step after 7, but two were planned: .1 / 2
    expected = {1: 0.1, 3: 0.105, 5: 0.105, 7: 0.105, 8: 0.05, 9: 0.05}
    assert {d.step: d.distance for d in video.decisions} == pytest.approx(expected, rel=1e-5)
    assert all(d.rate == 2 and d.motion == 1 and d.motion_gradient == 0 for d in video.decisions)


def test_a_fast_residual_is_computed_at_every_step():
    assert run(ScriptedDiT(growing(1.2, 6)), 6).computed_steps == list(range(6))


def test_several_probes_count_by_their_mean():
    # .1 and .3: mean .2, above .15, so nothing is reused, though the first alone would be
    model = ScriptedDiT(growing(1.1, 6), growing(1.3, 6))
    video = run(model, 6, probes=["blocks.1.attn", "blocks.0.attn"])
    assert video.computed_steps == list(range(6))
    assert [d.distance for d in video.decisions] == pytest.approx([0.2] * 5, rel=1e-5)


def test_motion_regularization_by_hand():
    # frames 1 and 3: score |3-1| / (1 + 3) = .5; m = (.5 / .25)^2 = 4, at every step of the window
    moreg = MoRegConfig(scale=0.25, power=2, gradient=10, window=(3, 4))
    video = run(ScriptedDiT(growing(1.01, 8, (1.0, 3.0))), 8, moreg=moreg, codebook=[(0.005, 2), (9.0, 1)])
    assert video.computed_steps == list(range(8))
    # m before the window is 1: g = 10 (4 - 1) / 1 on entering, 0 inside, 10 (1 - 4) on leaving
    assert [d.motion for d in video.decisions] == pytest.approx([1, 4, 4, 1, 1, 1, 1])
    assert [d.motion_gradient for d in video.decisions] == pytest.approx([0, 30, 0, -30, 0, 0, 0], abs=1e-4)
    assert [d.regularized_distance for d in video.decisions] == pytest.approx(
        [0.01, 0.34, 0.04, 0.31, 0.01, 0.01, 0.01], rel=1e-3)


def test_a_gradient_is_per_step_of_the_rate_in_force():
    moreg = MoRegConfig(scale=0.25, power=2, gradient=10, window=(3, 20))
    video = run(ScriptedDiT(growing(1.0, 10, (1.0, 3.0))), 10, moreg=moreg, codebook=[(1.0, 3)])
    second = video.decisions[1]
    assert (second.step, second.motion_gradient) == (4, pytest.approx(10 * (4 - 1) / 3))


def test_the_motion_is_that_of_the_deepest_probe():
    still, moving = growing(1.01, 6, (1.0, 1.0)), growing(1.01, 6, (1.0, 3.0))
    moreg = MoRegConfig(scale=0.5, power=2, window=(1, 6))
    probes = ["blocks.1.attn", "blocks.0.attn"]  # in whatever order they are named
    settings = dict(moreg=moreg, probes=probes)
    assert run(ScriptedDiT(still, moving), 6, **settings).decisions[0].motion == pytest.approx(1)
    assert run(ScriptedDiT(moving, still), 6, **settings).decisions[0].motion == 0


def test_without_gradient_only_the_motion_counts():
    moreg = MoRegConfig(scale=0.25, power=2, gradient=0, window=(1, 6))
    video = run(ScriptedDiT(growing(1.01, 6, (1.0, 3.0))), 6, moreg=moreg, codebook=[(9.0, 1)])
    assert [d.regularized_distance for d in video.decisions] == pytest.approx([0.04] * 5, rel=1e-3)


def test_residuals_that_stay_the_same_are_reused_for_as_long_as_the_codebook_says():
    video = run(ScriptedDiT(growing(1.0, 12)), 12, codebook=[(0.1, 4), (1.0, 1)])
    assert video.computed_steps == [0, 1, 5, 9, 10, 11]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_a_distance_that_is_no_number_computes_and_warns(broken, caplog):
    residuals = growing(1.0, 10)
    residuals[3] = torch.full_like(residuals[3], broken)
    video = run(ScriptedDiT(residuals), 10, codebook=[(1.5, 2)])
    # step 3 is computed as planned; NaN and inf there, or 0 stored there, make the next one follow at once
    assert video.computed_steps == ([0, 1, 3, 4, 5, 7, 8, 9] if broken != 0 else [0, 1, 3, 5, 6, 8, 9])
    assert "so the next step is computed" in caplog.text


def test_all_zero_residuals_are_never_reused(caplog):
    video = run(ScriptedDiT([torch.zeros(1, 2, 1)] * 6), 6)
    assert video.computed_steps == list(range(6))
    assert "nothing was reused: no distance was a finite number" in caplog.text


def test_one_frame_has_no_motion_to_measure_so_it_computes_inside_the_window(caplog):
    moreg = MoRegConfig(window=(4, 6))
    video = run(ScriptedDiT(growing(1.0, 12, (1.0,))), 12, moreg=moreg, codebook=[(0.1, 2), (1.0, 1)])
    # steps 3, 4, 5 (4 to 6 counted from 1) have no factor, and step 6 none to compare with
    assert video.computed_steps == [0, 1, 3, 4, 5, 6, 7, 9, 10, 11]
    assert "step 3: no finite distance" in caplog.text


def test_a_run_that_reused_nothing_says_which_threshold_would_have_fired(caplog):
    run(ScriptedDiT(growing(1.25, 8)), 8)
    assert "distances from 0.25 to 0.25; a codebook threshold above 0.25 with a rate of 2" in caplog.text
    caplog.clear()
    run(ScriptedDiT(growing(1.0, 4)), 4)
    assert "num_steps=4, and the first two and the last two steps are always computed" in caplog.text


def test_a_run_in_which_the_guard_let_nothing_be_reused_says_so(caplog):
    model = toy()
    config = AdaCacheConfig(codebook=[(9.0, 3)], probes=["blocks.1.attn"], guard=1e-6)
    with adaptive_cache(model, config, 14) as session:
        sample(model, 14)
    errors = [d.error for d in session.trace[0].decisions if d.step < 11]
    assert f"under guard=1e-06 errors from {min(errors):.4g}; a codebook threshold" in caplog.text
    assert f"with a guard of {min(errors):.4g} or more" in caplog.text
    generous = replace(config, guard=min(errors) * 1.001)
    with adaptive_cache(model, generous, 14) as session:
        sample(model, 14)
    assert len(session.trace[0].computed_steps) < 14


class Masked(ScriptedDiT):
    """With a frame mask that does nothing."""

    def forward(self, x, step, x_mask=None):
        return super().forward(x, step)


def play_masked(model: Masked, masks: list[int]) -> None:
    with torch.no_grad():
        for step, mask in enumerate(masks):
            model(model.blocks[0].residuals[0], step, x_mask=mask)


def test_a_step_computed_before_it_was_due_counts_the_steps_it_really_came_after():
    settings = {**BY_BLOCK, "codebook": [(0.15, 6), (9.0, 1)]}
    model = Masked(growing(1.1, 12))
    with adaptive_cache(model, AdaCacheConfig(**settings), 12) as session:
        play_masked(model, [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    # 7 was planned at step 1; the mask changes at step 3, two steps later: (1.21 - 1) / 2, not / 6
    decision = session.trace[0].decisions[1]
    assert (decision.step, decision.distance) == (3, pytest.approx(0.105, rel=1e-5))
    assert session.trace[0].computed_steps == [0, 1, 3, 9, 10, 11]


def test_a_run_whose_conditions_always_change_says_so(caplog):
    model = Masked(growing(1.0, 8))
    with adaptive_cache(model, AdaCacheConfig(**BY_BLOCK, codebook=[(0.1, 3)]), 8):
        play_masked(model, list(range(8)))
    assert "what `recompute_on` names changed at each of them" in caplog.text


def test_a_run_that_reused_something_says_nothing(caplog):
    with caplog.at_level(logging.DEBUG, "adacache"):
        run(ScriptedDiT(growing(1.1, 14)), 14)
    # so small a model may not pay, which depends on the machine
    assert all(record.getMessage().startswith("caching cost more") for record in caplog.records)


def test_a_run_of_few_steps_says_so(caplog):
    run(ScriptedDiT(growing(1.1, 10)), 10)
    assert "num_steps=10: with fewer than 12 steps there is little to reuse" in caplog.text


class Slow(ScriptedDiT):
    """Takes its time where blocks are computed."""

    def forward(self, x, step):
        if not self.blocks[0].residual_cache.reuse:
            time.sleep(0.01)
        return super().forward(x, step)


def test_a_cache_that_costs_more_than_it_saves_says_so(caplog, monkeypatch):
    run(Slow(growing(1.0, 14)), 14)
    assert "caching cost more" not in caplog.text
    plan = Session._plan
    monkeypatch.setattr(Session, "_plan", lambda session, *found: (time.sleep(0.03), plan(session, *found)))
    run(Slow(growing(1.0, 14)), 14)
    assert "caching cost more than it saved: decisions 0." in caplog.text


class SlowRows(ToyDiT):
    """Takes its time for every row that runs through the blocks."""

    def forward(self, x, t, x_mask=None):
        before = self.rows_run
        out = super().forward(x, t, x_mask)
        time.sleep(0.002 * (self.rows_run - before))
        return out


def test_what_steps_save_that_are_computed_for_some_videos_alone_counts(caplog, monkeypatch):
    plan = Session._plan
    monkeypatch.setattr(Session, "_plan", lambda session, *found: (time.sleep(0.002), plan(session, *found)))
    model, x = SlowRows(), noise(rows=8) * torch.linspace(0.3, 3.0, 4).repeat(2)[:, None, None]
    codebook = [(0.1, 5), (0.12, 4), (0.15, 3), (9.0, 2)]
    with adaptive_cache(model, AdaCacheConfig(probes=["blocks.1.attn"], codebook=codebook), 16) as session:
        sample(model, 16, x)
    assert session.clock.spans["mixed"], "the test shows nothing"
    assert "caching cost more" not in caplog.text


class Forgetful(ToyDiT):
    """Its probed block saves nothing from the third call on."""

    calls = 0

    def forward(self, x, t, x_mask=None):
        self.calls += 1
        slot = self.blocks[1]
        if self.calls > 2:
            kept, slot.residual_cache = slot.residual_cache, None
        out = super().forward(x, t, x_mask)
        if self.calls > 2:
            slot.residual_cache = kept
        return out


def test_a_probed_block_that_stops_saving_is_named():
    config = AdaCacheConfig(probes=["blocks.1.attn"], codebook=[(9.0, 1)])
    with pytest.raises(RuntimeError, match="step 2: not all of the probes blocks.1.attn saved a residual"), \
            adaptive_cache(model := Forgetful(), config, 14):
        sample(model, 14)


@pytest.mark.parametrize("value, other, differs", [
    ((1, torch.ones(2)), (1, torch.ones(2)), [False, False]),
    ((1, torch.ones(2)), (1, torch.tensor([1.0, 2.0])), [False, True]),
    ((1, (2, "a")), (1, (2, "b")), [True, True]),
    ((1,), (1, 2), [True, True]), ((), (), [False, False]),
    ([[32, 32], "x"], [[32, 32], "x"], [False, False]), ([1], (1,), [True, True]),
    (Size(3, 4), (3, 4), [False, False]), (Size(3, 4), (3, 5), [True, True]),
])
def test_watched_tuples_are_compared_by_what_is_in_them(value, other, differs):
    assert differing_rows(value, other, 2) == differs


def test_what_would_have_fired_fires(caplog):
    """Distance and error of one step: the smallest of each may be of different steps."""
    model = toy()

    def nothing_reused(threshold: float, guard: float) -> str:
        caplog.clear()
        settings = AdaCacheConfig(probes=["blocks.1.attn"], codebook=[(threshold, 2)], guard=guard)
        with adaptive_cache(model, settings, 14):
            sample(model, 14)
        return next((r.getMessage() for r in caplog.records if "nothing was reused" in r.getMessage()), "")

    said = nothing_reused(1e-6, 1e-3)
    threshold, guard = re.search(r"threshold above (\S+) with .* a guard of (\S+) or more", said).groups()
    assert not nothing_reused(1.001 * float(threshold), 1.001 * float(guard))
