"""Where a sample is saved."""
from __future__ import annotations

import hashlib
import os
import re

LONGEST_PROMPT = 160  # bytes; leaves room within the 255 of a file name for prefix, number and suffix
_UNSAFE = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')


def get_save_path_name(
    save_dir: str | os.PathLike[str],
    sample_name: str | None = None,
    sample_idx: int | None = None,
    prompt: str | None = None,
    prompt_as_path: bool = False,
    num_sample: int = 1,
    k: int | None = None,
) -> str:
    """Path of a sample without its suffix: `DIR/sample_0003` or `DIR/PROMPT`, then `-k` where num_sample > 1.

    sample_name: prefix; default "sample", or nothing with prompt_as_path.  A prompt that is no file name
    (with slashes, control characters or a leading dot, too long, empty) is made one, with a checksum that
    keeps such names apart.
    """
    if prompt_as_path:
        name = (sample_name or "") + _file_name(prompt or "")
    else:
        name = f"{'sample' if sample_name is None else sample_name}_{sample_idx:04d}"
    if num_sample != 1:
        name += f"-{k}"
    return os.path.join(save_dir, name)


def _file_name(prompt: str) -> str:
    name = _UNSAFE.sub("_", prompt)
    if name.startswith("."):
        name = f"_{name[1:]}"
    name = name.encode()[:LONGEST_PROMPT].decode(errors="ignore").strip() or "prompt"
    if name == prompt:
        return name
    return f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
