"""The JSON beside a sample: what was asked for, and what making it took."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opensora.datasets.video_io import save_sample
from opensora.pipeline import Sample
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import SampleRequest
from opensora.utils.whole_file import write_whole


def describe(
    sample: Sample, request: SampleRequest, config: InferenceConfig, config_path: str,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """The record of a sample.  sampling: how its steps were computed, which only the caller knows."""
    _, frames, height, width = sample.video.shape
    return {
        "prompt": request.prompt, "seed": request.seed, "config": config_path, "frames": frames,
        "height": height, "width": width, "fps": config.file_fps, **sampling,
        "seconds": {stage: round(value, 4) for stage, value in sample.seconds.items()},
        "prompt_index": request.index, "sample_index": request.k, "texts": list(dict.fromkeys(request.texts)),
        "reference_path": request.reference_path, "mask_strategy": request.mask_strategy,
    }


def save_with_record(sample: Sample, request: SampleRequest, fps: float, record: dict[str, Any]) -> Path:
    """Write the JSON, then the video (or picture); without the video, the JSON goes again.

    An earlier video goes first: whenever this ends, a record never stands beside another run's video.
    """
    text, path = json.dumps(record, indent=2) + "\n", request.file.with_suffix(".json")
    try:
        request.file.unlink(missing_ok=True)
        write_whole(path, text)
        return save_sample(sample.video, request.file.with_suffix(""), fps=fps)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def is_finished(file: Path) -> bool:
    """A sample is finished where its record stands beside it."""
    return file.exists() and file.with_suffix(".json").exists()
