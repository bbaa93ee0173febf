"""The transformer computes what the published one computed on the same weights."""
import json

import pytest
import torch
from golden import GOLDEN, assert_close, needs_golden, tensors

from opensora.models.layers.attention import rotate
from opensora.models.layers.embedders import PositionEmbedding2D, timestep_embedding
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config, stdit3_3b_2

pytestmark = needs_golden
CASES = tensors("stdit3_tiny_cases")
META = json.loads((GOLDEN / "stdit3_tiny.json").read_text()) if GOLDEN.exists() else {}
FULL_CASES = ["a_basic", "b_xmask", "c_odd", "d_nomask", "e_cfg", "g_image", "h_tall", "i_timestep_int"]
VARIANTS = ["v_nosigma", "v_noqknorm", "v_rope", "v_skipy"]
ARGUMENTS = ("x", "timestep", "y", "mask", "x_mask", "fps", "height", "width")


def tiny() -> STDiT3:
    model = STDiT3(STDiT3Config(**META["config"])).eval()
    model.load_state_dict(tensors("stdit3_tiny_model"))
    return model


def arguments(case: str) -> dict:
    return {name: CASES[f"{case}.{name}"] for name in ARGUMENTS if f"{case}.{name}" in CASES}


@pytest.mark.parametrize("case", FULL_CASES)
@torch.no_grad()
def test_outputs_in_fp32(case):
    assert_close(tiny()(**arguments(case)), CASES[f"{case}.out"])


@pytest.mark.parametrize("case", ["j_bf16", "j_bf16_xmask"])
@torch.no_grad()
def test_outputs_in_bf16_within_rounding(case):
    out = tiny().to(torch.bfloat16)(**arguments(case))
    assert out.dtype == torch.float32
    assert_close(out, CASES[f"{case}.out"], 3e-2)


@pytest.mark.parametrize("case", VARIANTS)
@torch.no_grad()
def test_other_configurations(case):
    weights = {k.removeprefix(f"{case}.model."): v for k, v in tensors("stdit3_tiny_variants_models").items()
               if k.startswith(f"{case}.model.")}
    model = STDiT3(STDiT3Config(**META["cases"][f"{case}.config"])).eval()
    model.load_state_dict(weights)
    assert_close(model(**arguments(case)), CASES[f"{case}.out"])


@pytest.mark.parametrize("case", ["a_basic", "b_xmask"])
@torch.no_grad()
def test_every_recorded_intermediate(case):
    model, seen = tiny(), {}
    names = [n for n, _ in model.named_modules() if f"{case}.inter.{n}" in CASES]
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda m, a, out, n=name: seen.update({n: out}))
    model(**arguments(case))
    assert {f"spatial_blocks.{i}" for i in range(4)} <= set(seen)
    for name, out in seen.items():
        assert_close(out, CASES[f"{case}.inter.{name}"])


@torch.no_grad()
def test_prepared_conditions_change_nothing():
    model, given = tiny(), arguments("b_xmask")
    y, mask = given.pop("y"), given.pop("mask")
    conditions = model.prepare(y, mask, given["x"].shape[2:], given["height"], given["width"],
                               given["fps"])
    assert torch.equal(model(y=conditions, **given), model(y=y, mask=mask, **given))


def test_position_and_timestep_embeddings():
    for name in [n for n in CASES if n.startswith("pos_embed.")]:
        _, h, w, scale = name.split(".", 3)
        h, w, scale = int(h[1:]), int(w[1:]), float(scale.removeprefix("scale"))
        assert_close(PositionEmbedding2D(64)(h, w, scale, round((h * w) ** 0.5)), CASES[name])
    for dim in (256, 7):
        assert_close(timestep_embedding(CASES["timestep_embedding.t"], dim),
                     CASES[f"timestep_embedding.dim{dim}"])


def test_rotary_embedding():
    x = CASES["rope.in"]  # [B, H, N, D]
    angles = STDiT3(STDiT3Config(**META["config"])).rope(torch.arange(x.shape[2]))[:, ::2]
    for way in (rotate, torch.compile(rotate, backend="eager")):
        assert_close(way(x, (angles.cos(), angles.sin())), CASES["rope.out"])


def test_full_size_names_and_shapes():
    recorded = json.loads((GOLDEN / "stdit3_xl2_keys.json").read_text())
    with torch.device("meta"):
        state = STDiT3(STDiT3Config()).state_dict()
        large = stdit3_3b_2()
    assert ({k: list(v.shape) for k, v in state.items()}
            == {k: v["shape"] for k, v in recorded["state_dict"].items()})
    expected = json.loads((GOLDEN / "stdit3_3b2_summary.json").read_text())["n_params"]
    assert sum(p.numel() for p in large.parameters()) == expected
