"""How a script ends: 0 done, 2 bad input in one line, 130 stopped."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from opensora.agreement import BAD_INPUT


def exit_status(run: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Run `run`, which may return a status, and say what went wrong, once under torchrun.

    Errors of other kinds are defects and keep their traceback.
    """
    try:
        return run() or 0
    except BAD_INPUT as error:
        logging.getLogger("opensora").debug("what led there:", exc_info=True)
        status, last = 2, f"error: {one_line(error)}"
    except KeyboardInterrupt:
        status, last = 130, stopped
    if os.environ.get("RANK", "0") == "0":  # the process group is gone
        print(last, file=sys.stderr)
    return status


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
