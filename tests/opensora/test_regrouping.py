"""Ranks that share a video fail together, whoever of them failed, and go on in groups that work."""
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from opensora import regrouping, roll_call
from opensora.regrouping import Regrouping
from opensora.roll_call import RankLost, RollCall


class Ranks:
    """A mesh of which the calls are kept."""

    def __init__(self, ranks: int, dp_rank: int = 0) -> None:
        self.ranks, self.dp_rank, self.calls = ranks, dp_rank, []
        for name in ("leave", "join", "release"):
            setattr(self, name, lambda name=name: self.calls.append(name))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roll_call, "INTERVAL", 0.02)
    monkeypatch.setattr(regrouping, "ALIKE", 0.2)
    monkeypatch.setattr(regrouping, "PATIENCE", 0.5)


@pytest.fixture
def team() -> list[Regrouping]:
    """Three ranks of one video, all in this process."""
    store = dist.HashStore()
    calls = [RollCall(store, own, 3) for own in range(3)]
    for call in calls:
        call.__enter__()
    yield [Regrouping(Ranks(3), call) for call in calls]
    for call in calls:
        call.__exit__(None, None, None)


def all_after(team: list[Regrouping], *failures: tuple[str, int], pause: float = 0.05) -> list[str]:
    """What `after` returns on each rank, which fail one after the other."""
    with ThreadPoolExecutor() as pool:
        waiting = []
        for each, failure in zip(team, failures, strict=True):
            waiting.append(pool.submit(each.after, *failure))
            time.sleep(pause)
        return [each.result() for each in waiting]


def test_what_all_ranks_meet_at_the_same_place_leaves_their_groups_as_they_are(team):
    for _ in range(2):  # however often
        assert all_after(team, *[("OSError: no file", 7)] * 3) == ["OSError: no file"] * 3
        assert [each.mesh.calls for each in team] == [[], [], []]


def test_what_one_rank_meets_alone_ends_the_others_wait_and_all_join_new_groups(team):
    """Its cause is what all of them tell."""
    def others(own: int, before: int) -> str:
        while team[0].mesh.calls[before:] != ["leave"]:  # as in a collective that fails when rank 0 leaves
            time.sleep(0.01)
        return team[own].after("RuntimeError: connection closed", 8)

    for before in (0, 2):  # a second time as the first
        with ThreadPoolExecutor() as pool:
            first = pool.submit(team[0].after, "MemoryError: no room", 7)
            rest = [pool.submit(others, own, before) for own in (1, 2)]
            assert {each.result() for each in (first, *rest)} == {"MemoryError: no room"}
        for each in team:
            assert [call for call in each.mesh.calls if call != "release"][before:] == ["leave", "join"]


def test_ranks_that_fail_after_other_numbers_of_collectives_regroup(team):
    """On GPUs one may have begun a collective that another never will."""
    all_after(team, ("a", 7), ("a", 7), ("a", 8))
    assert all(each.mesh.calls[-2:] == ["leave", "join"] for each in team)


def test_a_rank_that_waits_on_its_gpu_is_released_once_for_each_failure(team):
    with ThreadPoolExecutor() as pool:
        failing = [pool.submit(each.after, "MemoryError: no room", 7) for each in team[:2]]
        until = time.monotonic() + 5
        while team[2].mesh.calls != ["release"]:
            assert time.monotonic() < until, "nobody released it"
            time.sleep(0.01)
        time.sleep(0.1)
        assert team[2].mesh.calls == ["release"]
        team[2].after("RuntimeError: aborted", 9)
        for each in failing:
            each.result()
    time.sleep(0.1)
    assert team[2].mesh.calls == ["release", "leave", "join"]


def test_ranks_of_other_videos_hear_nothing_of_it(team):
    other = Regrouping(Ranks(3, dp_rank=1), team[0].call)
    all_after(team, ("a", 1), ("a", 1), ("a", 2))
    time.sleep(0.1)
    assert other.mesh.calls == [] and other.failures == 0


def test_ranks_that_do_not_come_out_of_what_they_wait_in_end_the_run(team):
    with pytest.raises(RankLost, match="a sample failed on 1 of 3 ranks, and the others do not come out"):
        team[1].after("MemoryError: no room", 7)


def test_a_rank_that_fails_because_another_is_lost_says_so(team):
    team[0].call.lost = "rank 1 stopped (KeyboardInterrupt)"
    with pytest.raises(RankLost, match=r"rank 1 stopped \(KeyboardInterrupt\)"):
        team[0].after("RuntimeError: connection closed", 7)


def test_where_no_new_groups_can_be_had_the_run_ends(team):
    def fails() -> None:
        raise RuntimeError("connection refused")

    team[0].mesh.join = fails
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(each.after, "a", place) for place, each in enumerate(team)]
        with pytest.raises(RankLost, match="no new process groups: connection refused"):
            waiting[0].result()
        assert [each.result() for each in waiting[1:]] == ["a", "a"]


def test_a_rank_alone_waits_for_nobody():
    with RollCall() as alone:
        assert Regrouping(Ranks(1), alone).after("OSError: no file", 0) == "OSError: no file"
