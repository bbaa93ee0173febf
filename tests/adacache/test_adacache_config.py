"""Settings: defaults, checks, and the published code's keys."""
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from adacache import PUBLISHED_KEYS, AdaCacheConfig, Codebook, FixedSchedule, MoRegConfig
from adacache.codebook import PRESETS

FAST_100 = {0.03: 12, 0.05: 10, 0.07: 8, 0.09: 6, 0.11: 4, 1.00: 3}


def test_settings_are_frozen_and_lists_become_tuples():
    config = AdaCacheConfig(probes=["blocks.0.attn"], codebook=[[0.1, 2], [1.0, 1]])
    assert config.probes == ("blocks.0.attn",)
    assert config.codebook == Codebook({0.1: 2, 1.0: 1})
    with pytest.raises(FrozenInstanceError):
        config.metric = "l2"
    assert replace(config, codebook="slow").probes == config.probes


def test_from_dict_reads_a_config_file():
    assert AdaCacheConfig.from_dict({}) == AdaCacheConfig()
    config = AdaCacheConfig.from_dict(
        {"codebook": "slow", "moreg": {"strides": [1, 2]}, "granularity": "block"})
    assert config == AdaCacheConfig(codebook="slow", moreg=MoRegConfig(strides=(1, 2)), granularity="block")
    schedule = {"num_steps": 4, "computed_steps": [0, 2]}
    assert AdaCacheConfig.from_dict({"schedule": schedule}).schedule == FixedSchedule((0, 2), 4)


@pytest.mark.parametrize("values, said", [
    ({"code_book": "fast"}, "unknown key 'code_book'; allowed: codebook"),
    ({"moreg": {"stride": [1]}}, "adacache.moreg: unknown key 'stride'; allowed: strides"),
])
def test_an_unknown_key_is_named_with_near_ones(values, said):
    with pytest.raises(TypeError, match=said):
        AdaCacheConfig.from_dict(values)


@pytest.mark.parametrize("values, said", [
    ({"codebook": "faster"}, "codebook='faster'; allowed: fast, slow"),
    ({"codebook": []}, "empty"),
    ({"metric": "l3"}, "metric='l3'; allowed: l1, l2, cosine"),
    ({"granularity": "layer"}, "granularity='layer'; allowed: stack, block"),
    ({"decide": "frame"}, "decide='frame'; allowed: video, row, batch"),
    ({"forecast": 3}, "forecast=3; allowed: None, 0, 1, 2"),
    ({"guard": 0}, "guard=0; allowed: None, or a number above 0"),
    ({"granularity": "block", "forecast": 1}, "look at the stack's residual; allowed: granularity='stack'"),
    ({"any_signature": 1}, "any_signature=1; allowed: True, False"),
    ({"signature": {"model": "x"}}, "signature={'model': 'x'}; allowed: a text as model, a whole number"),
    ({"signature": "x"}, "signature='x'; allowed: None, or a Signature"),
    ({"rows_per_video": 0}, "rows_per_video=0; allowed: whole numbers from 1"),
    ({"probes": "temporal_blocks.13.attn"}, "probes='temporal_blocks.13.attn'; allowed: a list"),
    ({"probes": []}, "probes="),
    ({"probes": ["a.attn", "a.attn"]}, "probes=.*; allowed: each once"),
    ({"recompute_on": "x_mask"}, "recompute_on='x_mask'; allowed: a list"),
    ({"recompute_on": [1]}, "recompute_on="),
    ({"moreg": True}, "moreg=True; allowed: None, or a MoRegConfig"),
    ({"schedule": 3}, "schedule=3"),
    ({"num_steps": 0}, "num_steps=0"),
    ({"moreg": {"strides": []}}, "moreg.strides"),
    ({"moreg": {"strides": [0]}}, "moreg.strides"),
    ({"moreg": {"window": [5, 4]}}, "moreg.window"),
    ({"moreg": {"window": [0, 4]}}, "moreg.window"),
    ({"moreg": {"window": [1, 2, 3]}}, "moreg.window"),
    ({"moreg": {"scale": 0}}, "moreg.scale=0"),
    ({"moreg": {"power": float("nan")}}, "moreg.power=nan"),
    ({"moreg": {"gradient": -1}}, "moreg.gradient=-1"),
])
def test_a_value_that_is_not_allowed_is_named(values, said):
    with pytest.raises(ValueError, match=said):
        AdaCacheConfig.from_dict(values)


def test_published_settings_become_ours():
    config = AdaCacheConfig.from_published(
        do_cache=True, cache_res="t-attn", cache_loc=[13], codebook=FAST_100, apply_moreg=True,
        moreg_strides=[1], moreg_steps=(10, 90), moreg_hyp=(0.385, 8, 1, 2), mograd_mul=10,
        num_sampling_steps=100)
    assert config == AdaCacheConfig(
        codebook=Codebook(FAST_100), probes=("temporal_blocks.13.attn",), moreg=MoRegConfig(window=(10, 90)),
        granularity="block", decide="batch", recompute_on=(), num_steps=100)


def test_published_settings_as_a_mapping_and_their_defaults():
    config = AdaCacheConfig.from_published({"do_cache": True})
    assert config.codebook == Codebook(FAST_100)
    assert config.moreg is None and config.num_steps is None
    assert AdaCacheConfig.from_published({"do_cache": False, "cache_loc": [2]}) is None
    assert AdaCacheConfig.from_published() is None


@pytest.mark.parametrize("cache_res, probes", [
    ("t-attn", ("temporal_blocks.1.attn", "temporal_blocks.3.attn")),
    ("s-attn", ("spatial_blocks.1.attn", "spatial_blocks.3.attn")),
    ("ca-mlp", ("spatial_blocks.1.cross_mlp", "temporal_blocks.1.cross_mlp",
                "spatial_blocks.3.cross_mlp", "temporal_blocks.3.cross_mlp")),
])
def test_published_locations_become_paths(cache_res, probes):
    config = AdaCacheConfig.from_published(do_cache=True, cache_res=cache_res, cache_loc=[1, 3])
    assert config.probes == probes


def test_the_third_of_moreg_hyp_divides():
    # (m / .5)^2 / 4 = (m / 1)^2
    moreg = AdaCacheConfig.from_published(do_cache=True, apply_moreg=True, moreg_hyp=(0.5, 2, 4)).moreg
    assert (moreg.scale, moreg.power) == (1.0, 2)


def test_unknown_published_settings_are_errors():
    assert "cache_loc" in PUBLISHED_KEYS and "qk_norm" not in PUBLISHED_KEYS
    with pytest.raises(TypeError, match="unknown key 'cache_locs'; allowed: cache_loc"):
        AdaCacheConfig.from_published(do_cache=True, cache_locs=[1])
    with pytest.raises(ValueError, match="cache_res='attn'; allowed: t-attn, s-attn, ca-mlp"):
        AdaCacheConfig.from_published(do_cache=True, cache_res="attn")


@pytest.mark.parametrize("key, value", [
    ("cache_loc", 13), ("cache_loc", []), ("cache_loc", [-1]), ("moreg_hyp", (0.385, 0, 1, 2)),
    ("moreg_hyp", (0.385, 8)), ("moreg_hyp", (0.385, 8, -1)), ("moreg_steps", (90, 10)), ("mograd_mul", -1),
    ("moreg_strides", []),
])
def test_a_bad_published_setting_is_named_as_published(key, value):
    with pytest.raises(ValueError, match=rf"^{key}=.*; allowed: "):
        AdaCacheConfig.from_published(do_cache=True, apply_moreg=True, **{key: value})


def test_a_preset_brings_forecast_and_guard_and_a_codebook_of_one_s_own_neither():
    def chosen(**settings) -> tuple[int, float]:
        config = AdaCacheConfig(**settings).resolved()
        return config.forecast, config.guard

    for name in ("fast", "slow"):
        assert chosen(codebook=name) == (PRESETS[name].forecast, PRESETS[name].guard) != (0, math.inf)
    for plain in ("published-fast", "published-slow", [(0.1, 3)]):
        assert chosen(codebook=plain) == (0, math.inf)
    assert chosen(codebook="fast", forecast=0, guard=math.inf) == (0, math.inf)
    assert chosen(codebook=[(0.1, 3)], forecast=1, guard=0.2) == (1, 0.2)
    assert chosen(codebook="fast", granularity="block") == (0, math.inf)
    assert AdaCacheConfig.from_published(do_cache=True).resolved().forecast == 0


def test_a_recorded_schedule_brings_the_forecast_of_its_run():
    schedule = FixedSchedule((0, 2), 10, forecast=2)
    assert AdaCacheConfig(schedule=schedule).resolved().forecast == 2
    assert AdaCacheConfig(schedule=schedule, forecast=0).resolved().forecast == 0
    assert AdaCacheConfig(schedule=FixedSchedule((0, 2), 10)).resolved().forecast == 0
