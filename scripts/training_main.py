"""What the training scripts share: arguments, config, process group, logging, one-line errors."""
from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Callable, Iterable

from exit_status import exit_status
from mmengine.config import Config, DictAction
from rich.console import Console
from rich.logging import RichHandler

from opensora.agreement import read_alike
from opensora.parallel import process_group, rank
from opensora.utils.config import check_keys, flattened, read_config


def training_main(description: str, keys: Callable[[Config], Iterable[str]],
                  train: Callable[[Config], None]) -> int:
    """Run `train` with the config that the command line names.  keys: those that it may have.

    Returns the exit status: 0, 2 for bad input, 130 for Ctrl-C (after a checkpoint, which `train` writes).
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun passes Ctrl-C on as SIGTERM

    def run() -> None:
        with process_group():
            config = read_alike(lambda: checked_config(args, keys), lambda read: flattened(read.to_dict()))
            level = logging.INFO if rank() == 0 else logging.WARNING
            handler = RichHandler(show_path=False, console=Console(stderr=True, soft_wrap=True))
            logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
            train(config)

    return exit_status(run, stopped="stopped; the same command goes on from the last checkpoint")


def checked_config(args: argparse.Namespace, keys: Callable[[Config], Iterable[str]]) -> Config:
    config = read_config(args.config, args.cfg_options)
    allowed = keys(config)
    check_keys(config, allowed, args.config)
    if missing := sorted(set(allowed) - set(config)):
        raise ValueError(f"{args.config}: {missing[0]} is missing; allowed: a config with all of "
                         f"{', '.join(sorted(allowed))}")
    return config
