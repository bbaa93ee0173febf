"""The flags of scripts that run held-out prompts of the embedded model."""
from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import DictAction


def add_prompt_flags(parser: argparse.ArgumentParser, prompts: int, prompt_seed: int) -> None:
    """prompts, prompt_seed: the defaults."""
    parser.add_argument("--prompts", type=int, default=prompts, metavar="N")
    parser.add_argument("--prompt-seed", type=int, default=prompt_seed, metavar="N",
                        help="other prompts, to choose settings by; 0 are those that are reported")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="videos together")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE")
