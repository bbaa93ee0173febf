"""Attention: one result whatever way it is computed, and nothing that does not change is computed again."""
import importlib.util

import pytest
import torch

from opensora.models.layers.attention import (
    SHORT_SEQUENCE,
    attend,
    check_backend,
    check_backend_fits,
    plain_attention,
)
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config
from opensora.registry import MODELS, build_module
from opensora.schedulers.rf import RFLOW


@pytest.mark.parametrize("length", [1, SHORT_SEQUENCE, SHORT_SEQUENCE + 1, 100])
def test_short_and_long_sequences_give_what_the_definition_says(length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, length, 16)
    weights = torch.exp(q @ k.transpose(-2, -1) / 4)  # 4 = sqrt(16)
    expected = weights @ v / weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(attend(q, k, v), expected)
    torch.testing.assert_close(plain_attention(q, k, v), expected)


def test_long_sequences_hold_no_matrix_of_weights():
    """The largest tensor that attention over 512 tokens makes has the size of q."""
    q, k, v = torch.randn(3, 1, 1, 512, 16, requires_grad=True)
    largest = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: largest.append(t.numel()) or t, lambda t: t):
        attend(q, k, v)
    assert max(largest) <= 512 * 16


@pytest.mark.parametrize("backend, package", [("flash-attn", "flash_attn"), ("xformers", "xformers")])
def test_a_backend_whose_package_is_missing_is_named_with_the_package(backend, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ImportError, match=f"{backend}.*needs the package '{package}'.*choose 'sdpa'"):
        STDiT3Config(attention_backend=backend)


def test_a_backend_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="attention_backend='fast'; allowed: sdpa, flash-attn, xformers"):
        check_backend("fast")
    check_backend_fits("sdpa", torch.device("cpu"), torch.float32)
    for backend in ("flash-attn", "xformers"):
        with pytest.raises(ValueError, match=f"{backend}' on device='cpu'; allowed there: sdpa"):
            check_backend_fits(backend, torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ValueError, match="flash-attn' with dtype='fp32'; allowed: bf16, fp16"):
        check_backend_fits("flash-attn", torch.device("cuda"), torch.float32)


def test_what_no_step_changes_is_computed_once_for_a_run():
    torch.manual_seed(0)
    sizes = dict(depth=2, hidden_size=16, num_heads=2, caption_channels=8, model_max_length=4)
    model = STDiT3(STDiT3Config(**sizes))
    calls = {"y_embedder": 0, "pos_embed": 0, "rope": 0, "spatial_blocks.1.cross_attn.kv_linear": 0,
             "temporal_blocks.0.cross_attn.kv_linear": 0, "x_embedder": 0}
    for name in calls:
        def count(*_, name=name) -> None:
            calls[name] += 1

        model.get_submodule(name).register_forward_hook(count)
    size = torch.tensor([32.0])
    sizes = {"height": size, "width": size, "num_frames": size - 15, "fps": size - 8}
    RFLOW(num_sampling_steps=3, cfg_scale=2.0).denoise(
        model.eval(), torch.randn(1, 4, 5, 4, 4), torch.randn(2, 1, 4, 8), torch.tensor([[1, 1, 0, 0]]),
        "cpu", sizes, None, 2.0)
    assert calls.pop("x_embedder") == 3
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name, sizes", [("STDiT3-XL/2", (28, 1152, 16)), ("STDiT3-3B/2", (28, 1872, 26))])
def test_the_published_sizes_are_registered_under_their_names(name, sizes):
    with torch.device("meta"):
        config = build_module({"type": name}, MODELS).config
    assert (config.depth, config.hidden_size, config.num_heads) == sizes
