"""What a user is told before any run."""
import pytest
from toy_dit import ToyDiT, noise, sample, toy

from adacache import AdaCacheConfig, FixedSchedule, MoRegConfig, Signature, adaptive_cache, explain

LEVELS = [(0.1, 6), (0.2, 3), (1.0, 1)]


def told(capsys, model: ToyDiT, num_steps: int = 30, shape=None, **settings) -> list[str]:
    config = AdaCacheConfig(**{"codebook": LEVELS, "probes": ["blocks.1.attn"], **settings})
    explain(model, config, num_steps, shape)
    return capsys.readouterr().out.splitlines()


def test_the_whole_of_it(capsys):
    assert told(capsys, toy(), shape=(2, 6, 8)) == [
        "blocks: 3 with a slot, and the model itself",
        "steps: 8 to 30 of 30 computed, by the codebook 0.1:6, 0.2:3, 1:1",
        "decides: each video by itself (2 rows), by l1 at blocks.1.attn, without MoReg",
        "keeps: 2 residuals (1 to reuse, 1 to compare) of 2 x 6 x 8 x 4 bytes: 768 bytes",
    ]


@pytest.mark.parametrize("settings", [dict(), dict(granularity="block"), dict(forecast=1), dict(forecast=2)])
def test_the_bytes_are_those_that_a_run_then_holds(capsys, settings):
    model, config = toy(), AdaCacheConfig(codebook=LEVELS, probes=["blocks.1.attn"], **settings)
    keeps = told(capsys, model, shape=tuple(noise().shape), **settings)[3]
    with adaptive_cache(model, config, 30) as session:
        sample(model, 30)
    assert keeps.endswith(f": {session.cache_bytes:,} bytes")


def test_a_model_without_weights_is_explained_too(capsys):
    model = toy()
    for module in model.modules():
        module._parameters.clear()
    explain(model, AdaCacheConfig(codebook=LEVELS, probes=["blocks.1.attn"]), 30, (2, 6, 4))
    assert "of 2 x 6 x 4 x 4 bytes" in capsys.readouterr().out


def test_the_fewest_steps_are_those_of_a_run_that_hardly_changes(capsys):
    model = toy()
    with adaptive_cache(model, AdaCacheConfig(codebook=[(99.0, 6)], probes=["blocks.1.attn"]), 30) as session:
        sample(model, 30)
    assert f"steps: {len(session.trace[0].computed_steps)} to 30" in told(capsys, model)[1]


def test_a_guard_may_compute_every_step(capsys):
    lines = told(capsys, toy(), 100, codebook="fast", forecast=2, guard=0.1)
    assert lines[1].startswith("steps: 10 to 100 of 100 computed, by the codebook 0.03:12,")
    assert lines[1].endswith(", under a guard of 0.1")
    assert lines[3].startswith("keeps: 4 residuals (1 to reuse, 1 to compare, 2 to forecast)")


@pytest.mark.parametrize("num_steps", [0, "5"])
def test_without_a_number_of_steps_there_is_nothing_to_tell(capsys, num_steps):
    assert told(capsys, toy(), num_steps) == [
        f"will not work: num_steps={num_steps!r}; allowed: whole numbers from 1"]


@pytest.mark.parametrize("settings, said", [
    (dict(schedule=FixedSchedule((0, 2), 30, forecast=2), granularity="block"), "forecast=2 and granularity"),
    (dict(schedule=FixedSchedule((0, 2), 30, Signature("Other-1", 30, (2,)))), "model='Other-1'"),
])
def test_what_the_with_refuses_is_told(capsys, settings, said):
    with pytest.raises(ValueError) as error, \
            adaptive_cache(toy(), AdaCacheConfig(probes=["blocks.1.attn"], **settings), 30):
        pass
    assert said in str(error.value)
    assert f"will not work: {error.value}" in told(capsys, toy(), **settings)


def test_a_schedule_known_beforehand(capsys):
    lines = told(capsys, toy(), schedule=FixedSchedule([[0, 3], [0, 1, 2]], 30))
    assert lines[1] == "steps: 2, 3 of 30, known beforehand"
    assert lines[2] == "decides: nothing; each video by itself (2 rows) follows its schedule"
    assert lines[3] == "keeps: 1 residuals (1 to reuse, 0 to compare), each rows x tokens x channels"


def test_everything_that_will_not_work_is_told_at_once(capsys):
    lines = told(capsys, toy(own_slot=False), 8, probes=["blocks.7.attn", "blocks.1.mlp"],
                 moreg=MoRegConfig(window=(20, 30)))
    problems = [line for line in lines if line.startswith("will not work: ")]
    for said in ("the model itself has no slot", "no block blocks.7", "no residual mlp",
                 "moreg.window=(20, 30)"):
        assert any(said in problem for problem in problems)
    assert lines[-1].startswith("beware: num_steps=8: with fewer than 12 steps there is little to reuse")
