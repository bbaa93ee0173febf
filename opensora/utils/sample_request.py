"""The samples that a config asks for: prompt, conditions and place, checked before a model is loaded."""
from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from opensora.datasets.references import read_references
from opensora.datasets.video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.mask_strategy import check_start, parse_mask_strategy
from opensora.utils.prompts import (
    append_score_to_prompts,
    extract_json_from_prompts,
    extract_prompts_loop,
    load_prompts,
    merge_prompt,
    split_prompt,
)
from opensora.utils.sample_path import get_save_path_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One sample.

    prompt: as given, without its JSON.  texts: what the text encoder gets, one per clip.  index: of the
    prompt, in its file; k: number of the sample among those of its prompt.  reference_path, mask_strategy: ""
    is none.  seed: config key; the randomness of a sample depends on seed, index and k alone.  file: where it
    is saved.
    """

    prompt: str
    texts: tuple[str, ...]
    index: int
    k: int
    reference_path: str
    mask_strategy: str
    seed: int
    file: Path

    def random_seed(self, clip: int, purpose: str) -> int:
        """Seed of one random draw of this sample: below 2^63."""
        parts = f"{self.seed},{self.index},{self.k},{clip},{purpose}"
        return int.from_bytes(hashlib.sha256(parts.encode()).digest()[:8], "big") >> 1


def plan_samples(config: InferenceConfig) -> list[SampleRequest]:
    """All samples of a config, prompt by prompt.

    Raises ValueError or FileNotFoundError for malformed prompts, JSON and mask strategies.
    """
    prompts, first = _prompts(config)
    references = _per_prompt("reference_path", config.reference_path, len(prompts))
    strategies = _per_prompt("mask_strategy", config.mask_strategy, len(prompts))
    prompts, references, strategies = extract_json_from_prompts(prompts, references, strategies)
    requests: dict[Path, SampleRequest] = {}
    for position, prompt in enumerate(text.strip() for text in prompts):
        texts = _clip_texts(prompt, config)
        for k in range(config.num_sample):
            request = SampleRequest(
                prompt=prompt, texts=texts, index=first + position, k=k, seed=config.seed,
                reference_path=_reference(references[position], config, first + position, prompt, k),
                mask_strategy=strategies[position],
                file=_file(config.save_dir, config, first + position, prompt, k))
            _check_conditions(request, config)
            if request.file in requests:
                logger.warning("prompt %d and %d are the same, and so is their file %s: one sample is made",
                               requests[request.file].index, request.index, request.file.name)
            requests.setdefault(request.file, request)
    return list(requests.values())


def bad_references(requests: list[SampleRequest], config: InferenceConfig) -> dict[Path, Exception]:
    """Read every reference once, so that a bad one is found before anything is made.

    Returns: file of a sample -> why its reference cannot be used: it is missing, unreadable, empty, or too
    short for the mask strategy.
    """
    lengths: dict[str, list[int]] = {}
    bad: dict[Path, Exception] = {}
    for request in requests:
        try:
            _check_reference(request, config, lengths)
        except (ValueError, OSError) as error:
            bad[request.file] = error
    return bad


def _check_reference(request: SampleRequest, config: InferenceConfig, lengths: dict[str, list[int]]) -> None:
    """lengths: of the references that were read already, in latent frames."""
    path = request.reference_path
    if path not in lengths:
        lengths[path] = [config.latent_frames(x.shape[1]) for x in read_references(path, (16, 16))]
    for loop, index, ref_start, *_ in parse_mask_strategy(request.mask_strategy):
        # the clips made so far come after the given ones; which there are, `_check_conditions` knows
        known = [*lengths[path], *[config.latent_frames(config.clip_frames)] * loop]
        if -len(known) <= index < len(known):
            check_start("ref_start", ref_start, known[index], request.mask_strategy)


def _prompts(config: InferenceConfig) -> tuple[list[str], int]:
    """Prompts, and the index of the first."""
    first = config.start_index or 0
    if config.prompt is None:
        if config.prompt_path is None:
            raise ValueError("prompt is missing; "
                             "allowed: prompt (--prompt TEXT) or prompt_path (--prompt-path FILE)")
        return load_prompts(config.prompt_path, first, config.end_index), first
    if config.end_index is not None:
        raise ValueError(f"end_index={config.end_index} selects lines of a file; "
                         "allowed: with prompt_path only")
    return _texts("prompt", config.prompt), first


def _texts(name: str, value: str | list[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"{name}={value!r}; allowed: a text or a list of texts")
    return list(texts)


def _per_prompt(name: str, value: str | list[str] | None, count: int) -> list[str]:
    values = _texts(name, value or "")
    if len(values) not in (1, count):
        raise ValueError(f"{name} has {len(values)} entries; "
                         f"allowed: 1 for all prompts, or {count}, one per prompt")
    return values if len(values) == count else values * count


def _clip_texts(prompt: str, config: InferenceConfig) -> tuple[str, ...]:
    """The text of each clip, with scores."""
    segments, starts = split_prompt(prompt)
    if starts is not None and starts != sorted(set(starts)):
        raise ValueError(f"malformed prompt segments in {prompt[:100]!r} (clips {starts}); "
                         "allowed: ascending clips")
    scored = append_score_to_prompts(segments, config.aes, config.flow, config.camera_motion)
    return tuple(extract_prompts_loop([merge_prompt(scored, starts)], clip)[0] for clip in range(config.loop))


def _file(
    folder: str, config: InferenceConfig, index: int, prompt: str, k: int, suffix: str | None = None
) -> Path:
    name = get_save_path_name(
        folder, config.sample_name, index, prompt, config.prompt_as_path, config.num_sample, k)
    return Path(name + (suffix or (".png" if config.total_frames == 1 else ".mp4")))


def _reference(path: str, config: InferenceConfig, index: int, prompt: str, k: int) -> str:
    """`path`, or in a folder the picture of this sample: named as the sample, and there or not."""
    if not path or not Path(path).is_dir():
        return path
    names = [_file(path, config, index, prompt, k, suffix) for suffix in IMAGE_EXTENSIONS + VIDEO_EXTENSIONS]
    return str(next((name for name in names if name.is_file()), names[0]))


def _check_conditions(request: SampleRequest, config: InferenceConfig) -> None:
    groups = parse_mask_strategy(request.mask_strategy)
    references = len(request.reference_path.split(";")) if request.reference_path else 0
    if references and not groups:
        raise ValueError(f"reference_path={request.reference_path!r} has no mask_strategy that uses it; "
                         "allowed: a strategy such as '0', which keeps its first frame")
    for loop, index, _, target_start, *_ in groups:
        if loop >= config.loop:
            raise ValueError(f"mask_strategy={request.mask_strategy!r} speaks of clip {loop}; "
                             f"allowed: 0 to {config.loop - 1} (loop={config.loop})")
        clip = config.latent_frames(config.clip_frames)
        check_start("target_start", target_start, clip, request.mask_strategy)
        known = references + loop  # each clip is a reference of the later ones
        if not -known <= index < known:
            allowed = f"0 to {known - 1}" if known else "none, as there is no reference_path"
            raise ValueError(f"mask_strategy={request.mask_strategy!r} asks for reference {index}; "
                             f"allowed: {allowed}")
