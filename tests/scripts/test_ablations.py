"""The paper's ablations: every one a config, every one measuring what its name says."""
import math
import sys
from pathlib import Path

import pytest
import torch

from adacache import AdaCacheConfig, adaptive_cache
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config
from opensora.utils.config import read_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
CONFIGS = sorted((ROOT / "configs/eval/ablation").glob("*.py"))
SIZES = {"fps": 24.0, "height": 48.0, "width": 32.0}


def settings_of(path: Path) -> AdaCacheConfig:
    from cache_choice import take_cache_config

    return take_cache_config(read_config(str(path)).to_dict())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_ablation_runs_on_the_embedded_model_s_layout_and_differs_as_named(path):
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(depth=4, hidden_size=16, num_heads=2, caption_channels=8)).eval()
    config, name = settings_of(path), path.stem
    with torch.no_grad(), adaptive_cache(model, config, 12) as session:
        call(model, 12)
    assert session.trace[0].decisions
    assert (session.config.forecast, session.config.guard) == (0, math.inf), "the published method"
    kind, _, what = name.partition("_")
    if kind == "metric":
        assert config.metric == what
    if kind == "residual":
        assert config.probes[0].endswith(
            {"temporal": "temporal_blocks.2.attn", "spatial": "spatial_blocks.2.attn"}.get(what, what))
    if kind == "probe":
        depths = {"start": [0], "middle": [2], "end": [3], "several": [0, 2, 3]}[what]
        assert [int(probe.split(".")[1]) for probe in config.probes] == depths
    if kind == "moreg":
        assert (config.moreg.gradient, config.moreg.strides) == {
            "no_gradient": (0, (1,)), "strides": (10, (1, 2, 4))}[what]


def test_there_is_one_for_each_row_of_the_paper_s_table():
    kinds = {path.stem.partition("_")[0] for path in CONFIGS}
    assert kinds == {"metric", "probe", "residual", "moreg"} and len(CONFIGS) == 13


def call(model: STDiT3, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 3, 6, 4), (2, 1, 5, 8)))
    sizes = {name: torch.full((2,), value) for name, value in SIZES.items()}
    for step in range(steps):
        model(x, torch.full((2,), 1000.0 * (1 - step / steps)), y, torch.ones(2, 5), **sizes)


@pytest.mark.parametrize("name, parts", [("attn", (1,)), ("cross", (2,)), ("mlp", (3,)),
                                         ("cross_mlp", (2, 3))])
def test_a_probe_compares_just_the_residual_that_it_names(name, parts, monkeypatch):
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(depth=2, hidden_size=16, num_heads=2, caption_channels=8)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    block, computed = model.temporal_blocks[1], []
    compute = block.compute
    monkeypatch.setattr(block, "compute", lambda *args: computed.append(compute(*args)) or computed[-1])
    config = AdaCacheConfig(probes=[f"temporal_blocks.1.{name}"], codebook=[(9.0, 1)])
    with torch.no_grad(), adaptive_cache(model, config, 12) as session:
        call(model, 12)
    first, second = (sum(outputs[part] for part in parts) for outputs in computed[:2])
    expected = ((first - second).abs().sum() / first.abs().sum()).item()
    assert session.trace[0].decisions[0].distance == pytest.approx(expected, rel=1e-5)
