"""The flags of the inference script, and how they override a config."""
from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mmengine.config import DictAction

# a flag that says the same thing in another way takes the config's word back
REPLACES = {"image_size": ("resolution", "aspect_ratio"), "resolution": ("image_size",),
            "aspect_ratio": ("image_size",),
            "prompt": ("prompt_path", "start_index", "end_index"), "prompt_path": ("prompt",)}
# flags that are no top-level key: where they go
PATHS = {"num_sampling_steps": "scheduler.num_sampling_steps", "cfg_scale": "scheduler.cfg_scale",
         "ckpt_path": "model.from_pretrained", "flash_attn": "model.enable_flash_attn",
         "layernorm_kernel": "model.enable_layernorm_kernel"}


class OneLineParser(argparse.ArgumentParser):
    """argparse that raises ValueError for bad flags, naming near ones, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=3) or flags
            self.error(f"unknown argument {unknown[0]!r}; allowed: {', '.join(near)}")
        return parsed


def truth(text: str) -> bool:
    """ "True" and "False", in the spellings that Open-Sora takes."""
    known = {"true": True, "t": True, "yes": True, "y": True, "1": True,
             "false": False, "f": False, "no": False, "n": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: True, False")
    return known[text.lower()]


def inference_parser(description: str) -> OneLineParser:
    """Flags as in Open-Sora v1.2; one that is left out leaves the config as it is."""
    parser = OneLineParser(description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("config", help="config file, such as configs/shapes/sample_adacache.py")
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", nargs="+", metavar="TEXT",
                      help="one or more; may have |0| segments and end in JSON")
    what.add_argument("--prompt-path", metavar="FILE", help="one prompt a line")
    what.add_argument("--start-index", type=int, metavar="N", help="first line of the prompt file, from 0")
    what.add_argument("--end-index", type=int, metavar="N", help="line after the last one")
    what.add_argument("--num-sample", type=int, metavar="N", help="samples of each prompt")
    what.add_argument("--num-frames", metavar="N", help="a number, or a length such as 2s")
    what.add_argument("--resolution", metavar="NAME", help="144p, 240p, 360p, 480p, 720p, 1080p, ...")
    what.add_argument("--aspect-ratio", metavar="H:W", help="9:16 is a wide picture")
    what.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels")
    what.add_argument("--fps", type=int, metavar="N", help="frames per second that the model is told")
    what.add_argument("--loop", type=int, metavar="N", help="clips that continue one another")
    what.add_argument("--reference-path", nargs="+", metavar="PATH",
                      help="FILE;FILE for all prompts, or one per prompt; or a folder")
    what.add_argument("--mask-strategy", nargs="+", metavar="STRATEGY",
                      help="0: the reference is the first frame")
    what.add_argument("--condition-frame-length", type=int, metavar="N",
                      help="latent frames that clips share")
    what.add_argument("--condition-frame-edit", type=float, metavar="RATIO",
                      help="0 keeps them, 1 frees them")
    what.add_argument("--aes", type=float, metavar="SCORE", help="aesthetic score added to prompts")
    what.add_argument("--flow", type=float, metavar="SCORE", help="motion score added to prompts")
    what.add_argument("--camera-motion", metavar="TEXT", help="such as 'pan left', added to prompts")
    how = parser.add_argument_group("how to make it")
    how.add_argument("--seed", type=int, metavar="N")
    how.add_argument("--batch-size", type=int, metavar="N", help="samples made at once")
    how.add_argument("--num-sampling-steps", type=int, metavar="N")
    how.add_argument("--cfg-scale", type=float, metavar="X", help="guidance; 1 is none")
    how.add_argument("--ckpt-path", metavar="PATH", help="transformer weights: file, folder or hub id")
    how.add_argument("--flash-attn", type=truth, metavar="BOOL")
    how.add_argument("--layernorm-kernel", type=truth, metavar="BOOL", help="accepted; torch's is used")
    how.add_argument("--dtype", metavar="NAME", help="fp32, bf16 or fp16")
    how.add_argument("--device", metavar="NAME", help="cuda or cpu; default: cuda where there is one")
    how.add_argument("--offload", action="store_true", help="move each model off the device once it is done")
    how.add_argument("--compile", action="store_true",
                     help="torch.compile the transformer's blocks: pays off after some videos of one size")
    how.add_argument("--sp-size", type=int, metavar="N",
                     help="processes that share a video's tokens; default: all of a node / cfg-size")
    how.add_argument("--cfg-size", type=int, metavar="N",
                     help="2: conditional and unconditional rows on different processes")
    where = parser.add_argument_group("where it goes")
    where.add_argument("--save-dir", metavar="FOLDER")
    where.add_argument("--sample-name", metavar="NAME", help="prefix of file names")
    where.add_argument("--prompt-as-path", action="store_true", help="name files after their prompts")
    where.add_argument("--save-fps", type=int, metavar="N", help="frames per second of the file")
    where.add_argument("--overwrite", action="store_true", help="make samples again that are there already")
    where.add_argument("--verbose", type=int, metavar="N", help="0: errors; 1: progress; 2: all")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE",
                        help="anything else in the config, such as model.depth=4")
    return parser


def overrides(flags: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What `flags` change in `config`, as mmengine merges it: {"scheduler.cfg_scale": 7.0}.

    Raises ValueError for two flags that exclude one another.
    """
    changes = dict(flags.get("cfg_options") or {})
    for flag, value in flags.items():
        if flag in ("config", "cfg_options"):
            continue
        for other in REPLACES.get(flag, ()):
            if other in ("image_size", "prompt", "prompt_path") and other in flags:
                raise ValueError(f"--{_dashed(flag)} and --{_dashed(other)} exclude one another; "
                                 "allowed: one of them")
            if config.get(other) is not None and other not in flags:
                changes[other] = None
        changes[PATHS.get(flag, flag)] = value
    return changes


def _dashed(key: str) -> str:
    return key.replace("_", "-")
