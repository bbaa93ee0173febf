"""Copy what training wrote into the package: `python scripts/ship_weights.py DIFFUSION_OUT VAE_OUT [TARGET]`.

DIFFUSION_OUT holds transformer/ and text_encoder/, VAE_OUT holds vae/; the transformer is kept in bf16.
"""
import shutil
import sys
from pathlib import Path

import torch
from exit_status import exit_status

import opensora.models  # noqa: F401  registers the models
from opensora.models.stdit.stdit3 import config_of
from opensora.registry import MODELS, build_module
from opensora.utils.weights import packaged_path, save_weights


def ship(diffusion: Path, vae: Path, target: Path) -> None:
    model = build_module(dict(type="STDiT3", from_pretrained=str(diffusion / "transformer")), MODELS)
    save_weights(model, target / "transformer", config_of(model), torch.bfloat16)
    for source, name in ((vae, "vae"), (diffusion, "text_encoder")):
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        given = len(sys.argv) - 1
        print(f"error: {given} arguments; allowed: DIFFUSION_OUT VAE_OUT [TARGET]", file=sys.stderr)
        sys.exit(2)
    places = [Path(p) for p in (*sys.argv[1:], packaged_path("opensora/assets/shapes"))[:3]]
    sys.exit(exit_status(lambda: ship(*places)))
