"""results.json as a table: Markdown, CSV, and for the terminal."""
from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from evaluation.summary import PAIRED

Results = Mapping[str, Any]


def shown_metrics(results: Results) -> dict[str, Mapping[str, Any]]:
    """Those with numbers, measured or published."""
    published = set().union(*(row.get("published", {}) for row in results["methods"].values()))
    return {name: how for name, how in results["metrics"].items()
            if "missing" not in how or name in published}


def missing_sentences(results: Results) -> list[str]:
    return [how["missing"] for how in results["metrics"].values() if "missing" in how]


def cell(row: Mapping[str, Any], name: str, digits: int) -> str:
    """`42.5 ± 0.9 [41.0]`, the last a paper's; empty where the method has no such number."""
    parts = []
    if name in row["mean"]:
        spread = row["interval"].get(name, 0)
        parts.append(f"{row['mean'][name]:.{digits}f}")
        parts += [f"± {spread:.{digits}f}"] if round(spread, digits) > 0 else []
    if name in row.get("published", {}):
        parts.append(f"[{row['published'][name]:.{digits}f}]")
    return " ".join(parts)


def gain_cell(row: Mapping[str, Any]) -> str:
    """Difference of the PSNR, video by video: `+4.1 ± 0.6 to uniform reuse, 2.5x`."""
    gain = row.get("against", {}).get("psnr")
    return "" if gain is None else \
        f"{gain['mean']:+.1f} ± {gain['interval']:.1f} to {row['against']['method']}"


def rows(results: Results, methods: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells.  methods: of the results, or of one of their groups."""
    metrics = shown_metrics(results)
    heads = ["method", *(how["label"] for how in metrics.values())]
    cells = [[name, *(cell(row, m, how["digits"]) for m, how in metrics.items())]
             for name, row in methods.items()]
    if len({row["videos"] for row in methods.values()}) > 1:  # some are still to be made
        heads.insert(1, "videos")
        for line, row in zip(cells, methods.values(), strict=True):
            line.insert(1, str(row["videos"]))
    if any("against" in row for row in methods.values()):
        heads.append("PSNR, video by video")
        gains = map(gain_cell, methods.values())
        cells = [[*line, gain] for line, gain in zip(cells, gains, strict=True)]
    return heads, cells


def tables(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Caption and methods: of all videos, then of each group."""
    groups = [(group_caption(name, group), group["methods"]) for name, group in results["groups"].items()]
    return [(caption(results), results["methods"]), *groups]


def markdown(results: Results) -> str:
    parts = []
    for text, methods in tables(results):
        heads, cells = rows(results, methods)
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in (heads, *cells)]
        lines = ["| " + " | ".join(line) + " |" for line in escaped]
        lines.insert(1, "|---" * len(heads) + "|")
        parts += [text, "", *lines, ""]
    return "\n".join([*parts, *(f"{text}\n" for text in missing_sentences(results))])


def group_caption(name: str, group: Mapping[str, Any]) -> str:
    return f"{name}: {len(group['prompts'])} of these prompts."


def caption(results: Results) -> str:
    prompts, seeds = len(results["prompts"]), len(results["seeds"])
    parts = [f"`{results['config']}`: {prompts} prompts, {seeds} seeds, {prompts * seeds} videos a method",
             f"{results['num_steps']} steps", "mean, of times the median, ± 95 % interval"]
    if any("published" in row for row in results["methods"].values()):
        parts.append("in brackets what was published")
    return "; ".join(parts) + "."


def as_csv(results: Results) -> str:
    """One line per method: mean, interval and published number of each metric, in full, and the differences
    to the method that it is compared with."""
    metrics, text = list(shown_metrics(results)), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [f"{m}{suffix}" for m in metrics for suffix in ("", "_interval", "_published")]
    pairs = [f"{m}_difference{suffix}" for m in PAIRED for suffix in ("", "_interval")]
    writer.writerow(["method", "family", "videos", *heads, "against", *pairs])
    for name, row in results["methods"].items():
        numbers = [part.get(m, "") for m in metrics
                   for part in (row["mean"], row["interval"], row.get("published", {}))]
        against = row.get("against", {})
        gains = [against.get(m, {}).get(part, "") for m in PAIRED for part in ("mean", "interval")]
        writer.writerow([name, row["family"], row["videos"], *numbers, against.get("method", ""), *gains])
    return text.getvalue()


def terminal(results: Results) -> Table:
    """Of all videos; the groups' tables are in the Markdown."""
    heads, cells = rows(results, results["methods"])
    shown = Table(*heads, title=caption(results).replace("`", ""))
    for line in cells:
        shown.add_row(*line)
    return shown
