"""SAVE_DIR/failed.jsonl: the samples that are missing because making them failed, and why.

Each rank appends to a file of its own and rank 0 merges these: on network file systems, lines that several
hosts append to one file clobber one another.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from opensora.utils.sample_record import is_finished
from opensora.utils.sample_request import SampleRequest
from opensora.utils.whole_file import write_whole


class FailureList:
    """The list of a folder, as seen from one rank; one run at a time uses a folder's."""

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.folder, self.rank = Path(folder), rank
        self.file = self.folder / "failed.jsonl"

    def add(self, request: SampleRequest, cause: str) -> None:
        """cause: `Type: message`."""
        entry = {"prompt_index": request.index, "sample_index": request.k, "prompt": request.prompt,
                 "file": request.file.name, "cause": cause, "rank": self.rank,
                 "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".failed.{self.rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def names(self) -> list[str]:
        """Of the files of all samples in the list."""
        return [entry["file"] for entry in _entries(self.file)]

    def merge(self, final: bool = False) -> None:
        """On rank 0: make the list tell the present state; without entries there is no file.

        final: no rank adds any more, so that their files can go.
        """
        parts = list(self.folder.glob(".failed.*.jsonl"))
        entries = {entry["file"]: entry for entry in _entries(self.file)
                   if not is_finished(self.folder / entry["file"])}
        # with --overwrite a sample can fail whose earlier video is still there
        entries |= {entry["file"]: entry for part in parts for entry in _entries(part)}
        ordered = sorted(entries.values(), key=lambda entry: (entry["prompt_index"], entry["sample_index"]))
        if ordered:
            write_whole(self.file, "".join(json.dumps(entry) + "\n" for entry in ordered))
        else:
            self.file.unlink(missing_ok=True)
        for part in parts if final else []:
            part.unlink()


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # cut off by a kill; its sample is missing and will be tried again
            continue
