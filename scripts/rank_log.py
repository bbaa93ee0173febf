"""A log for each process of a torchrun, SAVE_DIR/logs/rank_0.log: warnings, failures, what it made."""
from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

from opensora.parallel import rank, world_size

rank_log = logging.getLogger("rank_log")  # what goes to the log alone
rank_log.addHandler(logging.NullHandler())
rank_log.propagate = False


@contextmanager
def open_rank_log(save_dir: str) -> Iterator[None]:
    """Logs go on where they ended when a run starts again.  A process alone has none."""
    if world_size() == 1:
        yield
        return
    folder = Path(save_dir) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"rank_{rank()}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    rank_log.setLevel(logging.INFO)
    loggers = (rank_log, logging.getLogger())
    for logger in loggers:
        logger.addHandler(handler)
    try:
        rank_log.info("rank %d of %d, process %d on %s", rank(), world_size(), os.getpid(), gethostname())
        yield
    except BaseException as error:
        rank_log.error("ended by %s", type(error).__name__, exc_info=error)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
