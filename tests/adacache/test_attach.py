"""What the `with` promises about the model, inside and after."""
import gc
from dataclasses import replace
from threading import Barrier, Thread

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from toy_dit import ToyBlock, ToyDiT, noise, sample, toy

from adacache import AdaCacheConfig, FixedSchedule, MoRegConfig, adaptive_cache
from adacache.residual import ResidualCache

STEPS = 10
PROBES = ["blocks.1.attn"]
REUSING = [(10.0, 3)]       # whatever the distance, every third step
COMPUTING = [(10.0, 1)]
EVERY_THIRD = [0, 1, 4, 7, 8, 9]


def config(**settings) -> AdaCacheConfig:
    return AdaCacheConfig(**{"codebook": REUSING, "probes": PROBES, **settings})


def is_plain(model: ToyDiT) -> bool:
    slots = [m.residual_cache for m in model.modules() if hasattr(m, "residual_cache")]
    return not any(slots) and not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_a_codebook_of_only_1s_is_the_plain_model_bitwise(granularity):
    model = toy()
    plain = sample(model, STEPS)
    with adaptive_cache(model, config(codebook=COMPUTING, granularity=granularity), STEPS):
        cached = sample(model, STEPS)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_outside_the_with_the_model_is_the_plain_model(granularity):
    model = toy()
    plain, names = sample(model, STEPS), set(model.state_dict())
    with adaptive_cache(model, config(granularity=granularity), STEPS):
        assert set(model.state_dict()) == names
        assert not torch.equal(sample(model, STEPS), plain)
    assert is_plain(model)
    assert torch.equal(sample(model, STEPS), plain)


def test_on_a_reused_step_no_block_runs():
    model = toy()
    with adaptive_cache(model, config(), STEPS) as session:
        sample(model, STEPS)
    assert session.trace[0].computed_steps == EVERY_THIRD
    assert model.runs_of_blocks == len(EVERY_THIRD)


def test_reuse_adds_the_stack_s_residual_and_each_block_s_in_its_order():
    model, x = toy(), noise()
    ones, others = torch.full((2,), 1.0), noise(seed=7)
    with torch.no_grad():
        residual = model(x, ones) - x
        with adaptive_cache(model, config(schedule=FixedSchedule((0,), 2)), 2):
            model(x, ones)
            assert torch.equal(model(others, ones), others + residual)
        with adaptive_cache(model, config(schedule=FixedSchedule((0,), 2), granularity="block"), 2):
            model(x, ones)
            stored = [block.residual_cache.residuals for block in model.blocks]
            expected = others
            for block in stored:
                expected = (expected + block["attn"]) + block["cross_mlp"]
            assert torch.equal(model(others, ones), expected)


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_one_tensor_or_all_of_them_decide_alike_and_sample_alike(granularity):
    model = toy()
    with adaptive_cache(model, config(codebook=[(0.13, 3), (0.15, 2), (1.0, 1)]), STEPS) as stack:
        by_stack = sample(model, STEPS)
    with adaptive_cache(model, config(codebook=[(0.13, 3), (0.15, 2), (1.0, 1)], granularity="block"),
                        STEPS) as block:
        by_block = sample(model, STEPS)
    assert stack.trace[0].computed_steps == block.trace[0].computed_steps
    assert 4 < len(stack.trace[0].computed_steps) < STEPS
    torch.testing.assert_close(by_stack, by_block)


@pytest.mark.parametrize("granularity", ["stack", "block"])
@pytest.mark.parametrize("where", ["sampler", "block"])
def test_a_stopped_run_leaves_nothing_behind(granularity, where):
    model = toy()
    plain = sample(model, STEPS)

    def fail(*_) -> None:
        if where == "block" and session.step == 8:
            raise KeyboardInterrupt

    hook = model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), \
            adaptive_cache(model, config(granularity=granularity), STEPS) as session:
        sample(model, 5 if where == "sampler" else STEPS)
        raise KeyboardInterrupt
    hook.remove()
    assert session.trace[0].computed_steps == EVERY_THIRD[: 3 if where == "sampler" else 4]
    assert is_plain(model)
    assert torch.equal(sample(model, STEPS), plain)
    with adaptive_cache(model, config(granularity=granularity), STEPS) as session:
        after = sample(model, STEPS)
    other = toy()
    with adaptive_cache(other, config(granularity=granularity), STEPS) as expected:
        fresh = sample(other, STEPS)
    assert torch.equal(after, fresh)
    assert session.trace == expected.trace


def test_a_step_that_failed_is_not_run_again_in_the_same_with():
    model = toy()
    with pytest.raises(RuntimeError, match="step 1 began and never ended"), \
            adaptive_cache(model, config(), STEPS):
        sample(model, 1)
        with pytest.raises(TypeError):
            model(noise(), "no timestep")
        sample(model, 8)


def test_a_second_with_inside_one_is_an_error_and_spoils_nothing():
    model = toy()
    with adaptive_cache(model, config(), STEPS) as session:
        with (pytest.raises(RuntimeError, match="inside a `with adaptive_cache"),
              adaptive_cache(model, config(), STEPS)):
            pass
        sample(model, STEPS)
    assert session.trace[0].computed_steps == EVERY_THIRD
    assert is_plain(model)


def test_a_second_run_with_other_steps_batch_size_and_dtype_is_a_run_of_its_own():
    model = toy()
    with adaptive_cache(model, config(), STEPS):
        sample(model, STEPS)
    other = toy()
    for each in (model, other):
        each.double()
    results = []
    for each in (model, other):
        with adaptive_cache(each, config(), 7) as session:
            results.append((sample(each, 7, noise(rows=4, tokens=4).double()), session.trace))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


@pytest.fixture
def alive(monkeypatch):
    """How many of all residuals that were ever saved still take memory, by their storages."""
    saved, save = [], ResidualCache.save

    def recording(cache, S, **residuals):
        saved.extend(StorageWeakRef(r.untyped_storage()) for r in residuals.values())
        save(cache, S, **residuals)

    monkeypatch.setattr(ResidualCache, "save", recording)
    return lambda: sum(not ref.expired() for ref in saved)


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_the_cache_is_freed_on_leaving(granularity, alive):
    model = toy()
    gc.disable()  # freed at once, not when the collector comes by
    try:
        with adaptive_cache(model, config(granularity=granularity), STEPS) as session:
            sample(model, STEPS)
            assert alive() == (2 if granularity == "stack" else 6)
        assert alive() == 0
    finally:
        gc.enable()
    assert session.trace[0].computed_steps == EVERY_THIRD


def test_the_stack_cache_holds_two_residuals_at_most():
    residual = noise().nbytes
    model = toy(depth=5)
    sizes = {}
    for granularity, schedule in (("stack", None), ("stack", FixedSchedule((0, 3), STEPS)), ("block", None)):
        with adaptive_cache(model, config(granularity=granularity, schedule=schedule), STEPS) as session:
            sample(model, STEPS)
        sizes[granularity, schedule is None] = session.cache_bytes
    assert sizes == {("stack", True): 2 * residual, ("stack", False): residual,
                     ("block", True): 10 * residual}


def test_never_more_than_that_is_alive_while_a_step_is_computed(alive):
    model, counts = toy(depth=5), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: counts.append(alive()))
    with adaptive_cache(model, config(), STEPS):
        sample(model, STEPS)
    # while blocks run there is the probed one, once it has been computed, and no stack residual yet
    assert set(counts) == {0, 1} and counts[:5] == [0, 1, 1, 1, 1] and set(counts[5:]) == {1}


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_a_module_that_forgets_to_save_is_named(granularity, monkeypatch):
    model = toy()
    forgetful = model if granularity == "stack" else model.blocks[2]
    name = "the model itself" if granularity == "stack" else "blocks.2"
    monkeypatch.setattr(ResidualCache, "save", lambda cache, S, _save=ResidualCache.save, **residuals: (
        None if cache is forgetful.residual_cache else _save(cache, S, **residuals)))
    with pytest.raises(RuntimeError, match=f"{name} has a slot, but its forward saved no residual"), \
            adaptive_cache(model, config(granularity=granularity), STEPS):
        sample(model, STEPS)


def test_another_batch_in_the_middle_of_a_run_is_an_error():
    model = toy()
    for other, said in ((noise(rows=4), "a batch of 4 rows after one of 2"),
                        (noise(tokens=4), r"\[2, 6, 8\].*\[2, 4, 8\]")):
        with pytest.raises(RuntimeError, match=f"{said}; allowed: one batch and size"), \
                adaptive_cache(model, config(schedule=FixedSchedule((0,), 2)), 2):
            model(noise(), torch.ones(2))
            model(other, torch.ones(len(other)))


def test_no_graph_is_kept_alive_where_gradients_are_on():
    model = toy()
    with adaptive_cache(model, config(schedule=FixedSchedule((0,), 2)), 2):
        model(noise(), torch.ones(2))
        assert not model.residual_cache.residuals["stack"].requires_grad
        model(noise(), torch.ones(2))


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_reused_step_is_one_addition():
    model, x, t = toy(), noise(), torch.ones(2)
    with torch.no_grad(), adaptive_cache(model, config(), STEPS):
        for step in range(STEPS):
            with Operations() as operations:
                model(x, t)
            if step not in EVERY_THIRD:
                assert operations.names == ["aten.add.Tensor"]


def test_a_replay_waits_for_no_device():
    # on the meta device there is no number to wait for: a decision cannot be taken there, a replay can
    model, x = toy().to("meta"), noise().to("meta")
    recorded = {"num_steps": STEPS, "computed_steps": [0, 2, 5, 8], "changed_steps": [5], "forecast": 1}
    with adaptive_cache(model, config(schedule=FixedSchedule.from_json(recorded)), STEPS) as session:
        sample(model, STEPS, x, [torch.ones(2, 3, device="meta")] * STEPS)
    assert session.trace[0].computed_steps == [0, 2, 5, 8]
    with adaptive_cache(model, config(schedule=FixedSchedule.uniform(5, STEPS)), STEPS) as session:
        sample(model, STEPS, x)
    assert session.trace[0].computed_steps == [0, 2, 4, 6, 8]
    assert session.trace[0].decisions == []
    with pytest.raises((RuntimeError, NotImplementedError)), adaptive_cache(model, config(), STEPS):
        sample(model, STEPS, x)


def test_a_recorded_run_is_replayed_exactly():
    model = toy()
    with adaptive_cache(model, config(codebook=[(0.13, 3), (0.15, 2), (1.0, 1)]), STEPS) as session:
        recorded = sample(model, STEPS)
    replay = FixedSchedule.from_json(session.trace.to_json())
    with adaptive_cache(model, config(schedule=replay), STEPS):
        assert torch.equal(sample(model, STEPS), recorded)


def test_a_batch_of_different_schedules_is_replayed_video_by_video():
    model, x = toy(), noise(rows=4) * torch.tensor([0.3, 3.0, 0.3, 3.0])[:, None, None]
    levels = [(0.13, 3), (0.15, 2), (1.0, 1)]
    with adaptive_cache(model, config(codebook=levels, forecast=2), STEPS) as session:
        recorded = sample(model, STEPS, x)
    assert session.trace[0].computed_steps != session.trace[1].computed_steps, "the test shows nothing"
    replay = FixedSchedule.from_json(session.trace.to_json())
    with adaptive_cache(model, config(schedule=replay), STEPS) as again:
        assert torch.equal(sample(model, STEPS, x), recorded)
    assert [v.computed_steps for v in again.trace] == [v.computed_steps for v in session.trace]
    with pytest.raises(ValueError, match="schedule of 2 videos in a run that needs 1"), \
            adaptive_cache(model, config(schedule=replay), STEPS):
        sample(model, STEPS)


def test_calibrated_settings_refuse_other_runs_at_the_door_or_at_the_first_call():
    model = toy()
    with adaptive_cache(model, config(), STEPS) as session:
        sample(model, STEPS)
    signature = session.trace.signature.to_json()
    made = AdaCacheConfig.from_dict({"probes": ["blocks.1.attn"], "signature": signature})
    with adaptive_cache(model, made, STEPS):
        sample(model, STEPS)
    with pytest.raises(ValueError, match=f"settings of a run with num_steps={STEPS} in one with"), \
            adaptive_cache(model, made, STEPS + 1):
        pytest.fail("it opened")
    with pytest.raises(ValueError, match="settings of a run with input_shape="), \
            adaptive_cache(model, made, STEPS):
        sample(model, STEPS, noise(tokens=4))
    with adaptive_cache(model, replace(made, any_signature=True), STEPS):
        sample(model, STEPS, noise(tokens=4))


def test_a_replay_refuses_a_run_of_another_signature_unless_told_otherwise():
    model, wider = toy(), toy(depth=4)
    with adaptive_cache(model, config(), STEPS) as session:
        sample(model, STEPS)
    replay = FixedSchedule.from_json(session.trace.to_json())
    for other, x, said in ((wider, noise(), "model='ToyDiT-.*' in one with 'ToyDiT-"),
                           (model, noise(tokens=4), r"input_shape=\(6, 8\) in one with \(4, 8\)")):
        with pytest.raises(ValueError, match=f"a run with {said}.*; allowed: the same, or any_signature"), \
                adaptive_cache(other, config(schedule=replay), STEPS):
            with pytest.raises(ValueError, match="a run with"):
                sample(other, STEPS, x)
            sample(other, STEPS, x)  # who catches it is refused again
        with adaptive_cache(other, config(schedule=replay, any_signature=True), STEPS) as again:
            sample(other, STEPS, x)
        assert again.trace[0].computed_steps == session.trace[0].computed_steps
    with adaptive_cache(model.double(), config(schedule=replay), STEPS):
        sample(model, STEPS, noise().double())  # weights and dtype may differ


@pytest.mark.parametrize("changes, computed", [
    ((), EVERY_THIRD),
    ((5,), [0, 1, 4, 5, 8, 9]),             # step 5 would have been reused; from it the count starts again
    ((4,), EVERY_THIRD),                    # step 4 is computed anyway
    ((2, 3), [0, 1, 2, 3, 6, 8, 9]),
])
def test_a_change_of_the_frame_mask_makes_a_step_a_computed_one(changes, computed):
    mask, masks = torch.ones(2, 3, dtype=torch.bool), []
    for step in range(STEPS):
        if step in changes:
            mask = mask.clone()
            mask[0, len(masks) % 3] ^= True
        masks.append(mask.clone())
    model = toy()
    with adaptive_cache(model, config(), STEPS) as session:
        sample(model, STEPS, masks=masks)
    assert session.trace[0].computed_steps == computed
    with adaptive_cache(model, config(recompute_on=()), STEPS) as session:  # as published
        sample(model, STEPS, masks=masks)
    assert session.trace[0].computed_steps == EVERY_THIRD


def masks_that_change_at(*steps: int) -> list[torch.Tensor]:
    """x_mask of each step, [2, 3]."""
    return [torch.full((2, 3), float(sum(step >= change for change in steps))) for step in range(STEPS)]


def test_a_replay_foretells_nothing_across_a_change_of_the_frame_mask_either():
    model, masks, every_second = toy(), masks_that_change_at(5), config(codebook=[(10.0, 2)], forecast=2)
    with adaptive_cache(model, every_second, STEPS) as session:
        recorded = sample(model, STEPS, masks=masks)
    assert session.trace[0].changed_steps == [5]
    record = session.trace.to_json()
    with adaptive_cache(model, config(schedule=FixedSchedule.from_json(record)), STEPS) as again:
        assert torch.equal(sample(model, STEPS, masks=masks), recorded)
    assert again.trace.to_json()["videos"][0]["changed_steps"] == [5]
    del record["videos"][0]["changed_steps"]  # as of an earlier version: the mask itself tells
    with adaptive_cache(model, config(schedule=FixedSchedule.from_json(record)), STEPS):
        assert torch.equal(sample(model, STEPS, masks=masks), recorded)


def test_a_schedule_that_knows_nothing_of_frame_masks_is_computed_where_they_change_too():
    schedule = FixedSchedule((0, 1, 2, 4, 8), STEPS, forecast=1)
    model = toy()
    with adaptive_cache(model, config(schedule=schedule), STEPS) as session:
        sample(model, STEPS, masks=masks_that_change_at(6))
    assert session.trace[0].computed_steps == [0, 1, 2, 4, 6, 8]
    with adaptive_cache(model, config(schedule=schedule, recompute_on=()), STEPS) as session:
        sample(model, STEPS, masks=masks_that_change_at(6))
    assert session.trace[0].computed_steps == [0, 1, 2, 4, 8]


def test_a_mask_written_in_place_and_one_that_comes_or_goes_are_changes():
    model, x, t = toy(), noise(), torch.ones(2)
    mask = torch.ones(2, 3)
    with torch.no_grad(), adaptive_cache(model, config(codebook=[(9.0, 9)]), STEPS) as session:
        for step in range(STEPS):
            if step == 3:
                mask[0, 0] = 0
            model(x, t, x_mask=None if step >= 5 else mask)
    assert session.trace[0].computed_steps == [0, 1, 3, 5, 8, 9]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_replay_on_cuda_never_waits_for_the_device():
    model, x = toy().cuda(), noise(rows=4).cuda()
    replay = FixedSchedule([[0, 1, 3, 5], [0, 2, 3, 8]], STEPS, forecast=2)
    with adaptive_cache(model, config(schedule=replay), STEPS):
        torch.cuda.set_sync_debug_mode("error")
        try:
            sample(model, STEPS, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_forecasts_and_parts_of_a_batch_too(dtype):
    model, x = toy().to(dtype), (noise(rows=6) * torch.linspace(0.3, 3, 3).repeat(2)[:, None, None]).to(dtype)
    with adaptive_cache(model, config(codebook=[(0.1, 4), (0.12, 3), (9.0, 1)], forecast=2, guard=0.1),
                        STEPS) as session:
        out = sample(model, STEPS, x)
    assert out.dtype == dtype and out.isfinite().all()
    assert session.cache_bytes == 4 * x.nbytes
    assert len({tuple(video.computed_steps) for video in session.trace}) > 1, "the test shows nothing"
    with torch.autocast("cpu", torch.bfloat16), adaptive_cache(model.float(), config(forecast=2), STEPS):
        assert sample(model, STEPS, x.float()).isfinite().all()


def test_two_models_in_two_threads_do_not_meet():
    alone = {}
    for seed, steps in ((1, 8), (2, 12)):
        model = toy(seed)
        with adaptive_cache(model, config(), steps) as session:
            alone[seed] = (sample(model, steps), session.trace)
    barrier, together = Barrier(2, timeout=30), {}  # a thread that fails lets the other go on
    models = {seed: toy(seed) for seed in alone}  # made before: seeding is global

    def work(seed: int, steps: int) -> None:
        with adaptive_cache(models[seed], config(), steps) as session:
            barrier.wait()
            together[seed] = (sample(models[seed], steps), session.trace)

    threads = [Thread(target=work, args=arguments) for arguments in ((1, 8), (2, 12))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(together) == set(alone)
    for seed, (latents, trace) in alone.items():
        assert torch.equal(together[seed][0], latents) and together[seed][1] == trace


def test_the_number_of_steps_must_be_the_sampler_s():
    model = toy()
    with pytest.raises(RuntimeError, match="num_steps=5, but the model is called once more"), \
            adaptive_cache(model, config(), 5) as session:
        sample(model, 6)
    assert session.trace[0].computed_steps == [0, 1, 3, 4]
    with pytest.raises(RuntimeError, match="num_steps=5, but the model was called 4 times"), \
            adaptive_cache(model, config(), 5):
        sample(model, 4)
    assert is_plain(model)


@pytest.mark.parametrize("settings, num_steps, said", [
    ({"probes": ["blocks.3.attn"]}, 5,
     "no block blocks.3; blocks with a cache slot: blocks.0, blocks.1, blocks.2"),
    ({"probes": ["attn"]}, 5, "probe 'attn': no block attn; blocks with a cache slot: blocks.0"),
    ({"probes": ["blocks.1.mlp"]}, 5, "probe 'blocks.1.mlp': no residual mlp; allowed: attn, cross_mlp"),
    ({"moreg": MoRegConfig(window=(6, 9))}, 5, "moreg.window=.6, 9. begins after step 5, the last; allowed"),
    ({"num_steps": 30}, 5, "num_steps=5; allowed: 30"),
    ({"schedule": FixedSchedule((0, 1), 4)}, 5, "num_steps=5; allowed: 4"),
    ({}, 0, "num_steps=0; allowed: whole numbers from 1"),
    ({}, "5", "num_steps='5'; allowed: whole numbers from 1"),
    ({"recompute_on": ["y_mask"]}, 5, "recompute_on='y_mask'; allowed: arguments of forward: x, t, x_mask"),
])
def test_settings_that_do_not_fit_are_errors_at_the_door(settings, num_steps, said):
    model = toy()
    with pytest.raises(ValueError, match=said), adaptive_cache(model, config(**settings), num_steps):
        pytest.fail("the with was entered")
    assert is_plain(model)


def test_a_block_that_does_not_name_its_residuals_beforehand_does_so_at_the_first_step(monkeypatch):
    monkeypatch.delattr(ToyBlock, "residual_names")
    model = toy()
    with pytest.raises(ValueError, match="probe blocks.1.mlp; allowed: residuals attn, cross_mlp"), \
            adaptive_cache(model, config(probes=["blocks.1.mlp"]), STEPS):
        sample(model, STEPS)


def test_a_model_without_the_slot_that_is_needed_says_what_to_do():
    with pytest.raises(ValueError, match="granularity='stack', but the model itself has no slot; "
                                         "allowed: .*'block'"), \
            adaptive_cache(toy(own_slot=False), config(), STEPS):
        pass
    with pytest.raises(ValueError, match="granularity='block', but no block has a slot"), \
            adaptive_cache(torch.nn.Linear(2, 2), config(granularity="block"), STEPS):
        pass


def test_blocks_alone_can_be_cached_by_block():
    model = toy(own_slot=False)
    with adaptive_cache(model, config(granularity="block", decide="batch"), STEPS) as session:
        sample(model, STEPS)
    assert session.trace[0].computed_steps == EVERY_THIRD
    with pytest.raises(ValueError, match="decide='video', but the model itself has no slot; allowed: "), \
            adaptive_cache(model, config(granularity="block"), STEPS):
        pass
