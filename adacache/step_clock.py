"""What caching costs and what it saves, in seconds of the device.  Marking waits for nothing."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event


class StepClock:
    """Spans of a run by kind: "computed" and "reused" steps (not those that are both); what was spent on
    "measuring", inside of computed steps, and on "deciding", after them."""

    KINDS = ("computed", "reused", "measuring", "deciding")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: dict[str, list[tuple[Mark, Mark]]] = {kind: [] for kind in self.KINDS}

    def mark(self) -> Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def add(self, kind: str, since: Mark) -> None:
        self.spans[kind].append((since, self.mark()))

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        since = self.mark()
        yield
        self.add(kind, since)

    def seconds(self, kind: str) -> list[float]:
        """Waits for the device."""
        spans = self.spans[kind]
        if self.device.type != "cuda":
            return [end - start for start, end in spans]
        if spans:
            spans[-1][1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in spans]

    def balance(self) -> tuple[float, float] | None:
        """Seconds (spent on measuring and deciding, saved by reused steps); None where no step was reused as
        a whole."""
        seconds = {kind: self.seconds(kind) for kind in self.KINDS}
        computed, reused = seconds["computed"], seconds["reused"]
        if not computed or not reused:
            return None
        measuring = sum(seconds["measuring"])
        plain = (sum(computed) - measuring) / len(computed)  # of a step, had nobody measured
        return measuring + sum(seconds["deciding"]), len(reused) * plain - sum(reused)
