"""The autoencoder computes what the published one computed on the same weights."""
import json

import pytest
import torch
from golden import GOLDEN, assert_close, needs_golden, tensors

from opensora.models.vae.temporal import CausalConv3d, TemporalVAE
from opensora.models.vae.vae import OpenSoraVAE

pytestmark = needs_golden
CASES = tensors("vae_cases")
META = json.loads((GOLDEN / "vae.json").read_text()) if GOLDEN.exists() else {}


def tiny(weights: bool = True, **kwargs) -> OpenSoraVAE:
    config = {"micro_frame_size": 17, "micro_batch_size": 4} | kwargs
    model = OpenSoraVAE(META["kl_config"], META["temporal_config"], **config).eval()
    if weights:
        model.load_state_dict(tensors("vae_tiny_model"))
    return model


@pytest.fixture(scope="module")
def vae() -> OpenSoraVAE:
    return tiny()


@pytest.mark.parametrize("case", ["f17", "f34", "f20", "f1", "f5", "f51", "b2"])
@torch.no_grad()
def test_encodes_and_decodes_as_published(vae, case):
    x = CASES[f"{case}.x"]
    z = vae.encode(x, sample=False)
    assert_close(z, CASES[f"{case}.encode_mean"])
    start = CASES.get(f"{case}.z", CASES[f"{case}.encode_mean"])
    assert_close(vae.decode(start, x.shape[2]), CASES[f"{case}.decode"])


@torch.no_grad()
def test_the_2d_part_alone_as_published(vae):
    assert_close(vae.spatial_vae.encode(CASES["f20.x"], sample=False), CASES["f20.spatial_encode_mean"])


@torch.no_grad()
def test_sampling_draws_the_published_numbers(vae):
    torch.manual_seed(META["f20_sampled"]["seed"])
    assert_close(vae.encode(CASES["f20.x"]), CASES["f20_sampled.out"])


@torch.no_grad()
def test_without_micro_frames():
    vae = tiny(micro_frame_size=None)
    z = vae.encode(CASES["f20.x"], sample=False)
    assert_close(z, CASES["f20_nomicro.encode_mean"])
    assert_close(vae.decode(z, 20), CASES["f20_nomicro.decode"])


@torch.no_grad()
def test_one_number_as_shift_and_scale():
    vae = tiny(weights=False, shift=0.5, scale=2.0)
    weights = {k: v for k, v in tensors("vae_tiny_model").items() if k not in ("shift", "scale")}
    vae.load_state_dict(weights, strict=False)
    assert_close(vae.encode(CASES["f17.x"], sample=False), CASES["scalar.encode_mean"])
    assert_close(vae.decode(CASES["f17.z"], 17), CASES["scalar.decode"])


@torch.no_grad()
def test_bf16_within_rounding():
    vae = tiny().to(torch.bfloat16)
    z = vae.encode(CASES["f20.x"].bfloat16(), sample=False)
    assert z.dtype == torch.bfloat16
    assert_close(z.float(), CASES["bf16.f20.encode_mean"].float(), 2e-2)
    assert_close(vae.decode(CASES["f20.z"].bfloat16(), 20).float(), CASES["bf16.f20.decode"].float(), 5e-2)


@pytest.mark.parametrize("case", ["temporal", "temporal2"])
@torch.no_grad()
def test_the_temporal_part_alone(vae, case):
    model = vae.temporal_vae
    if case == "temporal2":
        model = TemporalVAE(**META["temporal2_config"])
        model.load_state_dict(tensors("vae_temporal_variant_model"))
    x = CASES[f"{case}.x"]
    posterior = model.encode(x)
    assert_close(posterior.mean, CASES[f"{case}.mean"])
    assert_close(posterior.logvar, CASES[f"{case}.logvar"])
    assert_close(model.decode(CASES[f"{case}.mean"], x.shape[2]), CASES[f"{case}.dec"])


@torch.no_grad()
def test_a_causal_convolution_with_stride_two():
    conv = CausalConv3d(2, 3, 3, strides=(2, 1, 1))
    conv.conv.load_state_dict({"weight": CASES["causal.weight"], "bias": CASES["causal.bias"]})
    assert_close(conv(CASES["causal.x"]), CASES["causal.out"])


def test_every_recorded_latent_size():
    models = {m: tiny(weights=False, micro_frame_size=m) for m in (17, None)}
    for row in META["get_latent_size"]:
        assert models[row["micro_frame_size"]].get_latent_size(row["input"]) == row["out"], row


def test_a_wrong_number_of_frames_is_an_error(vae):
    with pytest.raises(ValueError, match="num_frames=16"):
        vae.decode(CASES["f17.z"], 16)


def test_full_size_names_and_shapes():
    recorded = json.loads((GOLDEN / "vae_full_keys.json").read_text())["state_dict"]
    with torch.device("meta"):
        state = OpenSoraVAE().state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {k: v["shape"] for k, v in recorded.items()}
