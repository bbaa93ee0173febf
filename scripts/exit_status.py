"""How a script ends: 0 done, 2 bad input in one line, 130 stopped."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from opensora.agreement import BAD_INPUT


def exit_status(run: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Run `run`, which may return a status, and say what went wrong: under torchrun on each rank that met it,
    but what `read_alike` found once.

    Errors of other kinds are defects and keep their traceback.
    """
    rank = os.environ.get("RANK", "0")  # the process group is gone when it is asked for
    try:
        return run() or 0
    except BAD_INPUT as error:
        logging.getLogger("opensora").debug("what led there:", exc_info=True)
        if rank == "0":
            print(f"error: {one_line(error)}", file=sys.stderr)
        elif not getattr(error, "met_by_all", False):
            print(f"error on rank {rank}: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if rank == "0":
            print(stopped, file=sys.stderr)
        return 130


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
