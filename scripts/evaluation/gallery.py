"""The page of an evaluation: its table, its pictures, and the videos of all methods side by side, in step."""
from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import av

from evaluation.figures import family_colours, mean_psnr
from evaluation.tables import missing_sentences, shown_metrics
from opensora.utils.whole_file import write_whole

PICTURES = {"quality_latency.png": "PSNR against the speed-up of denoising, one curve per family of methods",
            "timelines.png": "which denoising steps each method computes"}
ABSENT = "–"
DEFAULT_FPS = 24.0  # of a page without videos


def write_gallery(results: Mapping[str, Any], folder: Path, prompts: int) -> Path:
    """Writes folder/gallery.html, which needs no other file: videos and pictures are in it.

    results: those of results.json.  folder: where their videos are, and the pictures of `figures`, if any.
    prompts: of how many (prompt, seed) pairs the videos are shown.  <body> reports in data-videos,
    data-playing and data-errors how many videos there are, have played and cannot be played.
    """
    names = ordered_methods(results)
    rows = first_pairs(results, prompts)
    files = [clip_file(video, folder) for row in rows for video in row.values()]
    clips = [file for file in files if file is not None and file.suffix != ".png"]
    fps = clip_size(clips[0])[2] if clips else DEFAULT_FPS
    title = f"Evaluation: {results['config']}"
    page = Template(own_file("gallery.html")).substitute(
        title=escape(title), about=escape(about(results, len(rows))), style=own_file("gallery.css"),
        script=own_file("gallery.js"), videos=len(clips), fps=fps,
        summary=summary_table(results, names), pictures=pictures(folder), choices=choices(results, names),
        rows="\n".join(prompt_row(row, results, names, folder) for row in rows))
    path = folder / "gallery.html"
    write_whole(path, page)
    return path


def own_file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def ordered_methods(results: Mapping[str, Any]) -> list[str]:
    """As in the results, but the uncached one, which has no PSNR to itself, first."""
    methods = results["methods"]
    return sorted(methods, key=lambda name: mean_psnr(methods[name]) is not None)


def first_pairs(results: Mapping[str, Any], count: int) -> list[dict[str, Mapping[str, Any]]]:
    """For each of the first pairs of prompt and seed: its videos, by method."""
    pairs: dict[tuple[int, int], dict[str, Mapping[str, Any]]] = {}
    for video in results["videos"]:
        pair = (video["prompt_index"], results["seeds"].index(video["seed"]))
        pairs.setdefault(pair, {})[video["method"]] = video
    return [pairs[pair] for pair in sorted(pairs)[:count]]


def clip_file(video: Mapping[str, Any], folder: Path) -> Path | None:
    return folder / video["file"] if video.get("file") and (folder / video["file"]).is_file() else None


def clip_size(file: Path) -> tuple[int, int, float]:
    """Width, height, frames per second."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, float(stream.average_rate or DEFAULT_FPS)


def about(results: Mapping[str, Any], shown: int) -> str:
    counts = [(results["num_steps"], "step"), (len(results["methods"]), "method"),
              (len(results["prompts"]), "prompt"), (len(results["seeds"]), "seed")]
    parts = [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts]
    pairs = "pair" if shown == 1 else f"{shown} pairs"
    table = "Table: mean, of times the median, ± 95 % interval."
    return f"{', '.join(parts)}. {table} Videos: the first {pairs} of prompt and seed."


def number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return ABSENT
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def summary_table(results: Mapping[str, Any], names: Sequence[str]) -> str:
    """Methods x metrics; under it a sentence for each metric that could not be measured."""
    metrics, colours = shown_metrics(results), family_colours(results)
    heads = "".join(f"<th>{escape(metric['label'])}</th>" for metric in metrics.values())
    lines = [f"<thead><tr><th>method</th><th>videos</th>{heads}</tr></thead>"]
    for name in names:
        method = results["methods"][name]
        cells = "".join(f"<td>{mean_cell(method, key, m['digits'])}</td>" for key, m in metrics.items())
        lines.append(f"<tr><th>{dot(colours[method['family']])}{escape(name)}</th>"
                     f"<td>{method['videos']}</td>{cells}</tr>")
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in missing_sentences(results))
    table = "\n".join(lines)
    return f'<div class="table"><table>{table}</table></div>\n<ul class="notes">{notes}</ul>'


def mean_cell(method: Mapping[str, Any], key: str, digits: int) -> str:
    """`31.4 ± 0.5`; without an interval that rounds to 0."""
    mean, interval = method["mean"].get(key), method["interval"].get(key, 0.0)
    shown = number(mean, digits)
    if mean is None or not math.isfinite(interval) or round(interval, digits) == 0:
        return shown
    return f"{shown} <i>± {interval:.{digits}f}</i>"


def dot(colour: str) -> str:
    return f'<span class="dot" style="--family: {colour}"></span>'


def pictures(folder: Path) -> str:
    images = "".join(f'<img src="{data_uri(folder / name, "image/png")}" alt="{alt}">\n'
                     for name, alt in PICTURES.items() if (folder / name).is_file())
    return f'<div class="pictures">{images}</div>' if images else ""


def data_uri(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def choices(results: Mapping[str, Any], names: Sequence[str]) -> str:
    colours = family_colours(results)
    return "\n".join(f'<label><input type="checkbox" value="{i}" checked>'
                     f'{dot(colours[results["methods"][name]["family"]])}{escape(name)}</label>'
                     for i, name in enumerate(names))


def prompt_row(row: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any], names: Sequence[str],
               folder: Path) -> str:
    any_video = next(iter(row.values()))
    clips = "\n".join(clip(i, row[name], results, folder) for i, name in enumerate(names) if name in row)
    return (f"<section><h2>{escape(any_video['prompt'])}<small>seed {any_video['seed']}</small></h2>\n"
            f'<div class="clips">\n{clips}\n</div></section>')


def clip(index: int, video: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> str:
    """A video with its method's name, its schedule and its numbers."""
    name = video["method"]
    colour = family_colours(results)[results["methods"][name]["family"]]
    return (f'<figure data-method="{index}">{player(clip_file(video, folder))}\n'
            f"<figcaption>{dot(colour)}{escape(name)}</figcaption>\n"
            f"{strip(video)}\n{clip_numbers(video, results)}</figure>")


def player(file: Path | None) -> str:
    """Of a video, or of the picture that a run of one frame makes."""
    if file is None:
        return '<div class="absent">no video</div>'
    width, height, _ = clip_size(file)
    size = f'width="{width}" height="{height}"'
    if file.suffix == ".png":
        return f'<img alt="" {size} src="{data_uri(file, "image/png")}">'
    return f'<video muted playsinline preload="auto" {size} src="{data_uri(file, "video/mp4")}"></video>'


def strip(video: Mapping[str, Any]) -> str:
    """The schedule as SVG: a cell per step, filled where it was computed, half filled where in part."""
    steps, computed, partly = video["num_steps"], video["computed_steps"], video.get("partly", ())
    cells = [f'<rect x="{step}" width=".86" height="1"/>' for step in range(steps)]
    cells += [f'<rect class="computed" x="{step}" width=".86" height="1"/>' for step in computed]
    cells += [f'<rect class="partly" x="{step}" y=".5" width=".86" height=".5"/>' for step in partly]
    label = f"computed steps: {', '.join(map(str, computed))}"
    return (f'<svg class="strip" viewBox="0 0 {steps - 0.14} 1" preserveAspectRatio="none" role="img" '
            f'aria-label="{label}"><title>{label}</title>{"".join(cells)}</svg>')


def clip_numbers(video: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Steps and speed-up first, then what else was measured on this video."""
    metrics, values = shown_metrics(results), dict(video["metrics"])
    values.pop("computed", None)  # the first line says it
    speedup = number(values.pop("speedup", None), 2)
    lines = [f'<dt class="first">{len(video["computed_steps"])} of {video["num_steps"]} steps</dt>'
             f'<dd class="first">{"" if speedup == ABSENT else f"speed-up {speedup}×"}</dd>']
    lines += [f"<dt>{escape(metric['label'])}</dt><dd>{number(values[key], metric['digits'])}</dd>"
              for key, metric in metrics.items() if key in values]
    return f"<dl>{''.join(lines)}</dl>"
