"""Weights from a folder or hub id in Hugging Face layout, or from one file.  Loaded whole or not at all."""
from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import opensora

WEIGHT_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin",
                "model.pt", "ema.pt", "model_ckpt.pt")
INDEX_NAMES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json",
               "pytorch_model.bin.index.json")
ALLOWED = "a weights file, a folder with config.json and weights, or a hub id"
PACKAGED = "opensora/assets/"  # sources that begin so come with the package


def packaged_path(source: str) -> str:
    """`opensora/assets/...` -> that path in the installed package, from any folder; else unchanged."""
    return str(Path(opensora.__file__).parents[1] / source) if source.startswith(PACKAGED) else source


def local_path(source: str) -> Path | None:
    """Local file or folder of `source`; None where there is none but it may be a hub id (`owner/name`).

    Raises FileNotFoundError where it can be neither.
    """
    path = Path(packaged_path(source)).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or source.count("/") != 1 or path.suffix in {".pt", ".pth", ".bin", ".safetensors"}:
        raise FileNotFoundError(f"from_pretrained={source!r} does not exist; allowed: {ALLOWED}")
    return None


def find_weights(source: str, local_files_only: bool = False, cache_dir: str | None = None) -> Path:
    """Local file or folder of `source`, fetched from the hub where it is an id (`owner/name`).

    Raises FileNotFoundError where there is neither.
    """
    path = local_path(source)
    if path is not None:
        return path
    try:
        return Path(snapshot_download(source, local_files_only=local_files_only, cache_dir=cache_dir))
    except Exception as error:
        reason = str(error).splitlines()[0][:160]
        raise FileNotFoundError(f"from_pretrained={source!r} is no local path, and the hub did not give it "
                                f"({type(error).__name__}: {reason}); allowed: {ALLOWED}") from error


def read_config(source: str, local_files_only: bool = False, cache_dir: str | None = None) -> dict:
    """config.json of `source`, or {} where it has none."""
    path = find_weights(source, local_files_only, cache_dir)
    file = (path if path.is_dir() else path.parent) / "config.json"
    return json.loads(file.read_text()) if file.exists() else {}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, or of a folder with one file or a sharded index (also one that a booster saved)."""
    if path.is_dir():
        folders = [path, path / "model", path / "ema"]
        for file in (f / n for f in folders for n in INDEX_NAMES):
            if file.exists():
                shards = set(json.loads(file.read_text())["weight_map"].values())
                return {k: v for s in sorted(shards) for k, v in read_state_dict(file.parent / s).items()}
        found = next((f / n for f in folders for n in WEIGHT_NAMES if (f / n).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"no weights in {str(path)!r}; "
                                    f"looked for {', '.join(WEIGHT_NAMES)} or an index")
        path = found
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{str(path)!r} is no readable weights file ({type(error).__name__}); "
                         f"allowed: {ALLOWED}") from error


def load_weights(model: nn.Module, source: str, local_files_only: bool = False, cache_dir: str | None = None,
                 optional: tuple[str, ...] = ()) -> None:
    """Copy the weights of `source` into `model`, strictly.

    optional: names that older checkpoints may lack or have in excess.
    Raises ValueError listing the first few names that are missing, unexpected or of another shape.
    """
    state = read_state_dict(find_weights(source, local_files_only, cache_dir))
    own = model.state_dict()
    problems = [f"missing {k}" for k in own if k not in state and k not in optional]
    problems += [f"unexpected {k}" for k in state if k not in own and k not in optional]
    problems += [f"{k} is {list(state[k].shape)}, the model's {list(own[k].shape)}"
                 for k in own if k in state and state[k].shape != own[k].shape]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"from_pretrained={source!r} does not fit {type(model).__name__}: "
                         f"{'; '.join(problems[:4])}{more}")
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def save_weights(model: nn.Module, folder: Path, config: dict, dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors and config.json (Hugging Face layout) whole: aside, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: (v.to(dtype) if dtype and v.is_floating_point() else v).detach().cpu().contiguous()
             for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors.part")
    os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
    part = folder / "config.json.part"
    part.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(part, folder / "config.json")
