"""Ranks that share a video: where one of them fails at it alone, all give it up and go on with the next.

As where one GPU has less memory left than the others.  These wait for it in a collective that it never comes
to.  So it closes its process groups, at which the others' collectives fail as well; then all meet in
torchrun's store and make new groups.  On gloo a closed connection is enough; on NCCL a waiting rank has to
abort its own communicator, which the thread of its roll call does as soon as it hears of the failure.
"""
from __future__ import annotations

import threading
import time

import torch.distributed as dist

from opensora import roll_call
from opensora.parallel import Mesh
from opensora.roll_call import RankLost, RollCall

ALIKE = 5.0      # seconds within which all ranks meet a failure that is in what they do
PATIENCE = 150.0  # seconds for the others to come out of what they wait in


class Regrouping:
    """Of the ranks of a mesh, however often they fail.  Every one of them has one, for the whole run."""

    def __init__(self, mesh: Mesh, call: RollCall) -> None:
        self.mesh, self.call = mesh, call
        self.failures = 0  # so far, on all ranks alike
        self.released = False
        self.lock = threading.Lock()
        if mesh.ranks > 1:
            call.look = self._release_if_told

    @property
    def store(self) -> dist.Store:
        """Of the running try."""
        return dist.PrefixStore(f"failure/{self.mesh.dp_rank}/{self.failures}", self.call.store)

    def after(self, cause: str, collectives: int) -> str:
        """This rank failed: returns once all ranks of the mesh did, in groups that work.

        collectives: how many it has begun; a failure that all meet after as many left their groups whole.
        Returns the cause of the rank that failed first, the same on all.
        Raises RankLost where another one is lost or does not come, or no new groups can be had.
        """
        if self.mesh.ranks == 1:
            return cause
        store = self.store
        cause = store.compare_set("cause", "", cause).decode()
        store.add(f"after {collectives} collectives", 1)
        store.add("failed", 1)
        apart = self._are_apart(store, f"after {collectives} collectives")
        with self.lock:
            if apart:
                self.mesh.leave()
                self._until_all_failed(store)
                self._rejoin()
            self.failures, self.released = self.failures + 1, False
        return cause

    def _are_apart(self, store: dist.Store, place: str) -> bool:
        """Did some rank fail elsewhere, or not at all?  The first to find out says so for all."""
        until = time.monotonic() + ALIKE
        while not store.check(["apart"]):
            self.call.check()
            if store.add(place, 0) == self.mesh.ranks:
                store.compare_set("apart", "", "no")
            elif time.monotonic() > until:
                store.compare_set("apart", "", "yes")
            else:
                time.sleep(roll_call.INTERVAL)  # in Python, so that signals arrive
        return store.get("apart") == b"yes"

    def _until_all_failed(self, store: dist.Store) -> None:
        until = time.monotonic() + PATIENCE
        while (failed := store.add("failed", 0)) < self.mesh.ranks:
            self.call.check()
            if time.monotonic() > until:
                raise RankLost(f"a sample failed on {failed} of {self.mesh.ranks} ranks, and the others do "
                               "not come out of what they wait in")
            time.sleep(roll_call.INTERVAL)

    def _rejoin(self) -> None:
        try:
            self.mesh.join()
        except (RuntimeError, ValueError) as error:
            raise RankLost(f"after a failure, no new process groups: {error}") from error

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
