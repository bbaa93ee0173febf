"""The cache takes the decisions that the published one took, on the same weights and inputs."""
import json
import math
from dataclasses import replace

import pytest
import torch
from golden import GOLDEN, assert_close, needs_golden, tensors
from test_rflow_golden import RecordedText, Recorder, run_args
from test_stdit3_golden import META as TINY

from adacache import AdaCacheConfig, Codebook, MoRegConfig, Session, adaptive_cache
from adacache.metric import residual_distance
from adacache.moreg import motion_factor, motion_score
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config
from opensora.schedulers.rf import RFLOW

pytestmark = needs_golden


def recorded(name: str) -> dict | list:
    return json.loads((GOLDEN / f"{name}.json").read_text()) if GOLDEN.exists() else {}


RUNS, DATA = recorded("adacache_runs"), tensors("adacache_runs")
UNITS, UNIT_DATA = {chain["name"]: chain for chain in recorded("adacache_units")}, tensors("adacache_units")
MATCHING = ("a01", "a02", "a03", "a04", "a05", "a06", "a07", "a09", "a10", "a11", "a14", "a15", "a16")
TO_MATCH = [name for name in RUNS if name.startswith(MATCHING)]
assert not RUNS or len(TO_MATCH) == 14  # the others record faults of the published code


def model_of(run: str) -> STDiT3:
    model = STDiT3(STDiT3Config(**TINY["config"])).eval()
    model.load_state_dict(tensors(f"adacache_model_{RUNS[run]['weights']}"))
    return model


def published(run: str, **changes) -> AdaCacheConfig:
    """The run's own settings: the recorder's configs are the published keys, codebooks as pairs."""
    return AdaCacheConfig.from_published(**{"do_cache": True, **RUNS[run]["settings"], **changes})


def as_stack(config: AdaCacheConfig) -> AdaCacheConfig:
    """The same decisions with one stored tensor."""
    return replace(config, granularity="stack")


def sample(run: str, recorder: Recorder, config: AdaCacheConfig | None, steps: int | None = None):
    """The recorded run's sampling.  Returns (latents, session)."""
    sampler = RFLOW(RUNS[run]["steps"], cfg_scale=RUNS[run]["cfg_scale"], use_timestep_transform=True)
    torch.manual_seed(1234)
    z = DATA[f"{run}.z"]

    text = RecordedText(run, recorder.model, DATA)

    def denoise() -> torch.Tensor:
        return sampler.sample(recorder, text, z=z.clone(), prompts=[""] * len(z), device="cpu",
                              additional_args=run_args(run, DATA), mask=DATA.get(f"{run}.mask"))

    if config is None:
        return denoise(), None
    with adaptive_cache(recorder.model, config, num_steps=steps or RUNS[run]["steps"]) as session:
        return denoise(), session


def last_of_each_step(decisions: list[dict]) -> list[dict]:
    """With several probes, the decision in force is the deepest one's."""
    return list({d["step"]: d for d in decisions}.values())


def assert_same_decisions(video, expected: dict) -> None:
    assert [step + 1 for step in video.computed_steps] == expected["computed_steps"]
    decisions = last_of_each_step(expected["decisions"])
    assert [d.step + 1 for d in video.decisions] == [d["step"] for d in decisions]
    assert [d.rate for d in video.decisions] == [d["new_rate"] for d in decisions]
    for ours, theirs in zip(video.decisions, decisions, strict=True):
        assert ours.distance == pytest.approx(theirs["synced"], rel=1e-4)
        assert ours.motion == pytest.approx(theirs["moreg"], rel=1e-3)
        assert ours.motion_gradient == pytest.approx(theirs["mograd"], rel=1e-2, abs=1e-3)
        assert ours.regularized_distance == pytest.approx(theirs["final"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("granularity", ["block", "stack"])
@pytest.mark.parametrize("run", TO_MATCH)
def test_every_decision_and_the_latents_of_a_recorded_run(run, granularity):
    config, recorder = published(run), Recorder(model_of(run))
    out, session = sample(run, recorder, config if granularity == "block" else as_stack(config))
    expected = RUNS[run]["runs"][0]
    assert_same_decisions(session.trace[0], expected)
    for index, z_in in zip(DATA[f"{run}.run0.z_in_steps"].tolist(), DATA[f"{run}.run0.z_in"], strict=True):
        assert_close(recorder.z_in[index - 1], z_in)
    assert_close(out, DATA[f"{run}.run0.z_final"])


def test_after_a_cached_run_the_model_is_the_plain_model():
    run = "a01_fast30_tattn"
    recorder = Recorder(model_of(run))
    sample(run, recorder, published(run))
    assert_close(sample(run, recorder, None)[0], DATA[f"{run}.z_final_nocache"])


def test_two_runs_in_a_row_are_the_same_run():
    run = "a17_fast30_moreg_late_twice"  # recorded: the motion factor of the first leaks into the second
    recorder = Recorder(model_of(run))
    for _ in range(2):
        out, session = sample(run, recorder, published(run))
        assert_same_decisions(session.trace[0], RUNS[run]["runs"][0])
        assert_close(out, DATA[f"{run}.run0.z_final"])


def test_a_run_after_a_stopped_one_is_that_of_a_fresh_model():
    run = "a18_fast30_interrupted"  # recorded: the stopped run's counters and residuals are used by the next
    recorder = Recorder(model_of(run))
    aborted, calls = RUNS[run]["runs"][0], []

    def stop_in_the_eighth(*_) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    stopper = recorder.model.final_layer.register_forward_pre_hook(stop_in_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        sample(run, recorder, published(run))
    stopper.remove()
    after, session = sample(run, recorder, published(run))
    fresh, fresh_session = sample(run, Recorder(model_of(run)), published(run))
    assert torch.equal(after, fresh)
    assert session.trace == fresh_session.trace
    steps = [step + 1 for step in session.trace[0].computed_steps]
    assert steps[:3] == aborted["computed_steps"] and steps[-2:] == [29, 30]


def test_a_number_of_steps_told_twice_and_differently_is_an_error():
    run = "a19_fast30_cfgsteps100"  # recorded: the second run starts from the first one's residuals
    recorder = Recorder(model_of(run))
    with pytest.raises(ValueError, match="num_steps=30; allowed: 100"):
        sample(run, recorder, published(run), steps=30)
    with pytest.raises(RuntimeError, match="num_steps=100, but the model was called 30 times"):
        sample(run, recorder, published(run, num_sampling_steps=None), steps=100)


def test_a_probe_outside_the_model_is_an_error():
    run = "a20_fast30_loc_outside"  # recorded: everything computed, in silence
    with pytest.raises(ValueError, match="no block temporal_blocks.13; .*: spatial_blocks.0, .*_blocks.3"):
        sample(run, Recorder(model_of(run)), published(run))


def test_every_level_of_a_long_codebook_counts():
    run = "a22_seven_level"  # recorded: distances between .11 and .13 skip the level of rate 2
    _, session = sample(run, Recorder(model_of(run)), published(run))
    first = session.trace[0].decisions[0]
    assert first.distance == pytest.approx(RUNS[run]["runs"][0]["decisions"][0]["synced"], rel=1e-4)
    assert 0.11 < first.distance < 0.13 and first.rate == 2
    assert session.trace[0].computed_steps[:3] == [0, 1, 3]


def unit_moreg(settings: dict) -> MoRegConfig | None:
    return AdaCacheConfig.from_published(do_cache=True, **settings).moreg


# u6 takes several decisions of one step with one block's memory of m: no run can
FP32_UNITS = [name for name, chain in UNITS.items() if "32" in chain["dtype"] and name != "u6_moreg_layers"]


def decisions_of_unit(name: str, steps_in_run: int = 1000) -> list:
    """A chain's tensors through a Session, with the recorded rates in force."""
    chain = UNITS[name]
    config = AdaCacheConfig(codebook=chain["codebook"], moreg=unit_moreg(chain["settings"]), decide="batch")
    session, x = Session(config, steps_in_run), UNIT_DATA[f"{name}.0.res"]
    session.start(x)
    group = session.groups[0]
    count = len(chain["fwd_ids"])
    for together in [range(count)] if chain["same_step"] else [[i] for i in range(count)]:
        session.step = chain["fwd_ids"][together[0]] - 1
        group.schedule.rate, group.schedule.next_step = chain["prev_rates"][together[0]], 0
        session.begin_step(x, {})
        for i in together:
            session.measure(UNIT_DATA[f"{name}.{i}.res"], UNIT_DATA[f"{name}.{i}.cache"], chain["S"])
        session.end_step()
    return group.record.decisions


@pytest.mark.parametrize("name", FP32_UNITS)
def test_decisions_on_given_residuals(name):
    chain = UNITS[name]
    expected = chain["decisions"][-1:] if chain["same_step"] else chain["decisions"]
    for ours, theirs in zip(decisions_of_unit(name), expected, strict=True):
        # a gradient is the difference of two motion factors, and so has fewer digits
        for mine, its, rel in (("distance", "synced", 1e-5), ("motion", "moreg", 1e-4),
                               ("motion_gradient", "mograd", 1e-3), ("regularized_distance", "final", 1e-3)):
            assert getattr(ours, mine) == pytest.approx(float(theirs[its]), rel=rel, abs=1e-6, nan_ok=True)
        assert ours.rate == theirs["new_rate"]


@pytest.mark.parametrize("name", [n for n, chain in UNITS.items() if "bfloat16" in chain["dtype"]])
def test_decisions_in_bf16_differ_by_its_rounding_only(name):
    # recorded with bf16 sums (8 bits); ours are fp32 sums, and the motion ratio to the 8th power keeps 5 bits
    for ours, theirs in zip(decisions_of_unit(name), UNITS[name]["decisions"], strict=True):
        assert ours.distance == pytest.approx(theirs["synced"], rel=2e-2)
        assert ours.motion == pytest.approx(theirs["moreg"], rel=0.1)


@pytest.mark.parametrize("name", ["u9_stride_overflow", "u11_zero_cache", "u12_oneframe"])
def test_a_distance_that_is_no_number_computes_the_next_step(name, caplog):
    decisions = decisions_of_unit(name)
    assert not any(math.isfinite(d.regularized_distance) for d in decisions)
    assert [d.rate for d in decisions] == [1] * len(decisions)
    assert "the next step is computed" in caplog.text


def test_frames_are_differenced_as_on_one_device():
    data = tensors("adacache_sp_motion")
    meta = recorded("adacache_sp_motion")
    for row in meta["rows"]:
        new, cached = data[f"corr{row['corr']}.res"], data[f"corr{row['corr']}.cache"]
        score = motion_score(new, meta["S"])
        assert residual_distance(new, cached).item() == pytest.approx(row["one_rank"]["raw"], rel=1e-5)
        assert score.item() == pytest.approx(row["one_rank"]["moreg_raw"], rel=1e-5)
        assert motion_factor(score, 0.385, 8).item() == pytest.approx(row["one_rank"]["moreg"], rel=1e-4)


def test_a_codebook_is_read_as_pairs_or_as_a_mapping():
    chain = UNITS["u10_boundary"]
    for codebook in (Codebook(chain["codebook"]), Codebook(dict(chain["codebook"]))):
        for decision in chain["decisions"]:
            assert codebook.rate(decision["final"]) == decision["new_rate"]
