"""Config files (mmengine): read, overridden from the command line, and checked key by key."""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config


def read_config(path: str | Path, overrides: dict | None = None) -> Config:
    """The config file with `overrides` (`{"model.depth": 4}`) merged in.

    Raises FileNotFoundError, or ValueError for a file that is no config.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config={str(path)!r} does not exist; allowed: a config file such as "
                                "configs/shapes/sample.py")
    try:
        config = Config.fromfile(str(path))
        config.merge_from_dict(overrides or {})
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ValueError(f"config={str(path)!r} does not load: {reason}") from error
    return config


def check_keys(config: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise ValueError for the first key that nothing reads, naming near ones."""
    allowed = sorted(allowed)
    for key in config:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=3) or allowed
            raise ValueError(f"{where}: unknown key {key!r}; allowed: {', '.join(near)}")


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"model": {"depth": 4}}` -> `{"model.depth": "4"}`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        flat |= flattened(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": repr(value)}
    return flat


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
