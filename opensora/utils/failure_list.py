"""SAVE_DIR/failed.jsonl: the samples that are missing because making them failed, and why.

Each rank appends to a file of its own and rank 0 merges these: on network file systems, lines that several
hosts append to one file clobber one another.  A sample that is being made stands in a file, too, which only a
rank that is killed meanwhile leaves behind: the next run takes it for a failure.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".failed.{self.rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._entry(request, cause)) + "\n")

    @contextmanager
    def standing(self, requests: Sequence[SampleRequest]) -> Iterator[None]:
        """While they are made, for the case that this process is killed."""
        mark = self.folder / f".making.{self.rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = [self._entry(request, "killed: its process ended meanwhile") for request in requests]
        mark.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        try:
            yield
        finally:
            with suppress(OSError):  # of what was made a mark says nothing
                mark.unlink(missing_ok=True)

    def _entry(self, request: SampleRequest, cause: str) -> dict[str, Any]:
        return {"prompt_index": request.index, "sample_index": request.k, "prompt": request.prompt,
                "file": request.file.name, "cause": cause, "rank": self.rank,
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}

    def times(self) -> dict[str, float]:
        """When each sample in the list failed, by file name, in seconds since the epoch."""
        return {entry["file"]: _time(entry) for entry in _entries(self.file)}

    def merge(self, final: bool = False) -> None:
        """On rank 0: make the list tell the present state; without entries there is no file.

        final: no rank makes anything, so that their files can go.
        """
        parts = [*(self.folder.glob(".making.*.jsonl") if final else ()),
                 *self.folder.glob(".failed.*.jsonl")]
        told = (entry for part in (self.file, *parts) for entry in _entries(part))
        entries = {entry["file"]: entry for entry in told if not self._made_since(entry)}
        ordered = sorted(entries.values(), key=lambda entry: (entry["prompt_index"], entry["sample_index"]))
        if ordered:
            write_whole(self.file, "".join(json.dumps(entry) + "\n" for entry in ordered))
        else:
            self.file.unlink(missing_ok=True)
        for part in parts if final else []:
            part.unlink()

    def _made_since(self, entry: Mapping[str, Any]) -> bool:
        """With --overwrite a sample can fail whose earlier video is still there."""
        file = self.folder / entry["file"]
        return is_finished(file) and file.with_suffix(".json").stat().st_mtime >= _time(entry)


def _time(entry: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(entry["time"]).timestamp() if "time" in entry else 0


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # cut off by a kill; its sample is missing and will be tried again
            continue
