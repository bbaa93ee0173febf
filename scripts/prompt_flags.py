"""The prompts of scripts that find settings, and the flags that choose them."""
from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import DictAction

from opensora.datasets.shapes import held_out_prompts
from opensora.utils.prompts import load_prompts

REPORTED_SEED, REPORTED = 0, 128  # of the held-out prompts on which methods are compared
VERIFIED_SEED = 2  # of those on which settings are tried; those they are found on have another


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


def add_verify_flag(parser: argparse.ArgumentParser, verify: int) -> None:
    parser.add_argument("--verify", type=int, default=verify, metavar="N",
                        help="other prompts, on which settings are tried")


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE")


def check_prompt_flags(args: argparse.Namespace) -> None:
    """Raise ValueError for too few prompts, and for those that are for something else."""
    if args.prompts < 2 or args.verify < 2:
        raise ValueError(f"prompts={args.prompts}, verify={args.verify}; allowed: 2 or more of each")
    if args.prompt_seed == REPORTED_SEED:
        raise ValueError(f"prompt_seed={args.prompt_seed}; allowed: any but {REPORTED_SEED}, on whose "
                         "prompts methods are compared")
    if args.prompt_seed == VERIFIED_SEED:
        raise ValueError(f"prompt_seed={args.prompt_seed}; allowed: any but {VERIFIED_SEED}, on whose "
                         "prompts the settings are tried")


def chosen_prompts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """To find settings on, and to try them on; none of them is reported."""
    if args.prompt_path is not None:
        return split_prompts(args.prompt_path, args.prompts, args.verify)
    return (unreported_prompts(args.prompts, args.prompt_seed),
            unreported_prompts(args.verify, VERIFIED_SEED))


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
