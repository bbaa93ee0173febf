"""Processes that lose one another notice, and slow ones are not taken for lost."""
import time
from contextlib import ExitStack

import pytest
import torch.distributed as dist

from opensora import roll_call
from opensora.roll_call import RankLost, RollCall


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roll_call, "INTERVAL", 0.02)


@pytest.fixture
def ranks():
    """`first, second = ranks(2)`: as many roll calls as a run has processes, all in this one."""
    with ExitStack() as stack:
        def enter(count, silence=0.5):
            store = dist.HashStore()
            return [stack.enter_context(RollCall(store, own, count, silence)) for own in range(count)]

        yield enter


def test_rank_0_hears_all_and_dismisses_them_with_one_status(ranks):
    first, *others = ranks(3)
    first.tell({"videos": 1}, done=True)
    for number, other in enumerate(others, start=2):
        other.tell({"videos": number}, done=True)
    for _ in first.until_all_are_done():
        pass
    assert sorted(report["videos"] for report in first.reports()) == [1, 2, 3]
    first.dismiss(1)
    assert [other.until_dismissed() for other in others] == [1, 1]


def test_a_rank_at_work_is_waited_for_however_long_it_takes(ranks):
    first, second = ranks(2, silence=0.2)
    rounds = first.until_all_are_done()
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        next(rounds)
    second.tell({}, done=True)
    assert len(list(rounds)) < 20


def test_a_rank_that_does_not_answer_is_lost(ranks):
    first, second = ranks(2, silence=0.2)
    second.leaving.set()  # as a process that is killed: it says no more
    with pytest.raises(RankLost, match="rank 1 did not answer for 0 s"):
        list(first.until_all_are_done())


def test_a_run_that_was_stopped_and_goes_on_has_lost_nobody(monkeypatch):
    """All processes at once, as by Slurm or Ctrl-Z; who wakes first finds only old answers."""
    now = [1000.0]
    monkeypatch.setattr(roll_call.time, "monotonic", lambda: now[0])
    store = dist.HashStore()
    first, second = (RollCall(store, own, 2, 120.0) for own in range(2))
    first.listened_at, first.heard_at = now[0], {1: now[0]}
    second._speak()
    first._listen()
    now[0] += 300  # stopped
    first._listen()
    assert first.lost is None
    for _ in range(30):  # the other one does not come back
        now[0] += 5
        first._listen()
    assert first.lost == "rank 1 did not answer for 120 s"


def test_who_waits_for_a_lost_rank_and_does_not_look_is_left(monkeypatch):
    """As in a collective: the thread of the roll call ends the process."""
    monkeypatch.setattr(roll_call, "PATIENCE", 0.1)
    store, left = dist.HashStore(), []
    with RollCall(store, 0, 2, 0.2, left.append):
        time.sleep(0.8)
    assert left == ["rank 1 did not answer for 0 s"]
    with RollCall(store, 0, 2, 0.2, left.append) as looks, pytest.raises(RankLost):
        while True:
            time.sleep(0.02)
            looks.check()
    assert len(left) == 1


def test_a_rank_that_stops_says_why_and_all_others_hear_it():
    store = dist.HashStore()
    calls = [RollCall(store, own, 3) for own in range(3)]
    with calls[2]:
        with pytest.raises(RankLost, match=r"rank 1 stopped \(OSError: disk is full\)"), calls[0]:
            with pytest.raises(OSError), calls[1]:
                raise OSError("disk is full")
            list(calls[0].until_all_are_done())
        with pytest.raises(RankLost, match="rank 0 stopped .*rank 1 stopped .*disk is full"):
            calls[2].until_dismissed()


def test_a_process_alone_waits_for_nobody():
    with RollCall() as alone:
        alone.tell({"videos": 2}, done=True)
        assert list(alone.until_all_are_done()) == [] and alone.reports() == [{"videos": 2}]
        alone.check()
