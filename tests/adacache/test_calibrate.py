"""Simulated on recorded numbers, settings do what they do on the model."""
import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from test_forecast import STEPS, Drifting, polynomial
from torch import Tensor, nn
from toy_dit import noise, sample, toy

from adacache import AdaCacheConfig, FixedSchedule, MoRegConfig, adaptive_cache
from adacache.calibrate import (
    Simulation,
    Slot,
    best_steps,
    fitted_codebook,
    growth_of_errors,
    guard_for,
    simulate,
)
from adacache.recording import Recording, recorded

PROBE = ("block.attn",)


def two_videos() -> Tensor:
    """Residuals [steps, 4, 6, 8]; rows: c of both videos, u of both.  The second video is restless."""
    restless = torch.randn(STEPS, 2, 6, 8, generator=torch.Generator().manual_seed(0)).double() * 0.3
    calm, wild = polynomial(1.0, 0.1, 0.01), polynomial(1.0, 0.2, 0.02) + restless
    return torch.stack([calm, wild], dim=2).flatten(1, 2)


def run(residuals: Tensor, config: AdaCacheConfig):
    model, zero = Drifting(residuals), torch.zeros_like(residuals[0])
    with torch.no_grad(), adaptive_cache(model, config, STEPS) as session:
        return torch.stack([model(zero, step) for step in range(STEPS)]), session.trace


def record(residuals: Tensor, **settings) -> Recording:
    model, zero = Drifting(residuals), torch.zeros_like(residuals[0])
    with torch.no_grad(), recorded(model, AdaCacheConfig(probes=PROBE, **settings), STEPS) as recorder:
        for step in range(STEPS):
            model(zero, step)
    return recorder.recording()


@pytest.mark.parametrize("settings", [
    dict(codebook=[(0.05, 5), (0.2, 3), (9.0, 1)]),
    dict(codebook=[(9.0, 6)], forecast=2, guard=0.2),
    dict(codebook=[(9.0, 6)], forecast=0, guard=0.3),
    dict(codebook=[(0.05, 5), (0.2, 3), (9.0, 1)], moreg=MoRegConfig(window=(4, 20), scale=0.8, power=2)),
    dict(codebook=[(0.05, 5), (0.2, 3), (9.0, 1)], metric="cosine"),
    dict(schedule=FixedSchedule((0, 1, 2, 4, 7, 11, 16, 21), STEPS), forecast=1),
    dict(codebook="published-fast"),
], ids=["codebook", "guarded forecast", "guarded reuse", "moreg", "metric", "fixed", "preset"])
def test_a_simulation_is_the_run(settings):
    residuals = two_videos()
    config = AdaCacheConfig(probes=PROBE, **settings)
    recording = record(residuals, **{k: settings[k] for k in ("metric", "moreg") if k in settings})
    simulated = simulate(recording, config)
    for v in range(2):  # a published preset decides for the batch, a simulation for each video
        found, trace = run(residuals[:, v::2], config)
        assert simulated.trace[v].computed_steps == trace[0].computed_steps
        assert simulated.computed[v] == len(trace[0].computed_steps)
        for one, other in zip(simulated.trace[v].decisions, trace[0].decisions, strict=True):
            assert one.rate == other.rate
            assert one.regularized_distance == pytest.approx(other.regularized_distance, rel=1e-4)
            assert (one.error is None) == (other.error is None)
            assert one.error is None or one.error == pytest.approx(other.error, rel=1e-3, abs=1e-5)
        missed = (found - residuals[:, v::2]).flatten(2).norm(dim=2).T  # [p, K]
        torch.testing.assert_close(simulated.errors[v].norm(dim=2), missed, rtol=1e-3, atol=1e-4)
    assert len({tuple(v.computed_steps) for v in simulated.trace}) == (1 if "schedule" in settings else 2)


def test_by_block_there_is_neither_forecast_nor_guard():
    recording = record(two_videos())
    by_block, plain = (simulate(recording, AdaCacheConfig(probes=PROBE, codebook="fast", **settings))
                       for settings in (dict(granularity="block"), dict(forecast=0, guard=math.inf)))
    assert by_block.trace == plain.trace


def test_short_vectors_have_the_recorded_inner_products():
    residuals = two_videos()
    recording = record(residuals)
    short = recording.short
    assert short.shape == (STEPS, 4, 2 * STEPS, 1)
    for v in range(2):
        whole = residuals[:, v::2].transpose(0, 1).flatten(0, 1).flatten(1)
        found = short[:, v::2, :, 0].transpose(0, 1).flatten(0, 1)
        torch.testing.assert_close(found @ found.T, whole @ whole.T)


def test_recording_changes_nothing_and_leaves_the_model_as_it_was():
    model, x = toy(), noise(rows=4)
    expected = sample(model, 6, x)
    with recorded(model, AdaCacheConfig(probes=["blocks.1.attn"]), 6) as recorder:
        assert torch.equal(sample(model, 6, x), expected)
        with pytest.raises(RuntimeError, match="inside"), recorded(model, AdaCacheConfig(), 6):
            pass
    assert model.residual_cache is None
    recording = recorder.recording()
    assert recording.products.shape == (2, 2, 6, 2, 6) and recording.num_steps == 6
    assert recording.motion["blocks.1.attn"].shape == (2, 6)
    both = Recording.joined([recording, recording])
    assert both.videos == 4 and both.distances["blocks.1.attn"].shape == (4, 6, 6)


class Interleaved(nn.Module):
    """Blocks named by kind and computed in turn; each moves as much as its depth."""

    def __init__(self, frames: Tensor) -> None:
        super().__init__()
        self.frames, self.residual_cache = frames, None  # [steps, 1, (T S), C], T = 2, S = 3
        self.spatial, self.temporal = (nn.ModuleList([Slot(), Slot()]) for _ in range(2))

    def forward(self, x: Tensor, step: int) -> Tensor:
        def blocks(x: Tensor, rows) -> Tensor:
            for depth, block in enumerate((self.spatial[0], self.temporal[0], self.spatial[1])):
                residual = self.frames[step] * (1.0 + depth * torch.arange(6)[:, None] / 6)
                if block.residual_cache is not None:
                    block.residual_cache.save(3, attn=residual)
                x = x + residual
            return x

        return self.residual_cache.run(x, 3, blocks)


def test_the_deepest_probe_is_the_one_that_is_computed_last():
    model = Interleaved(polynomial(1.0, 0.3)[:, :1])
    config = AdaCacheConfig(probes=["temporal.0.attn", "spatial.1.attn"], rows_per_video=1,
                            codebook=[(9.0, 3)], moreg=MoRegConfig(window=(1, STEPS), scale=0.8, power=2))
    zero = torch.zeros_like(model.frames[0])
    with recorded(model, config, STEPS) as recorder:
        for step in range(STEPS):
            model(zero, step)
    with adaptive_cache(model, config, STEPS) as session:
        for step in range(STEPS):
            model(zero, step)
    simulated = simulate(recorder.recording(), config).trace[0].decisions
    assert [d.motion for d in simulated] == pytest.approx([d.motion for d in session.trace[0].decisions])


def test_growth_is_what_single_errors_come_to():
    residuals = two_videos()
    grows = torch.linspace(3.0, 1.0, STEPS).double()
    recording, final = record(residuals), {}
    for step in (1, 5, 12, 23):
        kept = tuple(s for s in range(STEPS) if s != step)
        found, _ = run(residuals, AdaCacheConfig(schedule=FixedSchedule(kept, STEPS)))
        wrong = grows[step] * (found - residuals)[step]
        final[step] = (5 * wrong[:2] - 4 * wrong[2:]).flatten(1).square().sum(1)
    growth = growth_of_errors(recording, final)
    assert growth[[1, 5, 12, 23]].tolist() == pytest.approx(grows[[1, 5, 12, 23]].tolist(), rel=1e-6)
    assert growth[0] == growth[1] and growth[5] > growth[8] > growth[12]


def test_no_three_steps_are_better_than_the_best_three():
    position = torch.linspace(0, 1, STEPS).double()[:, None, None, None]
    calming = (-4 * position).exp() * noise(seed=1).double() + position * noise(seed=2).double()
    recording, growth = record(calming), torch.linspace(2, 1, STEPS)

    def error(steps) -> float:
        config = AdaCacheConfig(probes=PROBE, schedule=FixedSchedule(steps, STEPS))
        return simulate(recording, config).squared_error(growth).item()

    best = best_steps(recording, 3, AdaCacheConfig(probes=PROBE, forecast=0), growth, reach=STEPS)
    assert len(best.steps) == 3
    every = min(((0, a, b) for a, b in combinations(range(1, STEPS), 2)), key=error)
    assert best.steps == every
    with pytest.raises(ValueError, match="1 computed steps; allowed: 2 to num_steps=24"):
        best_steps(recording, 1, AdaCacheConfig(probes=PROBE), growth)


def test_the_guard_for_a_number_of_steps():
    recording = record(two_videos())
    config = AdaCacheConfig(probes=PROBE, codebook=[(9.0, 6)], forecast=2)

    def computed(guard: float) -> float:
        return simulate(recording, replace(config, guard=guard)).computed.double().mean().item()

    guard = guard_for(recording, 12, config)
    assert computed(guard) <= 12 < computed(guard / 1.1)
    assert guard_for(recording, 24, config) == 1e-4
    with pytest.raises(ValueError, match="3 computed steps; allowed: 5 or more"):
        guard_for(recording, 3, config)


def test_thresholds_and_rates_for_a_number_of_steps():
    recording, growth = record(two_videos()), torch.ones(STEPS)
    config = AdaCacheConfig(probes=PROBE, codebook=[(0.02, 6), (0.05, 3), (1.0, 1)], forecast=2)

    def found_with(entries) -> Simulation:
        return simulate(recording, replace(config, codebook=entries))

    def error(found: Simulation) -> float:
        return found.squared_error(growth).log().mean().item()

    entries = fitted_codebook(recording, 12, config, growth).entries
    found, factor = found_with(entries), entries[-1][0]
    assert found.computed.double().mean() <= 12
    assert found_with([(t / 1.05, rate) for t, rate in entries]).computed.double().mean() > 12
    assert [threshold / factor for threshold, _ in entries] == pytest.approx([0.02, 0.05, 1.0])
    for most in (3, 6):  # either limit of the rates, by the smallest factor that does
        tried = ([(t * by / 100, min(rate, most)) for t, rate in ((0.02, 6), (0.05, 3), (1.0, 1))]
                 for by in range(20, 1000, 5))
        enough = next(f for f in map(found_with, tried) if f.computed.double().mean() <= 12)
        assert error(found) <= error(enough) + 0.2
    with pytest.raises(ValueError, match="3 computed steps; allowed: [0-9.]+ or more, as the codebook"):
        fitted_codebook(recording, 3, config, growth)


def test_errors_that_matter_more_are_avoided_first():
    recording = record(polynomial(1.0, 0.3))
    config = AdaCacheConfig(probes=PROBE, forecast=0)
    early, late = torch.ones(STEPS), torch.ones(STEPS)
    early[:8], late[16:] = 30.0, 30.0
    counts = [sum(step < 8 for step in best_steps(recording, 8, config, growth).steps)
              for growth in (early, late)]
    assert counts[0] > counts[1]


@pytest.mark.parametrize("settings, message", [
    (dict(probes=["block.mlp"]), "probe 'block.mlp'; allowed: recorded ones, block.attn"),
    (dict(metric="l2"), "metric='l2'; allowed: the recorded one, 'l1'"),
    (dict(moreg=MoRegConfig(strides=(2,))), r"moreg.strides=\(2,\); allowed: recorded ones, \(1,\)"),
    (dict(num_steps=30), "num_steps=24; allowed: 30"),
    (dict(schedule=FixedSchedule((0, 9), 30)), "num_steps=24; allowed: 30"),
])
def test_what_was_not_recorded_is_not_simulated(settings, message):
    with pytest.raises(ValueError, match=message):
        simulate(record(two_videos()), AdaCacheConfig(**{"probes": PROBE, **settings}))


def test_half_a_run_is_no_recording():
    model, settings = toy(), AdaCacheConfig(probes=["blocks.1.attn"])
    with pytest.raises(RuntimeError, match="0 steps of the stack recorded; allowed: a run of num_steps=6"), \
            recorded(model, settings, 6) as recorder:
        recorder.recording()
    with pytest.raises(RuntimeError, match="5 steps of the stack recorded"), \
            recorded(model, settings, 6) as recorder:
        sample(model, 5, noise())
        recorder.recording()
    with pytest.raises(ValueError, match="rows_per_video=2, but .* a batch of 3"), \
            recorded(model, settings, 6):
        sample(model, 6, noise(rows=3))
    with pytest.raises(ValueError, match="no block nowhere"), \
            recorded(model, AdaCacheConfig(probes=["nowhere.attn"]), 6):
        pass
    assert model.residual_cache is None


@pytest.mark.parametrize("final, message", [
    ({0: torch.ones(2)}, "step 0"), ({}, "no step"), ({3: torch.ones(3)}, "allowed: 2 finite ones"),
    ({3: torch.tensor([1.0, math.nan])}, "allowed: 2 finite ones"),
])
def test_growth_needs_errors_of_the_recorded_videos(final, message):
    with pytest.raises(ValueError, match=message):
        growth_of_errors(record(two_videos()), final)


def test_an_error_of_zero_is_a_number_as_any():
    growth = growth_of_errors(record(two_videos()), {3: torch.zeros(2), 9: torch.ones(2)})
    assert growth.isfinite().all() and growth[3] < 1e-9 < growth[9]


def test_what_is_not_finite_is_not_recorded():
    broken = two_videos()
    broken[7, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match="a residual is not finite"):
        record(broken)
    with pytest.raises(ValueError, match="allowed: 24 finite numbers"):
        best_steps(record(two_videos()), 5, AdaCacheConfig(probes=PROBE), torch.full((STEPS,), math.nan))
