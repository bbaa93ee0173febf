"""Codebooks: from a distance to a rate."""
import math

import pytest

from adacache import Codebook


def test_the_first_threshold_above_the_distance_counts_and_none_is_left_out():
    codebook = Codebook([(0.1, 7), (0.2, 6), (0.3, 5), (0.4, 4), (0.5, 3), (0.6, 2), (0.7, 1)])
    assert [codebook.rate(d / 100) for d in (0, 5, 15, 25, 35, 45, 55, 65)] == [7, 7, 6, 5, 4, 3, 2, 1]
    assert codebook.rate(0.1) == 6  # strictly below
    assert codebook.rate(50.0) == 1


def test_past_the_last_threshold_the_last_rate_holds():
    assert Codebook([(0.5, 4)]).rate(0.7) == 4


@pytest.mark.parametrize("distance", [math.nan, math.inf, -math.inf])
def test_a_distance_that_is_no_number_computes_the_next_step(distance):
    assert Codebook([(0.5, 4), (1.0, 3)]).rate(distance) == 1


def test_pairs_and_mappings_also_with_keys_that_went_through_json():
    expected = ((0.08, 6), (1.0, 1))
    for given in ([[0.08, 6], [1.0, 1]], {0.08: 6, 1.0: 1}, {"0.08": 6, "1.0": 1}):
        assert Codebook(given).entries == expected


@pytest.mark.parametrize("name", ["fast", "published-fast"])
def test_published_fast(name):
    assert Codebook.preset(name, 30).entries == (
        (0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.00, 1))
    assert Codebook.preset(name, 100).entries == (
        (0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.00, 3))


@pytest.mark.parametrize("name", ["slow", "published-slow"])
def test_published_slow(name):
    assert Codebook.preset(name, 30).entries == (
        (0.08, 3), (0.16, 2), (0.24, 1), (0.32, 1), (0.40, 1), (1.00, 1))


def test_another_number_of_steps_scales_distances_and_rates():
    # each of 60 steps is half of one of 30: half the change, twice the steps; the levels of rate 1 become one
    halved = Codebook.preset("slow", 30).rescaled(30, 60).entries
    assert halved == ((0.04, 6), (0.08, 4), (0.5, 2))


def test_few_steps_merge_levels_and_never_go_below_rate_one():
    # 30 -> 10: thresholds x 3; rates 6, 5 -> 2; 4, 3, 2, 1 -> 1
    few = Codebook.preset("fast", 10).entries
    assert [rate for _, rate in few] == [2, 1]
    assert [threshold for threshold, _ in few] == pytest.approx([0.48, 3.0])


def test_the_nearest_published_number_is_the_base():
    assert Codebook.preset("fast", 60).entries == Codebook.preset("fast", 100).rescaled(100, 60).entries
    assert Codebook.preset("fast", 50).entries == Codebook.preset("fast", 30).rescaled(30, 50).entries


@pytest.mark.parametrize("given, said", [
    ([], "empty"),
    ([(0.2, 2), (0.1, 1)], "threshold 0.1 after 0.2"),
    ([(0.1, 2), (0.1, 1)], "ascending"),
    ([(0.1, 0)], "rate 0"),
    ([(0.1, 1.5)], "rate 1.5"),
    ([(0.1, True)], "rate True"),
    ([(-0.1, 1)], "threshold -0.1"),
    ([(math.nan, 1)], "threshold nan"),
    ([0.1, 0.2], "pairs such as"),
    (None, "pairs such as"),
])
def test_a_codebook_that_cannot_be_is_an_error(given, said):
    with pytest.raises(ValueError, match=said):
        Codebook(given)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="codebook='faster'; allowed: fast, slow, published-fast"):
        Codebook.preset("faster", 30)
