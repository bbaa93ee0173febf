"""Files that appear whole or not at all: written aside, then renamed."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = re.compile(r"\.(?P<name>.+)\.\d+\.partial")  # .NAME.PROCESS.partial


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` at the end; an error or Ctrl-C removes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sweep_partials(folder: Path, names: set[str]) -> None:
    """Remove what killed processes left of the files `names`; those of other runs in `folder` stay."""
    for path in folder.glob(".*.partial"):
        if (found := _PARTIAL.fullmatch(path.name)) and found["name"] in names:
            path.unlink(missing_ok=True)  # another process may have been faster
