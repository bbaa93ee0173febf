"""Ranks that share a video fail together, whoever of them failed, and go on in groups that work."""
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count as counter
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from opensora import parallel, regrouping, roll_call
from opensora.parallel import Collectives, Mesh
from opensora.regrouping import Regrouping
from opensora.roll_call import RankLost, RollCall

SCARCE = "MemoryError: no room"


class Ranks:
    """A mesh of which the calls are kept."""

    def __init__(self, ranks: int, dp_rank: int = 0) -> None:
        self.ranks, self.dp_rank, self.calls = ranks, dp_rank, []
        for name in ("leave", "join", "release"):
            setattr(self, name, lambda name=name: self.calls.append(name))


class Rank(Regrouping):
    """Counts its own collectives."""

    def __init__(self, call: RollCall, ranks: int = 3, dp_rank: int = 0) -> None:
        super().__init__(Ranks(ranks, dp_rank), call, Collectives())

    @property
    def begun(self) -> int:
        return self.collectives.begun

    @property
    def calls(self) -> list[str]:
        """But for `release`, which the roll call may or may not come to."""
        return [call for call in self.mesh.calls if call != "release"]

    def fail(self, begun: int, cause: str = SCARCE, what: str = "a.mp4", ended: int | None = None) -> str:
        self.collectives.begun, self.collectives.ended = begun, begun if ended is None else ended
        cause = self.first_cause(cause)
        self.after(what)
        return cause


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roll_call, "INTERVAL", 0.02)
    monkeypatch.setattr(regrouping, "ALIKE", 0.2)
    monkeypatch.setattr(regrouping, "PATIENCE", 0.5)
    monkeypatch.setattr(regrouping.torch.cuda, "is_available", lambda: False)


@pytest.fixture
def team() -> list[Rank]:
    """Three ranks of one video, all in this process."""
    store = dist.HashStore()
    calls = [RollCall(store, own, 3) for own in range(3)]
    for call in calls:
        call.__enter__()
    yield [Rank(call) for call in calls]
    for call in calls:
        call.__exit__(None, None, None)


def all_of(team: list[Rank], fail: Callable[[Rank], str]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return [each.result() for each in [pool.submit(fail, rank) for rank in team]]


def one_alone(team: list[Rank]) -> set[str]:
    """The first fails; the others wait in a collective, which fails when the first leaves."""
    calls = len(team[0].calls)

    def other(rank: Rank) -> str:
        while team[0].calls[calls:] != ["leave"]:
            time.sleep(0.01)
        return rank.fail(rank.begun + 8, "RuntimeError: connection closed", ended=rank.begun + 7)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(team[0].fail, team[0].begun + 7)
        rest = [pool.submit(other, rank) for rank in team[1:]]
        return {each.result() for each in (first, *rest)}


def test_what_all_ranks_meet_at_the_same_place_leaves_their_groups_as_they_are(team):
    for begun in (7, 9):  # however often
        assert all_of(team, lambda rank, begun=begun: rank.fail(begun)) == [SCARCE] * 3
        assert [rank.calls for rank in team] == [[], [], []]


def test_what_one_rank_meets_alone_ends_the_others_wait_and_all_join_new_groups(team):
    """Its cause is what all of them tell.  A second time as the first."""
    for count in (1, 2):
        assert one_alone(team) == {SCARCE}
        assert [rank.calls for rank in team] == [["leave", "join"] * count] * 3


def test_after_it_ranks_are_in_step_again(team):
    one_alone(team)  # they have begun 7, 8 and 8 collectives
    all_of(team, lambda rank: rank.fail(rank.begun + 5))
    assert [rank.calls for rank in team] == [["leave", "join"]] * 3


def test_ranks_that_fail_after_other_numbers_of_collectives_regroup(team):
    """On GPUs one may have begun a collective that another never will."""
    all_of(team, lambda rank: rank.fail(8 if rank is team[2] else 7))
    assert [rank.calls for rank in team] == [["leave", "join"]] * 3


def test_a_collective_that_breaks_on_all_ranks_leaves_no_group_whole(team):
    """As where the connection between them does."""
    all_of(team, lambda rank: rank.fail(8, "RuntimeError: connection closed", ended=7))
    assert [rank.calls for rank in team] == [["leave", "join"]] * 3


def test_on_gpus_a_rank_that_waits_is_released_once_for_each_failure(team):
    with ThreadPoolExecutor() as pool:
        failing = [pool.submit(rank.fail, 7) for rank in team[:2]]
        until = time.monotonic() + 5
        while team[2].mesh.calls != ["release"]:
            assert time.monotonic() < until, "nobody released it"
            time.sleep(0.01)
        time.sleep(0.1)
        assert team[2].mesh.calls == ["release"]
        team[2].fail(9, "RuntimeError: aborted")
        for each in failing:
            each.result()
    time.sleep(0.1)
    assert team[2].mesh.calls == ["release", "leave", "join"]


def test_on_gpus_no_group_is_closed_before_all_ranks_are_out_of_it(team, monkeypatch):
    """Each aborts its own; one that noticed the others' end first would take it for an error of its own."""
    monkeypatch.setattr(regrouping.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(regrouping, "PATIENCE", 5)
    with ThreadPoolExecutor() as pool:
        failing: list[Future] = [pool.submit(rank.fail, 7) for rank in team[:2]]
        time.sleep(0.5)
        assert [rank.calls for rank in team] == [[], [], []]
        team[2].fail(9)
        for each in failing:
            each.result()
    assert [rank.calls for rank in team] == [["leave", "join"]] * 3


def test_ranks_of_other_videos_hear_nothing_of_it(team):
    other = Rank(RollCall(team[0].call.store, 0, 3), dp_rank=1)
    all_of(team, lambda rank: rank.fail(team.index(rank)))
    other._release_if_told()
    assert other.mesh.calls == [] and other.failures == 0


def test_ranks_that_failed_at_different_samples_do_not_go_on(team):
    """One sample apart, they would make videos of one another's tokens."""
    def fail(rank: Rank) -> str:
        with pytest.raises(RankLost) as raised:
            rank.fail(7, what="b.mp4" if rank is team[0] else "a.mp4")
            rank.fail(7)  # nobody else comes
        return str(raised.value)

    said = all_of(team, fail)
    assert any("at different ones, at " in each and "a.mp4" in each and "b.mp4" in each for each in said)


def test_ranks_that_do_not_come_out_of_what_they_wait_in_end_the_run(team):
    with pytest.raises(RankLost, match="a sample failed on 1 of 3 ranks, and the others do not come out"):
        team[1].fail(7)


def test_a_rank_that_fails_because_another_is_lost_says_so(team):
    team[0].call.lost = "rank 1 stopped (KeyboardInterrupt)"
    with pytest.raises(RankLost, match=r"rank 1 stopped \(KeyboardInterrupt\)"):
        team[0].fail(7)


@pytest.mark.parametrize("broken", ["join", "leave"])
def test_where_no_new_groups_can_be_had_the_run_ends(team, broken):
    def fails() -> None:
        raise RuntimeError("connection refused")

    setattr(team[0].mesh, broken, fails)

    def fail(rank: Rank) -> str:
        if rank is not team[0]:
            return rank.fail(8)
        with pytest.raises(RankLost, match="ranks did not come together: connection refused"):
            rank.fail(7)
        return "lost"

    assert all_of(team, fail)[0] == "lost"


def test_a_roll_call_that_fails_at_it_tells_the_rank(team):
    def fails() -> None:
        raise RuntimeError("abort failed")

    team[0].call.look = fails
    until = time.monotonic() + 5
    while team[0].call.lost is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(RankLost, match="rank 0's roll call failed .RuntimeError: abort failed"):
        team[0].call.check()


def test_a_rank_alone_waits_for_nobody():
    with RollCall() as call:
        assert Rank(call, ranks=1).fail(0, "OSError: no file") == "OSError: no file"


@dataclass(frozen=True)
class Group:
    group_name: str


@pytest.fixture
def told(monkeypatch) -> list[tuple]:
    """What a mesh does, rank 0 of which is here, with groups that are made of their ranks and a number."""
    told: list[tuple] = []
    numbers = counter(1)

    def new_group(members) -> Group:
        told.append(("new", tuple(members)))
        return Group(f"{members} {next(numbers)}")

    monkeypatch.setattr(parallel, "new_group", new_group)
    monkeypatch.setattr(parallel, "meet", lambda group, device: told.append(("meet", group.group_name)))
    monkeypatch.setattr(parallel.dist, "destroy_process_group",
                        lambda group: told.append(("destroy", group.group_name)))
    return told


def test_what_keeps_a_group_leaves_it_first_and_gets_the_new_one(told):
    mesh = Mesh(video=(0, 1), sp=(0, 1))
    keeper = SimpleNamespace(leave=lambda: told.append(("keeper leaves",)),
                             join=lambda group: told.append(("keeper joins", group.group_name)))
    mesh.keepers.append(keeper)
    assert told == [("new", (0, 1)), ("meet", "(0, 1) 1")]
    told.clear()
    mesh.leave()
    assert told == [("keeper leaves",), ("destroy", "(0, 1) 1")]
    assert mesh.video is None and mesh.sp is None
    told.clear()
    mesh.join()
    assert told == [("new", (0, 1)), ("meet", "(0, 1) 2"), ("keeper joins", "(0, 1) 2")]


def test_where_names_come_again_a_group_of_one_stands_for_each_that_was_left(told, monkeypatch):
    """Or a new one would have its name, and find in the store where its ranks were."""
    monkeypatch.setattr(parallel, "NAMES_COME_AGAIN", True)
    mesh = Mesh(video=(0, 1, 2, 3), sp=(0, 1), cfg=(0, 2))
    told.clear()
    mesh.leave()
    assert [what for what in told if what[0] == "new"] == [("new", (0,))] * 3 and len(mesh.placeholders) == 3


def test_a_group_is_aborted_by_what_this_torch_has_for_it(monkeypatch):
    aborted = []
    backend = SimpleNamespace(_shutdown=lambda: aborted.append("2.5"))
    parallel.abort(SimpleNamespace(abort=lambda: aborted.append("2.6")))
    parallel.abort(SimpleNamespace(_get_backend=lambda device: {"cuda": backend}[device.type]))
    assert aborted == ["2.6", "2.5"]
