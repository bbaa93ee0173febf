"""The prompts of scripts that find settings, and the flags that choose them."""
from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import DictAction

from opensora.datasets.shapes import held_out_prompts
from opensora.utils.prompts import load_prompts

REPORTED_SEED, REPORTED = 0, 128  # of the held-out prompts on which methods are compared


def add_prompt_flags(parser: argparse.ArgumentParser, prompts: int, prompt_seed: int) -> None:
    """prompts, prompt_seed: the defaults."""
    parser.add_argument("--prompts", type=int, default=prompts, metavar="N")
    parser.add_argument("--prompt-seed", type=int, default=prompt_seed, metavar="N",
                        help="other prompts, to choose settings by; 0 are those that are reported")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="videos together")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")


def add_prompt_file_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt-path", metavar="FILE",
                        help="prompts, one a line, instead of held-out ones of the embedded model")


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE")


def check_unreported(prompt_seed: int) -> None:
    """Raise ValueError for the prompts on which methods are compared: nothing may be chosen by them."""
    if prompt_seed == REPORTED_SEED:
        raise ValueError(f"prompt_seed={prompt_seed}; allowed: any but {REPORTED_SEED}, on whose prompts "
                         "methods are compared")


def unreported_prompts(count: int, seed: int) -> list[str]:
    """Held-out prompts, without those that are drawn for the reported ones, too."""
    reported = set(held_out_prompts(REPORTED, REPORTED_SEED))
    return [prompt for prompt in held_out_prompts(count + REPORTED, seed) if prompt not in reported][:count]


def split_prompts(path: str, count: int, verify: int) -> tuple[list[str], list[str]]:
    """Prompts of a file: the last third, `verify` at most, to try settings on, and of the others the first
    `count`, to find them on.

    Raises ValueError for a file that is not enough for both.
    """
    prompts = load_prompts(path)
    if len(prompts) < 4:
        raise ValueError(f"prompt_path={path!r} holds {len(prompts)} prompts; allowed: 4 or more, to find "
                         "settings on some and to try them on others")
    tried = min(verify, max(2, len(prompts) // 3))
    return prompts[:-tried][:count], prompts[-tried:]
