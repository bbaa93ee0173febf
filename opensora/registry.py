"""Names in config files -> classes: `dict(type="STDiT3-XL/2", ...)` becomes a model."""
from __future__ import annotations

import difflib
from typing import Any

from mmengine.registry import Registry

MODELS = Registry("model", locations=["opensora.models"])
SCHEDULERS = Registry("scheduler", locations=["opensora.schedulers"])
DATASETS = Registry("dataset", locations=["opensora.datasets"])


def build_module(config: dict | Any, registry: Registry, **defaults: Any) -> Any:
    """Build what `config` describes, or return it unchanged where it is a built object already.

    config: `dict(type=NAME, **keywords)`.  defaults: keywords that `config` may override.
    Raises ValueError for a missing or unknown `type`, naming the near ones.
    """
    if config is None or not isinstance(config, dict):
        return config
    name = config.get("type")
    if registry.get(name or "") is None:
        known = sorted(registry.module_dict)
        near = difflib.get_close_matches(str(name), known, n=3) or known
        raise ValueError(f"{registry.name} type={name!r} is unknown; allowed: {', '.join(near)}")
    return registry.build({**defaults, **config})
