"""Model, sampler and autoencoder alone or on the ranks of a torchrun; `test_parallel.py` compares.

Nothing divides: 3 heads, 5 latent frames, 15 patches in each, 2 videos with captions of different lengths.
"""
from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import SPATIAL, TEMPORAL  # noqa: E402
from torchrun import counted, save_results  # noqa: E402

from adacache import AdaCacheConfig, FixedSchedule, MoRegConfig, Ranks, adaptive_cache  # noqa: E402
from opensora.models.layers.token_split import SP_ATTENTION, TokenRanks  # noqa: E402
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config  # noqa: E402
from opensora.models.vae.vae import OpenSoraVAE  # noqa: E402
from opensora.parallel import ALONE, Mesh, process_group  # noqa: E402
from opensora.schedulers.rf import RFLOW  # noqa: E402

STEPS, VIDEOS, WIDTH, HEADS, BLOCKS = 12, 2, 48, 3, 4
LATENT = (4, 5, 6, 10)  # C, T, h, w
PATCHES = LATENT[2] * LATENT[3] // 4
AMPLITUDES = torch.tensor([0.2, 3.0])  # of noise and caption, so that the videos differ
SIZES = {"fps": 24.0, "height": 48.0, "width": 80.0, "num_frames": 17.0}
PROBES = {"probes": ["temporal_blocks.1.attn"]}
CODEBOOK = [(0.9, 4), (1.1, 3), (1.3, 2), (9.0, 1)]  # within the spread of this model's distances
PUBLISHED = {"do_cache": True, "cache_loc": [1], "codebook": CODEBOOK, "apply_moreg": True,
             "moreg_steps": (2, 10), "num_sampling_steps": STEPS}
RUNS: dict[str, AdaCacheConfig | None] = {
    "uncached": None,
    "published": AdaCacheConfig.from_published(PUBLISHED),
    "moreg": AdaCacheConfig(**PROBES, codebook=CODEBOOK, moreg=MoRegConfig(window=(2, 10), power=1)),
    "forecast": AdaCacheConfig(**PROBES, codebook=CODEBOOK, forecast=2, guard=1.0),
    "schedule": AdaCacheConfig(schedule=FixedSchedule((0, 1, 4, 8), STEPS)),
}


def tiny_model() -> STDiT3:
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(depth=BLOCKS // 2, hidden_size=WIDTH, num_heads=HEADS, caption_channels=16,
                                model_max_length=8))
    for parameter in model.parameters():  # the zeros of the start would hide mistakes
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noise [2, C, T, h, w], captions and null captions [4, 1, 8, 16], caption mask [2, 8]."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((VIDEOS, *LATENT), (VIDEOS, 1, 8, 16), (1, 1, 8, 16))
    z, y, null = (torch.randn(shape, generator=generator) for shape in shapes)
    y = torch.cat([y * AMPLITUDES[:, None, None, None], null.expand(VIDEOS, -1, -1, -1)])
    return z * AMPLITUDES[:, None, None, None, None], y, (torch.arange(8) < torch.tensor([[5], [3]])).long()


def sizes() -> dict[str, Tensor]:
    return {name: torch.full((VIDEOS,), value) for name, value in SIZES.items()}


def sharing(mesh: Mesh, attention: str = "heads") -> TokenRanks | None:
    return None if mesh.sp is None else TokenRanks(mesh.sp, attention)


def forward(mesh: Mesh, frames: int, masked: bool, attention: str, compiled: bool = False) -> Tensor:
    """One call of the model with both kinds of rows."""
    model, (z, y, mask) = tiny_model(), inputs()
    model.token_ranks = sharing(mesh, attention)
    if compiled:
        with mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")):
            model.compile_blocks()
    x_mask = torch.ones(2 * VIDEOS, frames, dtype=torch.bool)
    x_mask[::VIDEOS, 0] = False  # both rows of video 0
    return model(torch.cat([z, z])[:, :, :frames], torch.full((2 * VIDEOS,), 500.0), y, mask,
                 x_mask if masked else None, *(sizes()[name] for name in ("fps", "height", "width")))


def sampled(mesh: Mesh, settings: AdaCacheConfig | None, attention: str = "heads") -> dict[str, Any]:
    """A run with a given frame, and one that joins halfway."""
    model, (z, y, mask), sampler = tiny_model(), inputs(), RFLOW(num_sampling_steps=STEPS, cfg_scale=3.0)
    model.token_ranks = sharing(mesh, attention)
    given = torch.ones(VIDEOS, LATENT[1])
    given[0, 0], given[1, 2] = 0.0, 0.5

    def run() -> Tensor:
        torch.manual_seed(0)
        return sampler.denoise(model, z, y, mask, "cpu", sizes(), given, 3.0, cfg_ranks=mesh.cfg)

    with counted() as calls:
        if settings is None:
            return {"z": run(), "calls": calls}
        with adaptive_cache(model, settings, STEPS, Ranks(mesh.video, mesh.cfg)) as session:
            return {"z": run(), "trace": session.trace.to_json(), "calls": calls}


def decoded(mesh: Mesh, frames: int) -> Tensor:
    torch.manual_seed(0)
    vae = OpenSoraVAE(SPATIAL, TEMPORAL).eval()
    z = torch.randn(VIDEOS, 4, vae.get_latent_size((frames, 0, 0))[0], 4, 6)
    return vae.decode(z, frames, mesh.video)


def refused(mesh: Mesh) -> str:
    model, (_, y, mask) = tiny_model(), inputs()
    model.token_ranks = sharing(mesh)
    try:
        model.prepare(y, mask, (5, 2, 2), *(sizes()[name] for name in ("height", "width", "fps")))
    except ValueError as error:
        return str(error)
    return "prepared"


@torch.no_grad()
def results(mesh: Mesh = ALONE) -> dict[str, Any]:
    return {
        "forward": {(frames, masked, attention): forward(mesh, frames, masked, attention)
                    for frames in (5, 1) for masked in (False, True) for attention in SP_ATTENTION},
        "compiled": {by: forward(mesh, 5, True, by, compiled=True) for by in SP_ATTENTION},
        "sampled": {name: sampled(mesh, settings) for name, settings in RUNS.items()},
        "sampled by frames": sampled(mesh, RUNS["published"], "frames"),
        "decoded": {frames: decoded(mesh, frames) for frames in (40, 1)},  # chunks of 17, 17 and 6; 1
        "refused": refused(mesh),
    }


def main(folder: Path) -> None:
    with process_group():
        meshes = {"sp": Mesh.of(None, 1), "cfg": Mesh.of(None, 2), "dp": Mesh.of(1, 1), "half": Mesh.of(1, 2)}
        found: dict[str, Any] = {name: results(meshes[name]) for name in ("sp", "cfg")}
        found["places"] = {name: (mesh.dp_size, mesh.dp_rank, mesh.is_first) for name, mesh in meshes.items()}
        save_results(found, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
