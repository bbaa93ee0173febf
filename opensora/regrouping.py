"""Ranks that share a video: where one of them fails at it alone, all give it up and go on with the next.

As where one GPU has less memory left than the others.  These wait for it in a collective that it never comes
to.  On gloo it closes its process groups, at which the others' collectives fail as well; on NCCL a rank that
waits has to abort its own communicators, which the thread of its roll call does as soon as it hears of the
failure.  Then all meet in torchrun's store and make new groups.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from opensora import roll_call
from opensora.parallel import Collectives, Mesh
from opensora.roll_call import RankLost, RollCall

ALIKE = 5.0       # seconds within which all ranks meet a failure that is in what they do
PATIENCE = 300.0  # seconds for the others to come out of what they do, or wait in


class Regrouping:
    """Of the ranks of a mesh, however often they fail.  Every one of them has one, for the whole run.

    collectives: all those of this rank's groups.
    """

    def __init__(self, mesh: Mesh, call: RollCall, collectives: Collectives) -> None:
        self.mesh, self.call, self.collectives = mesh, call, collectives
        self.failures = 0  # so far, on all ranks alike
        self.before = 0    # collectives begun when the groups were made
        self.released = False
        self.lock = threading.Lock()
        if mesh.ranks > 1:
            call.look = self._release_if_told

    @property
    def store(self) -> dist.Store:
        """Of the coming failure, or the running one."""
        return dist.PrefixStore(f"failure/{self.mesh.dp_rank}/{self.failures}", self.call.store)

    def first_cause(self, cause: str) -> str:
        """Of the rank that failed first, which made others fail.  cause: this rank's."""
        if self.mesh.ranks == 1:
            return cause
        with lost_if_it_fails():
            return self.store.compare_set("cause", "", cause).decode()

    def after(self, what: str) -> None:
        """This rank failed: returns once all ranks of the mesh did, in groups that work.

        what: they failed at.  A failure that all meet after as many collectives left their groups whole.
        Raises RankLost where another one is lost, does not come or failed at something else, or where no new
        groups can be had.
        """
        if self.mesh.ranks == 1:
            return
        with lost_if_it_fails():
            self._check_same(what)
            self.store.add("failed", 1)
            apart = self._are_apart()
            with self.lock:
                if apart:
                    self._regroup()
                self.failures, self.released = self.failures + 1, False

    def _check_same(self, what: str) -> None:
        """Ranks that went on one sample apart would make videos of one another's tokens."""
        if (first := self.store.compare_set("what", "", what).decode()) != what:
            raise RankLost(f"ranks that share samples failed at different ones, at {what} and at {first}")

    def _are_apart(self) -> bool:
        """Did some rank fail elsewhere, or not at all?  The first to find out says so for all."""
        store, until, known = self.store, time.monotonic() + ALIKE, self.collectives
        place = f"after {known.begun - self.before} collectives"
        if known.begun == known.ended:
            store.add(place, 1)
        else:  # in one, which broke for some reason
            store.compare_set("apart", "", "yes")
        while not store.check(["apart"]):
            self.call.check()
            if store.add(place, 0) == self.mesh.ranks:
                store.compare_set("apart", "", "no")
            elif time.monotonic() > until:
                store.compare_set("apart", "", "yes")
            else:
                time.sleep(roll_call.INTERVAL)  # in Python, so that signals arrive
        return store.get("apart") == b"yes"

    def _regroup(self) -> None:
        aborts = torch.cuda.is_available()  # each rank its own, and none needs the others' to be closed
        if not aborts:
            self.mesh.leave()
        self._until_all_failed()
        if aborts:
            self.mesh.leave()
        self.mesh.join()
        self.before = self.collectives.begun

    def _until_all_failed(self) -> None:
        store, until = self.store, time.monotonic() + PATIENCE
        while (failed := store.add("failed", 0)) < self.mesh.ranks:
            self.call.check()
            if time.monotonic() > until:
                raise RankLost(f"a sample failed on {failed} of {self.mesh.ranks} ranks, and the others do "
                               "not come out of what they wait in")
            time.sleep(roll_call.INTERVAL)

    def _release_if_told(self) -> None:
        """In the thread of the roll call, while the rank works or waits."""
        if not self.lock.acquire(blocking=False):
            return  # it regroups
        try:
            store = self.store
            if not self.released and store.check(["apart"]) and store.get("apart") == b"yes":
                self.released = True
                self.mesh.release()
        finally:
            self.lock.release()


@contextmanager
def lost_if_it_fails() -> Iterator[None]:
    """Where ranks cannot come together, whatever fails at it, they have lost one another."""
    try:
        yield
    except RankLost:
        raise
    except Exception as error:  # of the store, of the groups, of their keepers
        raise RankLost(f"after a failure, ranks did not come together: {error}") from error
