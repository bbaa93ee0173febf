"""A progress bar over denoising steps: how many, how many of them computed, how many reused."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_choice import computed_so_far
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from opensora.utils.sample_request import SampleRequest


class StepBar(Progress):
    """One line per batch, replaced by the files that it gave."""

    def __init__(self, visible: bool) -> None:
        console = Console(stderr=True)
        super().__init__(
            TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} steps, {task.fields[computed]} computed, "
                       "{task.fields[reused]} reused"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
            disable=not (visible and console.is_terminal))
        self.batch = self.add_task("", visible=False, computed=0, reused=0)

    def start_batch(self, requests: Sequence[SampleRequest], steps: int, progress: str = "") -> None:
        """steps: of all clips together.  progress: of the whole run, shown in front."""
        more = f" and {len(requests) - 1} more" if len(requests) > 1 else ""
        self.earlier = 0  # computed steps of the batch's finished runs
        before = f"{progress}; " if progress else ""
        self.reset(self.batch, description=before + requests[0].file.name[:40] + more, total=steps,
                   visible=True, computed=0, reused=0)

    def step(self, step: int, steps: int, session: Any) -> None:
        """After step number `step` (from 1) of a run of `steps`."""
        computed = self.earlier + (step if session is None else computed_so_far(session))
        done = self.tasks[0].completed + 1
        self.update(self.batch, advance=1, total=max(done, self.tasks[0].total), computed=computed,
                    reused=int(done) - computed)
        if step == steps:
            self.earlier = computed
