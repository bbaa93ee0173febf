"""VBench scores of an evaluation's videos: `python scripts/vbench_scores.py FOLDER`.

VBench pins an older torch and transformers, so it lives in an environment of its own, and this file needs
no package of this project:

    python -m venv vbench && vbench/bin/pip install vbench
    vbench/bin/python scripts/vbench_scores.py outputs/eval/NAME
    python scripts/evaluate.py configs/eval/NAME.py --report

It downloads its models on first use.  Scored are those dimensions that need no prompt list of VBench's own;
FOLDER/vbench.json holds the score of each, method by method; the same videos are not scored again.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from fingerprints import fingerprints

DIMENSIONS = ("subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree",
              "aesthetic_quality", "imaging_quality")


def score(videos: Path, dimensions: list[str], device: str) -> dict[str, float]:
    """Of the videos in a folder, the mean of each dimension, 0 to 1."""
    import vbench

    info = Path(vbench.__file__).with_name("VBench_full_info.json")
    with tempfile.TemporaryDirectory() as work:
        only_videos, out = Path(work) / "videos", Path(work) / "scores"
        only_videos.mkdir()
        for file in sorted(videos.glob("*.mp4")):  # it would take the records for videos
            os.symlink(file.resolve(), only_videos / file.name)
        vbench.VBench(device, str(info), str(out)).evaluate(
            videos_path=str(only_videos), name="scores", dimension_list=dimensions, mode="custom_input")
        found = json.loads((out / "scores_eval_results.json").read_text())
    return {dimension: float(found[dimension][0]) for dimension in dimensions}


def run(folder: Path, dimensions: list[str], device: str) -> None:
    methods = sorted(path for path in (folder / "videos").glob("*") if any(path.glob("*.mp4")))
    if not methods:
        raise ValueError(f"{str(folder)!r} has no videos; allowed: a folder of scripts/evaluate.py")
    file = folder / "vbench.json"
    scores = json.loads(file.read_text()) if file.is_file() else {}
    for videos in methods:
        files = fingerprints(videos)
        before = scores.get(videos.name, {})
        known = before["dimensions"] if before.get("videos") == files else {}  # of other videos: old
        missing = [dimension for dimension in dimensions if dimension not in known]
        if not missing:
            continue
        found = {**known, **score(videos, missing, device)}
        scores[videos.name] = {"videos": files, "dimensions": found}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(scores, indent=1) + "\n")
        partial.replace(file)
        print(f"{videos.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dimensions", nargs="+", choices=DIMENSIONS, default=list(DIMENSIONS),
                        metavar="NAME")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    try:
        run(args.folder, args.dimensions, args.device)
    except ImportError as error:
        said = f"needs the package vbench ({error}); allowed: an environment that has it"
    except (ValueError, OSError) as error:
        said = str(error)
    else:
        return 0
    print(f"error: {said}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
