"""What caching costs and what it saves, in seconds of the device.  Marking waits for nothing."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

Mark = float | torch.cuda.Event


class StepClock:
    """Spans of a run by kind: steps "computed" or "reused" as a whole, and "mixed" ones, where some videos
    were due; what was spent on "measuring", inside of computed steps, and on "deciding", after them.

    mixed: the running step is; what is measured in it counts apart.
    """

    KINDS = ("computed", "reused", "mixed", "measuring", "measuring, mixed", "deciding")

    def __init__(self, device: torch.device) -> None:
        self.device, self.mixed = device, False
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

    def measuring(self) -> AbstractContextManager[None]:
        return self.span("measuring, mixed" if self.mixed else "measuring")

    def seconds(self, kind: str) -> list[float]:
        """Waits for the device."""
        spans = self.spans[kind]
        if self.device.type != "cuda":
            return [end - start for start, end in spans]
        if spans:
            spans[-1][1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in spans]

    def bookkeeping(self) -> float | None:
        """What measuring and deciding took, over what else steps did that all videos computed; None without
        such steps."""
        spent = {kind: sum(self.seconds(kind)) for kind in ("computed", "measuring", "deciding")}
        plain = spent["computed"] - spent["measuring"]
        return (spent["measuring"] + spent["deciding"]) / plain if plain else None

    def balance(self) -> tuple[float, float] | None:
        """Seconds (spent on measuring and deciding, saved by not computing all of every step); None where
        every step was computed as a whole, or none."""
        seconds = {kind: self.seconds(kind) for kind in self.KINDS}
        spent = {kind: sum(spans) for kind, spans in seconds.items()}
        computed, partly = len(seconds["computed"]), len(seconds["reused"]) + len(seconds["mixed"])
        if not computed or not partly:
            return None
        plain = (spent["computed"] - spent["measuring"]) / computed  # of a step, had nobody measured
        saved = partly * plain - spent["reused"] - (spent["mixed"] - spent["measuring, mixed"])
        return spent["measuring"] + spent["measuring, mixed"] + spent["deciding"], saved
