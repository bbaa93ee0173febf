"""What a process tells of its work: to terminal and log, to the other processes, to the list of failures."""
from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from exit_status import one_line
from rank_log import rank_log
from tally import Tally

from opensora.parallel import rank, world_size
from opensora.pipeline import Sample
from opensora.restarts import end
from opensora.roll_call import RollCall
from opensora.utils.failure_list import FailureList
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest


class RunReport:
    """planned: samples that all processes together are to make.  existing: finished ones that are kept."""

    def __init__(self, config: InferenceConfig, roll_call: RollCall, planned: int, existing: int) -> None:
        self.config, self.roll_call, self.planned = config, roll_call, planned
        self.failures = FailureList(config.save_dir, rank())
        self.started = time.perf_counter()
        self.own = Tally(existing=existing if rank() == 0 else 0)
        self.shown = Tally()

    @property
    def total(self) -> Tally:
        """On rank 0: of all processes, as far as they have told."""
        return sum((Tally(**report) for report in self.roll_call.reports()), Tally())

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def progress(self) -> str:
        return self.total.progress(self.seconds, self.planned)

    def made(self, file: Path, sample: Sample, tally: Tally) -> None:
        line = (f"{file}: computed {tally.computed} of {tally.steps} steps, "
                f"denoising {sample.seconds['denoise']:.1f} s, all {sample.seconds['total']:.1f} s")
        rank_log.info(line)
        if self.config.verbose > 0:
            print(line)
        self._add(tally)

    def cause_of(self, batch: Sequence[SampleRequest], error: Exception) -> str:
        """What led to an error, to this rank's log; returns its cause."""
        rank_log.error("failed: %s", ", ".join(request.file.name for request in batch), exc_info=error)
        if self.config.verbose > 1:
            logging.getLogger("opensora").exception("what led there:", exc_info=error)
        return f"{type(error).__name__}: {one_line(error)}"

    def failed(self, request: SampleRequest, cause: str) -> None:
        print(f"failed: {request.file.name}: {cause}", file=sys.stderr)
        self.failures.add(request, cause)
        self._add(Tally(failed=1))

    def given_up(self, count: int) -> None:
        """Samples that failed before and are not tried again."""
        self._add(Tally(failed=count))

    def split(self, batch: Sequence[SampleRequest], cause: str) -> None:
        """A batch failed, and its samples are made one by one."""
        logging.getLogger("opensora").warning(
            "%s to %s are made one by one, since together they failed: %s",
            batch[0].file.name, batch[-1].file.name, cause)

    def catch_up(self) -> None:
        """On rank 0: tell how far all processes are, where that has changed."""
        total = self.total
        if rank() > 0 or (total.videos, total.failed) == (self.shown.videos, self.shown.failed):
            return
        if total.failed > self.shown.failed:
            self.failures.merge()
        if world_size() > 1 and self.config.verbose > 0:
            print(total.progress(self.seconds, self.planned), flush=True)
        self.shown = total

    def finish(self) -> int:
        """Wait for the other processes, on rank 0 sum up; the exit status of the run, the same on all."""
        self.roll_call.tell(asdict(self.own), done=True)
        if rank() > 0:
            return self.roll_call.until_dismissed()
        for _ in self.roll_call.until_all_are_done():
            self.catch_up()
        self.catch_up()
        self.failures.merge(final=True)
        print(self.total.line(self.seconds, self.config.save_dir), flush=True)
        status = 1 if self.total.failed else 0
        end(status)  # before others leave, which torchrun may take for a reason to start again
        self.roll_call.dismiss(status)
        return status

    def _add(self, tally: Tally) -> None:
        self.own += tally
        self.roll_call.tell(asdict(self.own))
