"""The rivals: each does what its paper says, and nothing outside of its `with`."""
from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from adacache import AdaCacheConfig, FixedSchedule, adaptive_cache
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config
from opensora.schedulers.rf import RFLOW

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
STEPS = 12  # at timesteps 1000, 917, 833, 750, 667, 583, 500, 417, ..., 83
ROWS, TOKENS, WIDTH, BLOCKS = 4, 18, 32, 4  # two videos, with guidance
RESIDUAL = ROWS * TOKENS * WIDTH * 4  # bytes in fp32
SIZES = {"fps": 24.0, "height": 48.0, "width": 32.0, "num_frames": 17.0}

# settings with which each reuses something here, and with which it computes everything
REUSING = [
    {"type": "teacache", "threshold": 0.5, "coefficients": [1.0, 0.0]},
    {"type": "first_block_cache", "threshold": 0.8},
    {"type": "pab"},
    {"type": "tgate", "gate": 8},
    {"type": "delta_dit", "gate": 6, "blocks": 2},
]
COMPUTING = [
    {"type": "teacache", "threshold": 0},
    {"type": "first_block_cache", "threshold": 0},
    {"type": "pab", "spatial": 1, "temporal": 1, "cross": 1},
    {"type": "tgate", "gate": STEPS, "sp_interval": 1},
    {"type": "delta_dit", "gate": 6, "blocks": 2, "interval": 1},
]
each_rival = pytest.mark.parametrize("values", REUSING, ids=lambda values: values["type"])


@pytest.fixture
def rivals(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("rivals")


@pytest.fixture
def opened(rivals, model) -> Callable:
    """`opened(type=..., ...)`: the context of a run of STEPS steps."""
    return lambda **values: rivals.open_rival(rivals.read_rival(values), model, STEPS)


@pytest.fixture
def model() -> STDiT3:
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(depth=2, hidden_size=WIDTH, num_heads=2, caption_channels=16,
                                model_max_length=8))
    for parameter in model.parameters():  # the zeros of the start would hide mistakes
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def sample(model: STDiT3, steps: int = STEPS, videos: int = 2) -> Tensor:
    """Latents [videos, 4, 3, 6, 4]: 3 frames of 3 x 2 patches."""
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(2, 4, 3, 6, 4, generator=generator)[:videos]
    y = torch.randn(2, 1, 8, 16, generator=generator)[:videos]
    null = model.y_embedder.y_embedding[None, None].repeat(videos, 1, 1, 1)
    sizes = {name: torch.full((videos,), value) for name, value in SIZES.items()}
    mask = (torch.arange(8) < torch.tensor([[5], [8]])[:videos]).long()
    sampler = RFLOW(num_sampling_steps=steps, cfg_scale=3.0)
    return sampler.denoise(model, z, torch.cat([y, null]), mask, "cpu", sizes, None, 3.0)


def stack_of(model: STDiT3) -> list:
    """Spatial 0, temporal 0, spatial 1, temporal 1."""
    return [block for pair in zip(model.spatial_blocks, model.temporal_blocks, strict=True) for block in pair]


def steps_of(model: STDiT3, run, *paths: str) -> list[list[int]]:
    """Sample, and tell at which steps each of the submodules was called."""
    called: dict[str, list[int]] = {path: [] for path in paths}
    hooks = [model.get_submodule(path).register_forward_hook(
        lambda *_, path=path: called[path].append(run.step)) for path in paths]
    sample(model)
    for hook in hooks:
        hook.remove()
    return list(called.values())


def flow_of(model: STDiT3, modules: list) -> list[list[tuple[tuple, Tensor]]]:
    """Sample, and give arguments and output of each module at every step: [module][step]."""
    seen: list[list[tuple[tuple, Tensor]]] = [[] for _ in modules]
    hooks = [module.register_forward_hook(lambda _, args, out, own=own: own.append((args, out)))
             for module, own in zip(modules, seen, strict=True)]
    sample(model)
    for hook in hooks:
        hook.remove()
    return seen


def is_plain(model: STDiT3) -> bool:
    return not any(getattr(m, "residual_cache", None) is not None or m._forward_hooks or m._forward_pre_hooks
                   or "forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("values", COMPUTING, ids=lambda values: values["type"])
def test_a_threshold_of_0_or_an_interval_of_1_is_the_plain_model_bitwise(model, opened, values):
    plain = sample(model)
    with opened(**values) as run:
        assert torch.equal(sample(model), plain)
    assert run.trace[0].computed_steps == list(range(STEPS)) and run.partly == []


@each_rival
def test_outside_of_the_with_the_model_is_the_plain_model(model, opened, values):
    plain, names = sample(model), list(model.state_dict())
    stored = []
    with opened(**values) as run:
        hook = model.register_forward_hook(
            lambda *_: stored.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in run.tensors()))
        assert list(model.state_dict()) == names
        assert not torch.equal(sample(model), plain)
    hook.remove()
    assert is_plain(model)
    assert stored and all(reference.expired() for reference in stored)
    assert torch.equal(sample(model), plain)


@each_rival
@pytest.mark.parametrize("broken", ["spatial_blocks.0.mlp", "temporal_blocks.1.mlp"])
def test_a_run_that_breaks_off_leaves_nothing_behind(model, opened, values, broken):
    plain, calls = sample(model), []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise ZeroDivisionError

    hook = model.get_submodule(broken).register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), opened(**values) as run:
        sample(model)
    hook.remove()
    assert is_plain(model) and run.tensors() == []
    assert torch.equal(sample(model), plain)


@each_rival
def test_two_runs_one_after_the_other_are_the_same(model, opened, values):
    results = []
    for _ in range(2):
        with opened(**values) as run:
            results.append((sample(model), run.trace, run.partly, run.cache_bytes))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1:] == results[1][1:]


@each_rival
def test_every_step_is_computed_or_partly_computed_or_reused(model, opened, values):
    with opened(**values) as run:
        sample(model)
    computed = run.trace[0].computed_steps
    assert 0 in computed and set(computed).isdisjoint(run.partly) and len(computed) < STEPS
    if values["type"] == "teacache":  # a step that reuses computes no block
        assert run.partly == []
    else:
        assert sorted(computed + run.partly) == list(range(STEPS))
    assert len(run.trace) == 1 and run.trace.num_steps == STEPS


@each_rival
def test_a_run_of_another_number_of_steps_is_an_error(model, opened, values):
    with pytest.raises(RuntimeError, match="num_steps=12, but the model was called 11 times"), \
            opened(**values):
        sample(model, STEPS - 1)
    with pytest.raises(RuntimeError, match="num_steps=12, but the model is called once more"), \
            opened(**values):
        sample(model, STEPS + 1)


@each_rival
def test_a_rival_and_adacache_refuse_each_other(model, opened, values):
    adacache = AdaCacheConfig(schedule=FixedSchedule((0,), STEPS))
    with adaptive_cache(model, adacache, STEPS):
        with pytest.raises(RuntimeError, match="one at a time"), opened(**values):
            pass
        sample(model)
    with opened(**values) as run:
        with pytest.raises(RuntimeError, match="one at a time"), adaptive_cache(model, adacache, STEPS):
            pass
        with pytest.raises(RuntimeError, match="one at a time"), opened(**values):
            pass
        sample(model)
    assert run.step == STEPS and is_plain(model)


@pytest.mark.parametrize("threshold, coefficients", [
    (2.0, [0.5, 2.0, -0.1]),
    (0.1, [1.0, -0.45]),  # of small changes below 0, which then count as none
])
def test_teacache_computes_the_steps_at_which_the_summed_up_distance_passes_the_threshold(
        model, opened, threshold, coefficients):
    with opened(type="teacache", threshold=threshold, coefficients=coefficients) as run:
        first, = flow_of(model, [model.spatial_blocks[0]])
    before, total, by_hand = None, 0.0, []
    for step, ((x, t, *_), _) in enumerate(first):
        shift, scale = (model.spatial_blocks[0].scale_shift_table + t)[:, 0, :2, None].unbind(dim=1)
        now = torch.nn.functional.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        if before is not None:
            c = ((now - before).abs().sum() / before.abs().sum()).item()
            total += max(0.0, sum(a * c**power for power, a in enumerate(reversed(coefficients))))
        if step in (0, STEPS - 1) or total >= threshold:
            by_hand, total = [*by_hand, step], 0.0
        before = now
    assert run.trace[0].computed_steps == by_hand and 3 < len(by_hand) < STEPS


@pytest.mark.parametrize("values", [
    {"type": "teacache", "coefficients": [0.0]}, {"type": "first_block_cache"}], ids=lambda v: v["type"])
def test_where_nothing_changes_a_threshold_of_0_still_reuses_nothing(model, opened, values):
    ones = torch.ones(2)

    def call() -> None:
        model(torch.ones(2, 4, 3, 6, 4), 500 * ones, torch.ones(2, 1, 8, 16), fps=24 * ones, height=48 * ones,
              width=32 * ones)

    with torch.no_grad():
        for threshold, computed in ((0, list(range(STEPS))), (1e-6, [0, STEPS - 1])):
            with opened(**values, threshold=threshold) as run:
                for _ in range(STEPS):
                    call()
            if values["type"] == "first_block_cache" and threshold:
                computed = [0]  # it does not know the last step
            assert run.trace[0].computed_steps == computed


def test_a_step_that_teacache_reuses_adds_the_stored_residual_and_computes_no_block(model, opened):
    settings = dict(type="teacache", threshold=9.0, coefficients=[4.0, 0.0])
    with opened(**settings) as run:
        (first, last) = flow_of(model, [model.spatial_blocks[0], model.temporal_blocks[1]])
    steps = run.trace[0].computed_steps
    assert steps[0] == 0 and 2 < len(steps) < STEPS
    for step in range(STEPS):
        x, out = first[step][0][0], last[step][1]
        if step in steps:
            residual = out - x
        assert step in steps or torch.equal(out, x + residual)
    with opened(**settings) as run:
        paths = [f"{kind}_blocks.{i}.mlp" for kind in ("spatial", "temporal") for i in range(2)]
        assert steps_of(model, run, *paths) == [steps] * BLOCKS


def test_at_a_reused_step_the_first_block_cache_runs_the_first_block_and_no_other(model, opened):
    with opened(type="first_block_cache", threshold=0.8) as run:
        first, second, _, last = flow_of(model, stack_of(model))
    by_hand, before = [], None
    for step, ((x, *_), out) in enumerate(first):
        residual = out - x
        change = 1.0 if before is None else ((residual - before).abs().sum() / before.abs().sum()).item()
        if change >= 0.8:
            by_hand, before = [*by_hand, step], residual
            others = last[step][1] - second[step][0][0]
        else:
            assert torch.equal(last[step][1], second[step][0][0] + others)
    assert run.trace[0].computed_steps == by_hand and 1 < len(by_hand) < STEPS
    assert run.partly == [step for step in range(STEPS) if step not in by_hand]
    with opened(type="first_block_cache", threshold=0.8) as run:
        paths = [f"{kind}_blocks.{i}.mlp" for i in range(2) for kind in ("spatial", "temporal")]
        assert steps_of(model, run, *paths) == [list(range(STEPS)), by_hand, by_hand, by_hand]


def test_pab_broadcasts_each_attention_for_its_own_range_and_only_inside_the_window(model, opened):
    paths = [f"{block}.{part}" for block in ("spatial_blocks.1", "temporal_blocks.1")
             for part in ("attn.qkv", "cross_attn.q_linear", "mlp")]
    after = [7, 8, 9, 10, 11]  # timesteps 417 and below; 917 is step 1
    spatial, temporal, cross = [0, 2, 4, 6, *after], [0, 4, *after], [0, 6, *after]
    with opened(type="pab") as run:
        every = list(range(STEPS))
        assert steps_of(model, run, *paths) == [spatial, cross, every, temporal, cross, every]
    assert run.trace[0].computed_steps == [0, *after] and run.partly == [1, 2, 3, 4, 5, 6]
    with opened(type="pab", spatial=3, temporal=5, cross=7, window=[600, 800]) as run:  # steps 3 and 4
        others = [0, 1, 2, *range(5, STEPS)]
        spatial = [0, 1, 2, 3, *range(5, STEPS)]
        assert steps_of(model, run, *paths) == [spatial, others, every, others, others, every]
    assert run.partly == [3, 4]


def test_what_pab_broadcasts_is_the_output_of_the_last_computed_step(model, opened):
    attentions = [model.spatial_blocks[0].attn, model.temporal_blocks[1].attn,
                  model.temporal_blocks[0].cross_attn]
    with opened(type="pab"):
        spatial, temporal, cross = ([out for _, out in own] for own in flow_of(model, attentions))
    for outputs, steps in ((spatial, 2), (temporal, 4), (cross, 6)):
        for step in range(1, 7):
            assert torch.equal(outputs[step], outputs[step - 1]) == (step % steps > 0)


def test_after_tgates_gate_unconditional_rows_do_not_run_and_guidance_changes_nothing(model, opened):
    with opened(type="tgate", gate=8) as run:
        block, whole = flow_of(model, [model.temporal_blocks[1], model])
    assert [len(args[0]) for args, _ in block] == [ROWS] * 8 + [ROWS // 2] * 4
    for step, (_, out) in enumerate(whole):
        conditional, unconditional = out.chunk(2)
        assert len(out) == ROWS and torch.equal(conditional, unconditional) == (step >= 8)
    assert run.partly == [4, 5, 8, 9, 10, 11]  # self attention at 0 to 3, 6, and 7, before the gate


def test_tgates_cross_attention_is_the_mean_of_both_rows_at_the_gate(model, opened):
    with opened(type="tgate", gate=8):
        cross, = flow_of(model, [model.temporal_blocks[1].cross_attn])
    mean = (cross[7][1][:2] + cross[7][1][2:]) / 2
    assert all(torch.equal(out, mean) for _, out in cross[8:])
    with opened(type="tgate", gate=8) as run:
        assert steps_of(model, run, "temporal_blocks.1.cross_attn.q_linear") == [list(range(8))]


def test_tgates_self_attention_has_its_interval_in_each_phase(model, opened):
    settings = dict(type="tgate", gate=8, sp_interval=3, warm_up=1, fi_interval=3)
    paths = [f"{kind}_blocks.0.attn.qkv" for kind in ("spatial", "temporal")]
    with opened(**settings) as run:
        assert steps_of(model, run, *paths) == [[0, 1, 3, 6, 7, 9]] * 2  # 7: the last before the gate
    with opened(**settings):
        spatial, temporal = ([out for _, out in own] for own in flow_of(
            model, [model.spatial_blocks[0].attn, model.temporal_blocks[0].attn]))
    for outputs in (spatial, temporal):
        assert torch.equal(outputs[2], outputs[1]) and torch.equal(outputs[5], outputs[3])
        assert torch.equal(outputs[8], outputs[7][: len(outputs[7]) // 2])  # the conditional rows'
        assert torch.equal(outputs[11], outputs[9]) and not torch.equal(outputs[9], outputs[8])


def test_tgate_needs_unconditional_rows(model, opened):
    with pytest.raises(ValueError, match="batch of 3; allowed: conditional and as many unconditional rows"), \
            opened(type="tgate", gate=8), torch.no_grad():
        ones = torch.ones(3)
        model(torch.zeros(3, 4, 3, 6, 4), ones, torch.zeros(3, 1, 8, 16), fps=ones, height=48 * ones,
              width=32 * ones)


def test_delta_dit_skips_rear_blocks_before_the_gate_and_front_blocks_after_it(model, opened):
    settings = dict(type="delta_dit", gate=5, blocks=3, interval=3)
    early, late = [0, 3], [5, 8, 11]
    paths = [f"{kind}_blocks.{i}.mlp" for i in range(2) for kind in ("spatial", "temporal")]
    with opened(**settings) as run:
        every = list(range(STEPS))
        front, rear = [0, 1, 2, 3, 4, *late], [*early, *range(5, STEPS)]
        both = [*early, *late]  # of the two blocks that are front and rear
        assert steps_of(model, run, *paths) == [front, both, both, rear]
    assert run.trace[0].computed_steps == both
    assert run.partly == [step for step in every if step not in both]


def test_what_delta_dit_adds_is_output_minus_input_of_the_blocks_at_the_last_computed_step(model, opened):
    with opened(type="delta_dit", gate=6, blocks=2, interval=3) as run:
        flows = flow_of(model, stack_of(model))
    for step in range(STEPS):
        begin, end = (2, 3) if step < 6 else (0, 1)
        x, out = flows[begin][step][0][0], flows[end][step][1]
        if step in run.trace[0].computed_steps:
            delta = out - x
        else:
            assert torch.equal(out, x + delta)


@pytest.mark.parametrize("values, residuals", [
    (REUSING[0], 2),                                           # the stack's, and the modulated input
    (REUSING[1], 2),                                           # the other blocks', and the first one's
    (REUSING[2], 2 * BLOCKS),                                  # self and cross attention
    ({"type": "pab", "cross": 1}, BLOCKS),
    ({"type": "tgate", "gate": 8}, BLOCKS),                    # self attention, as long as it is reused
    ({"type": "tgate", "gate": 8, "sp_interval": 1}, BLOCKS / 2),  # cross attention of half the rows
    ({"type": "tgate", "gate": 8, "sp_interval": 1, "fi_interval": 5}, BLOCKS),  # and self attention of half
    (REUSING[4], 1),
])
def test_cache_bytes_by_hand(model, opened, values, residuals):
    with opened(**values) as run:
        sample(model)
    assert run.cache_bytes == residuals * RESIDUAL


def test_an_old_residual_is_freed_before_the_new_one_is_computed(model, opened):
    held = []
    with opened(**REUSING[0]) as run:
        hook = model.temporal_blocks[0].mlp.register_forward_hook(lambda *_: held.append(run.span.stored))
        sample(model)
    hook.remove()
    assert held == [None] * len(run.trace[0].computed_steps)


@pytest.mark.parametrize("values, error, message", [
    ({"type": "tecache"}, ValueError, "rival: type='tecache'; allowed: teacache"),
    ({"type": 3}, ValueError, "type=3; allowed: teacache, first_block_cache, pab, tgate, delta_dit"),
    ({"threshold": 3}, ValueError, "rival: type=None; allowed: teacache"),
    ({"type": "pab", "spacial": 3}, TypeError, "rival pab: unknown key 'spacial'; allowed: spatial"),
    ({"type": "tgate", "warm_up": 3}, TypeError, "rival tgate: gate is missing; allowed: all of gate"),
    ({"type": "delta_dit", "gate": 3}, TypeError, "blocks is missing; allowed: all of gate, blocks"),
    ({"type": "teacache", "threshold": float("nan")}, ValueError, "teacache.threshold=nan; allowed"),
    ({"type": "teacache", "coefficients": []}, ValueError, r"teacache.coefficients=\(\); allowed: numbers"),
    ({"type": "teacache", "coefficients": 3}, ValueError, "coefficients=3; allowed: a list"),
    ({"type": "first_block_cache", "threshold": "a"}, ValueError, "first_block_cache.threshold='a'; allowed"),
    ({"type": "pab", "cross": 0}, ValueError, "pab.cross=0; allowed: whole numbers from 1"),
    ({"type": "pab", "window": [9, 4]}, ValueError, r"pab.window=\(9, 4\); allowed: two timesteps"),
    ({"type": "pab", "window": [9]}, ValueError, r"pab.window=\(9,\); allowed: two timesteps"),
    ({"type": "tgate", "gate": 0}, ValueError, "tgate.gate=0; allowed: whole numbers from 1"),
    ({"type": "tgate", "gate": 13}, ValueError, "tgate.gate=13; allowed: whole numbers from 1 to 12"),
    ({"type": "tgate", "gate": 3, "warm_up": -1}, ValueError, "tgate.warm_up=-1; allowed: whole numbers"),
    ({"type": "delta_dit", "gate": 13, "blocks": 1}, ValueError, "delta_dit.gate=13; .* from 0 to 12"),
    ({"type": "delta_dit", "gate": 3, "blocks": 4}, ValueError, "delta_dit.blocks=4; .* from 1 to 3"),
])
def test_bad_settings_are_refused_with_the_keys_name(model, opened, values, error, message):
    with pytest.raises(error, match=message), opened(**values):
        pass
    assert is_plain(model)


@each_rival
def test_settings_are_read_back_as_they_were_written(rivals, values):
    settings = rivals.read_rival(values)
    written = json.loads(json.dumps(rivals.rival_values(settings)))
    assert written["type"] == values["type"] and rivals.read_rival(written) == settings


def test_teacaches_polynomial_is_fitted_to_uncached_changes_of_input_and_velocity(rivals, model):
    fit = importlib.import_module("rivals.teacache_fit")
    with fit.recorded_changes(model) as changes:
        block, whole = flow_of(model, [model.spatial_blocks[0].attn, model])
    assert is_plain(model)
    outputs = [out[:, :4] for _, out in whole]  # the other channels are no velocity
    inputs = [args[0] for args, _ in block]  # attention gets the modulated input
    for step, pair in enumerate(changes.pairs):
        for found, tensors in zip(pair, (inputs, outputs), strict=True):
            before, now = tensors[step], tensors[step + 1]
            assert found == pytest.approx(((now - before).abs().sum() / before.abs().sum()).item())
    assert len(changes.pairs) == STEPS - 1
    polynomial = (4.0, -3.0, 2.0, 0.5, 0.1)
    points = [(x / 10, sum(a * (x / 10) ** power for power, a in enumerate(reversed(polynomial))))
              for x in range(7)]
    assert fit.fitted(points) == pytest.approx(polynomial, rel=1e-6)
    with pytest.raises(ValueError, match="4 changes from step to step; allowed: 5 or more"):
        fit.fitted(points[:4])


def tried_so(tune: ModuleType, settings: object, psnr: list[float], computed: list[int],
             speed_up: float) -> object:
    return tune.Tried(settings, tune.Outcome(np.array(psnr), np.array(computed), np.array([speed_up])))


class Scripted:
    """A bench on which a threshold of t is 1 + 5 t times as fast, 3 times at most."""

    def __init__(self, tune: ModuleType) -> None:
        self.tune, self.asked = tune, []

    def tried(self, settings: object) -> object:
        self.asked.append(settings)
        speed = min(3.0, 1 + 5 * settings.threshold)
        return tried_so(self.tune, settings, [40 - speed, 42 - speed], [10, 12], speed)


def test_the_smallest_threshold_that_is_fast_enough_is_found(rivals):
    tune = importlib.import_module("rivals.tuning")
    bench = Scripted(tune)
    found = tune.least_threshold(bench, lambda value: rivals.FirstBlockCache(threshold=value), 2.0)
    assert 0.2 <= found.settings.threshold <= 0.2 * tune.PRECISION and len(bench.asked) < 13
    few = tune.least_threshold(bench, lambda value: rivals.FirstBlockCache(threshold=value), 1.01)
    assert 0.002 <= few.settings.threshold <= 0.002 * tune.PRECISION  # far below the first one tried
    missed = tune.least_threshold(bench, lambda value: rivals.FirstBlockCache(threshold=value), 3.5)
    assert missed.speed_up == 3.0


def test_of_a_grid_the_best_that_is_fast_enough_is_taken_or_the_fastest(rivals):
    tune = importlib.import_module("rivals.tuning")
    grid = [rivals.FirstBlockCache(threshold=value) for value in (0.1, 0.3, 0.2)]
    assert tune.best_of(Scripted(tune), grid, 1.9).settings.threshold == 0.2
    assert tune.best_of(Scripted(tune), grid, 2.9).settings.threshold == 0.3


def test_every_grid_has_the_published_settings_and_fits_any_model(rivals):
    tune = importlib.import_module("rivals.tuning")
    assert {rivals.PAB(), rivals.PAB(spatial=5, temporal=7, cross=9)} <= set(tune.pab_grid())
    assert rivals.TGate(gate=15) in tune.tgate_grid(25)
    assert rivals.TGate(gate=12, sp_interval=2) in tune.tgate_grid(30)
    for settings in (*tune.tgate_grid(1), *tune.delta_dit_grid(1, 2)):
        settings.start(1)
    assert {settings.blocks for settings in tune.delta_dit_grid(30, 8)} == {4, 7}


def test_tuned_settings_are_written_as_read_rival_reads_them(rivals, tiny, tmp_path, monkeypatch, capsys):
    tune, out = importlib.import_module("tune_rivals"), tmp_path / "tuned"

    monkeypatch.setattr(sys, "argv", [
        "tune_rivals.py", str(tiny / "sample.py"), "--target-speedup", "1.2", "1000", "--prompts", "3",
        "--verify", "2", "--rivals", "teacache", "delta_dit", "--out", str(out)])
    assert tune.main() == 0
    assert {file.name for file in out.iterdir()} == {
        f"{name}_{target}x.json" for name in ("teacache", "delta_dit") for target in ("1.2", "1000")}
    read = {file.stem: json.loads(file.read_text()) for file in out.iterdir()}
    for name, written in read.items():
        settings, measured = rivals.read_rival(written["settings"]), written["measured"]
        assert name.startswith(settings.name)
        assert written["reached"] == (measured["speed_up"] >= written["target_speedup"])
        assert 0 < measured["psnr"] <= 100 and measured["psnr_interval"] >= 0
        assert 1 <= measured["computed_steps"] <= 6
        assert written["prompts"] == {"learnt_on": 3, "tried_on": 2, "seed": 1}
    assert not read["teacache_1000x"]["reached"]
    assert "teacache_1000x.json, not fast enough: {'type': 'teacache', " in capsys.readouterr().out
    assert len(read["teacache_1.2x"]["settings"]["coefficients"]) == 5


def test_the_offline_schedule_has_the_most_steps_that_are_fast_enough(rivals, tiny, tmp_path, monkeypatch):
    tune, choice = importlib.import_module("tune_rivals"), importlib.import_module("cache_choice")
    tuning, asked = importlib.import_module("rivals.tuning"), []

    def tried(bench, settings: AdaCacheConfig):
        asked.append(len(settings.schedule.steps))
        return tried_so(tuning, settings, [40.0], [asked[-1]], 6 / (asked[-1] + 0.5))

    monkeypatch.setattr(tuning.Bench, "tried", tried)
    monkeypatch.setattr(sys, "argv", [
        "tune_rivals.py", str(tiny / "sample.py"), "--target-speedup", "1.5", "--prompts", "2",
        "--rivals", "offline_schedule", "--out", str(tmp_path), "--cfg-options", "seed=8"])
    assert tune.main() == 0 and asked == [4, 3]
    settings = choice.read_profile(str(tmp_path / "offline_schedule_1.5x.json")).resolved()
    assert len(settings.schedule.steps) == 3 and settings.schedule.steps[0] == 0 and settings.forecast == 0


@pytest.mark.parametrize("flags, message", [
    (["--target-speedup", "1.0"], "target_speedup=1; allowed: numbers above 1"),
    (["--target-speedup", "2", "--prompts", "1"], "prompts=1, verify=8; allowed: 2 or more"),
    (["--target-speedup", "2", "--prompt-seed", "0"], "prompt_seed=0; allowed: any but 0"),
    (["--target-speedup", "2", "--rivals", "pub"], "rivals='pub'; allowed: teacache, first_block_cache"),
    (["--target-speedup", "2", "--out", __file__], "test_rivals.py'; allowed: a folder"),
])
def test_bad_flags_are_refused_in_one_line(rivals, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["tune_rivals.py", "none.py", "--out", str(tmp_path), *flags])
    assert importlib.import_module("tune_rivals").main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
