"""Which processes of a torchrun are alive, and how far they are: told through torchrun's store.

A collective that waits for the slowest process cannot tell slow from dead.  Here each process answers every
half second, from a thread of its own, so that it is heard however long its work takes.  Rank 0 listens to
all, the others to rank 0.  How a death is noticed:
- on the same node by torchrun itself, which ends the node's other processes as soon as one dies; nobody waits
  here in a way that keeps their signals from arriving;
- on other nodes by the last answer of those that torchrun ended, or, where a whole node went, by silence.
"""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any

import torch.distributed as dist

from opensora.parallel import rank, world_size
from opensora.restarts import restarts, torchrun_store

INTERVAL = 0.5   # seconds between answers
SILENCE = 120.0  # seconds after which a process that does not answer counts as dead
PATIENCE = 60.0  # seconds after which a process that waits for a lost one, and so does not look, is left
PAUSE = 10.0     # seconds between two times of listening after which this process itself was stopped


class RankLost(Exception):
    """Another process of the run died or stopped; the message names it."""


@dataclass(frozen=True)
class Answer:
    """state: working, done, dismissed (rank 0's word that everyone may go) or stopped.

    count: of answers so far, so that each differs from the one before.  report: what the process tells of its
    work.  cause: of a stop.  status: exit status of the run, once dismissed.
    """

    count: int = 0
    state: str = "working"
    report: Mapping[str, Any] = field(default_factory=dict)
    cause: str = ""
    status: int = 0


class RollCall:
    """`with RollCall.of_this_run(leave) as roll_call:` around the work of a process.

    store: None for a process alone.  own: this rank.  silence: seconds after which another is lost.
    leave: called with what is known of a lost process, from another thread, where nobody here asks for
    PATIENCE seconds, as in a collective that waits for it; it has to end the process.
    """

    def __init__(self, store: dist.Store | None = None, own: int = 0, ranks: int = 1,
                 silence: float = SILENCE, leave: Callable[[str], object] = lambda why: None) -> None:
        self.store, self.silence, self.leave = store, silence, leave
        self.listened_to = [r for r in range(ranks) if r != own] if own == 0 else [0]
        self.own, self.answer, self.count = own, Answer(), 0
        self.heard: dict[int, Answer] = {}
        self.heard_at: dict[int, float] = {}
        self.listened_at = 0.0
        self.lost: str | None = None
        self.look: Callable[[], object] = lambda: None  # at something else, in the same thread, as often
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._answer_until_left, name="roll call", daemon=True)

    @classmethod
    def of_this_run(cls, leave: Callable[[str], object]) -> RollCall:
        # torchrun's store outlives the processes that it starts again
        store = torchrun_store(f"roll_call/{restarts()}") if world_size() > 1 else None
        return cls(store, rank(), world_size(), leave=leave)

    def __enter__(self) -> RollCall:
        self.listened_at = time.monotonic()
        self.heard_at = dict.fromkeys(self.listened_to, self.listened_at)
        if self.store is not None:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if kind is not None:
            self.answer = replace(self.answer, state="stopped", cause=f"{kind.__name__}: {error}".strip(": "))
        if self.store is not None:
            self.leaving.set()
            self.thread.join()
            with suppress(dist.DistError):
                self._speak()  # the last word

    def tell(self, report: Mapping[str, Any], done: bool = False) -> None:
        """report: of this process's work so far.  done: there is no more of it."""
        self.answer = replace(self.answer, report=report, state="done" if done else "working")

    def check(self) -> None:
        """Raise RankLost where another process is known to be lost.  Costs nothing."""
        if self.lost is not None:
            raise RankLost(self.lost)

    def reports(self) -> list[Mapping[str, Any]]:
        """On rank 0: the last report of every process that told one."""
        return [answer.report for answer in (self.answer, *self.heard.values()) if answer.report]

    def until_all_are_done(self) -> Iterator[None]:
        """On rank 0, after its own work: goes round while others work.  Raises RankLost."""
        while not all(r in self.heard and self.heard[r].state == "done" for r in self.listened_to):
            self.check()
            yield
            time.sleep(INTERVAL)  # in Python, so that signals arrive

    def dismiss(self, status: int) -> None:
        """On rank 0: the run is over, `status` is its exit status."""
        self.answer = replace(self.answer, state="dismissed", status=status)

    def until_dismissed(self) -> int:
        """On other ranks, after their work: the run's exit status.  Raises RankLost."""
        while 0 not in self.heard or self.heard[0].state != "dismissed":
            self.check()
            time.sleep(INTERVAL)
        return self.heard[0].status

    def _answer_until_left(self) -> None:
        try:
            while not self.leaving.is_set() and self.lost is None:
                self._speak()
                self._listen()
                self._look()
                self.leaving.wait(INTERVAL)
        except dist.DistError as error:  # the node that keeps the store is gone, and rank 0 with it
            self.lost = f"the store of torchrun does not answer ({type(error).__name__})"
        if self.lost is not None and not self.leaving.wait(PATIENCE):
            self.leave(self.lost)

    def _look(self) -> None:
        try:
            self.look()
        except Exception as error:  # or nobody would hear of this rank any more
            self.lost = self.lost or f"rank {self.own}'s roll call failed ({type(error).__name__}: {error})"

    def _speak(self) -> None:
        self.count += 1
        self.store.set(str(self.own), json.dumps(asdict(replace(self.answer, count=self.count))))

    def _listen(self) -> None:
        spoke = [r for r in self.listened_to if r in self.heard or self.store.check([str(r)])]
        texts = self.store.multi_get([str(r) for r in spoke]) if spoke else []
        now = time.monotonic()
        if (paused := now - self.listened_at) > PAUSE:  # this process was stopped, and with it perhaps all
            self.heard_at = {r: at + paused for r, at in self.heard_at.items()}
        self.listened_at = now
        answers = {r: Answer(**json.loads(text)) for r, text in zip(spoke, texts, strict=True)}
        self.heard_at |= {r: now for r in spoke if answers[r] != self.heard.get(r)}
        self.heard = answers
        for r in self.listened_to:
            if r in answers and answers[r].state == "stopped":
                self.lost = f"rank {r} stopped ({answers[r].cause})"
            elif now - self.heard_at[r] > self.silence:
                self.lost = f"rank {r} did not answer for {self.silence:.0f} s"
