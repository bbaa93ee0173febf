"""Prompts as the command line and prompt files give them: scores, segments per clip, JSON at the end."""
from __future__ import annotations

import json
from pathlib import Path

PROMPT_KEYS = ("reference_path", "mask_strategy")
PROMPT_FILE = "allowed: a text file with one prompt a line"
SEGMENTS = "|0| text of clips 0, 1, ... |2| text from clip 2 on"


def load_prompts(
    prompt_path: str | Path, start_idx: int | None = None, end_idx: int | None = None
) -> list[str]:
    """Prompts start_idx ... end_idx - 1 of a UTF-8 text file, one a line; blank lines do not count.

    Raises ValueError for a file that cannot be read or holds no prompts, and for a range that selects none.
    """
    try:
        lines = Path(prompt_path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(
            f"prompt_path={str(prompt_path)!r} cannot be read ({reason}); {PROMPT_FILE}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompt_path={str(prompt_path)!r} holds no prompts; {PROMPT_FILE}")
    chosen = prompts[start_idx:end_idx]
    if not chosen:
        raise ValueError(f"start_index={start_idx}, end_index={end_idx} select no prompt of "
                         f"prompt_path={str(prompt_path)!r}; allowed: 0 to {len(prompts)}")
    return chosen


def append_score_to_prompts(
    prompts: list[str], aes: float | None = None, flow: float | None = None, camera_motion: str | None = None
) -> list[str]:
    """Prompts with the scores that Open-Sora was trained on: aesthetic, motion (optical flow), camera motion.

    A score that a prompt already states, in lower case, is not added again.
    """
    scores = [
        ("aesthetic score:", None if aes is None else f"{aes:.1f}"),
        ("motion score:", None if flow is None else f"{flow:.1f}"),
        ("camera motion:", camera_motion),
    ]
    given = [(name, value) for name, value in scores if value is not None]
    return [
        prompt + "".join(f" {name} {value}." for name, value in given if name not in prompt)
        for prompt in prompts
    ]


def split_prompt(prompt_text: str) -> tuple[list[str], list[int] | None]:
    """Texts of a prompt with segments, and the clip from which each holds; ([prompt], None) without segments.

    Only a prompt that starts with `|0|` has segments.  Raises ValueError where they are malformed.
    """
    segments = _segments(prompt_text)
    if segments is None:
        return [prompt_text], None
    return [text.strip() for _, text in segments], [start for start, _ in segments]


def merge_prompt(text_list: list[str], loop_idx_list: list[int] | None = None) -> str:
    """Inverse of `split_prompt`."""
    if loop_idx_list is None:
        return text_list[0]
    return "".join(f"|{start}|{text}" for start, text in zip(loop_idx_list, text_list, strict=True))


def extract_prompts_loop(prompts: list[str], num_loop: int) -> list[str]:
    """The text of each prompt for clip number `num_loop` (from 0)."""
    return [_text_of_loop(prompt, num_loop) for prompt in prompts]


def extract_json_from_prompts(
    prompts: list[str], reference: list[str], mask_strategy: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """Take the JSON off the end of prompts: `a cat {"reference_path": "cat.png", "mask_strategy": "0"}`.

    reference, mask_strategy: one entry per prompt; what a prompt says replaces its entry there, as published.
    Returns: prompts without JSON, reference, mask_strategy.
    Raises ValueError for malformed JSON and unknown keys, and then changes nothing.
    """
    parsed = [_split_json(prompt) for prompt in prompts]
    for i, (_, info) in enumerate(parsed):
        reference[i] = info.get("reference_path", reference[i])
        mask_strategy[i] = info.get("mask_strategy", mask_strategy[i])
    return [text for text, _ in parsed], reference, mask_strategy


def _segments(prompt: str) -> list[tuple[int, str]] | None:
    if not prompt.startswith("|0|"):
        return None
    pieces = prompt.split("|")[1:]
    starts, texts = pieces[::2], pieces[1::2]
    if len(starts) != len(texts) or not all(start.strip().isdecimal() for start in starts):
        raise ValueError(f"malformed prompt segments in {_quote(prompt)}; allowed: {SEGMENTS}")
    return [(int(start), text) for start, text in zip(starts, texts, strict=True)]


def _text_of_loop(prompt: str, loop: int) -> str:
    segments = _segments(prompt)
    if segments is None:
        return prompt
    ends = [start for start, _ in segments[1:]] + [loop + 1]
    # a segment holds for as many clips as lie before the next one's start, none where starts descend
    clips = [text for (start, text), end in zip(segments, ends, strict=True) for _ in range(end - start)]
    return clips[loop]


def _split_json(prompt: str) -> tuple[str, dict[str, str]]:
    text, brace, rest = prompt.partition("{")
    if not brace:
        return prompt, {}
    problem = None
    try:
        info = json.loads(brace + rest)
    except json.JSONDecodeError as error:
        problem = error.msg
    else:
        if unknown := [key for key in info if key not in PROMPT_KEYS]:
            problem = f"unknown key {unknown[0]!r}"
        elif wrong := [key for key, value in info.items() if not isinstance(value, str)]:
            problem = f"{wrong[0]} is not a string"
    if problem:
        raise ValueError(f"malformed prompt JSON in {_quote(prompt)} ({problem}); "
                         f"allowed: one {{...}} at the end, with string values for {', '.join(PROMPT_KEYS)}")
    return text, info


def _quote(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 100 else f"{prompt[:100]}...")
