"""What caching costs and what it saves, in seconds of the device.  Marking waits for nothing."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

import torch

Mark = float | torch.cuda.Event


class StepClock:
    """Spans of a run by kind: "computed" and "reused" steps (not those that are both), and "decision"."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.spans: dict[str, list[tuple[Mark, Mark]]] = {"computed": [], "reused": [], "decision": []}

    def mark(self) -> Mark:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, kind: str, since: Mark) -> None:
        self.spans[kind].append((since, self.mark()))

    @contextmanager
    def deciding(self) -> Iterator[None]:
        since = self.mark()
        yield
        self.add("decision", since)

    def seconds(self, kind: str) -> list[float]:
        """Waits for the device."""
        if not self.on_cuda:
            return [end - start for start, end in self.spans[kind]]
        if self.spans[kind]:
            self.spans[kind][-1][1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in self.spans[kind]]

    def balance(self) -> tuple[float, float] | None:
        """Seconds (spent on decisions, saved by reused steps); None where no step was reused as a whole."""
        computed, reused = self.seconds("computed"), self.seconds("reused")
        if not computed or not reused:
            return None
        return sum(self.seconds("decision")), len(reused) * (mean(computed) - mean(reused))
