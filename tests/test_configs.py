"""Every config in configs/ loads; the published sizes build; what they say of AdaCache is understood."""
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adacache import AdaCacheConfig, Signature
from adacache.explain import problems
from adacache.signature import model_name
from opensora.datasets.shapes import held_out_prompts
from opensora.pipeline import check_modules
from opensora.registry import MODELS, SCHEDULERS, build_module
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.weights import packaged_path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from cache_choice import for_model, take_cache_config  # noqa: E402
from evaluation.methods import read_methods  # noqa: E402

ALL = sorted((ROOT / "configs").rglob("*.py"))
INFERENCE = [p for p in ALL if p.parent.name == "inference" or p.name.startswith("sample")]
PROFILES = sorted((ROOT / "configs/shapes/profiles").glob("*.json"))
PUBLISHED = [p for p in INFERENCE if "opensora-v1-2" in p.parts]


ASSETS = ROOT / "opensora/assets/shapes"  # the embedded model


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def plain(path: Path) -> dict:
    return {"resolution": "480p", "device": "cpu", **read_config(path).to_dict()}


def test_all_kinds_of_configs_are_there():
    names = {name(p) for p in INFERENCE}
    kinds = ("sample", "sample_adacache", "sample_adacache_moreg", "sample_calibrated")
    assert {f"shapes/{kind}.py" for kind in kinds} <= names
    assert {f"opensora-v1-2/inference/{r}_{n}{c}.py" for r in ("480p", "720p") for n in (30, 100)
            for c in ("", "_fast", "_slow", "_fast_moreg")} <= names


@pytest.mark.parametrize("path", ALL, ids=name)
def test_it_loads(path):
    assert len(read_config(path)) > 0


@pytest.mark.parametrize("path", sorted((ROOT / "configs/eval").glob("*.py")), ids=name)
def test_every_method_of_an_evaluation_can_be_had(path):
    values = read_config(path).to_dict()
    methods = read_methods(values["methods"], values)
    assert methods.keys() == values["methods"].keys()


@pytest.mark.parametrize("path", INFERENCE, ids=name)
def test_every_key_is_read_and_every_value_allowed(path):
    values = plain(path)
    cache = take_cache_config(values, None)
    named = any(word in path.stem for word in ("fast", "slow", "adacache", "calibrated"))
    assert isinstance(cache, AdaCacheConfig) if named else cache is None
    assert named and "moreg" in path.stem or cache is None or cache.moreg is None
    config = InferenceConfig.from_dict(values, str(path))
    check_modules(config)
    assert build_module(config.scheduler, SCHEDULERS).flow.use_timestep_transform


def test_a_config_can_say_what_the_flag_says():
    for name in ("fast", "published-slow", "off"):
        assert take_cache_config({"adacache": name}) == take_cache_config({}, name)


def test_the_flag_replaces_a_profile_that_does_not_fit_the_run():
    values = {**plain(ROOT / "configs/shapes/sample_calibrated.py"), "num_frames": 17}
    assert take_cache_config(dict(values), "off") is None
    assert take_cache_config(dict(values), "fast").codebook == "fast"
    with pytest.raises(ValueError, match="adacache='missing.json'; allowed: off, slow"):
        take_cache_config(dict(values), "missing.json")


def test_a_profile_that_names_a_missing_schedule_is_there_itself(tmp_path):
    (tmp_path / "p.json").write_text('{"schedule": "missing.json"}')
    with pytest.raises(ValueError, match=r"p.json': no trace: 'missing.json' does not exist"):
        take_cache_config({}, str(tmp_path / "p.json"))


def test_a_preset_keeps_residuals_of_every_block_where_it_can():
    by_block = {"adacache": {"codebook": "published-fast", "granularity": "block"}}
    assert take_cache_config(dict(by_block), "published-slow").granularity == "block"
    with pytest.raises(ValueError, match="adacache='slow' with granularity='block'; allowed: granula"):
        take_cache_config(dict(by_block), "slow")
    fork = {"model": {"do_cache": True}, "scheduler": {}}  # whose keys know nothing else than by block
    assert take_cache_config(dict(fork), "fast").granularity == "stack"


@pytest.mark.parametrize(("blocks", "measured"), [(28, 13), (4, 2), (2, 1), (1, 0)])
def test_a_preset_without_probes_measures_as_deep_as_published(blocks, measured):
    model = SimpleNamespace(temporal_blocks=[None] * blocks)
    assert for_model(take_cache_config({}, "fast"), model).probes == (f"temporal_blocks.{measured}.attn",)


def test_a_profile_is_refused_with_another_sampler_than_it_was_made_with():
    sampler = dict(read_config(ROOT / "configs/shapes/sample.py").scheduler)
    profile = "configs/shapes/profiles/30_steps_2x.json"
    for choice in ({"adacache": profile}, {}):
        take_cache_config({**choice, "model": {}, "scheduler": dict(sampler)}, None if choice else profile)
        with pytest.raises(ValueError, match=r"30_steps_2x.json': made with scheduler.cfg_scale=5.0, but here"
                                             r" it is 7.0; allowed: the same"):
            take_cache_config({**choice, "model": {}, "scheduler": {**sampler, "cfg_scale": 7.0}},
                              None if choice else profile)
    for other, said in (({"use_discrete_timesteps": True}, "_timesteps=False, but here it is True"),
                        ({"cfg_scale": None}, "cfg_scale=5.0, but here it is 4.0")):  # by default
        scheduler = {key: value for key, value in {**sampler, **other}.items() if value is not None}
        with pytest.raises(ValueError, match=said):
            take_cache_config({"adacache": profile, "model": {}, "scheduler": scheduler})


@pytest.mark.parametrize(("change", "said"), [
    ({"num_frames": 17}, "num_frames=51, but here it is 17; allowed: the same, slow or fast instead"),
    ({"image_size": (96, 128)}, r"image_size=\(128, 128\), but here it is \(96, 128\)"),
    ({"image_size": None, "resolution": "144p", "aspect_ratio": "1:1"}, r"but here it is \(192, 192\)"),
])
def test_a_profile_is_refused_at_another_length_or_size_before_a_model_is_loaded(change, said):
    values = plain(ROOT / "configs/shapes/sample_calibrated.py")
    take_cache_config({**values, "num_frames": "2s"})  # 51, by its name
    with pytest.raises(ValueError, match=said):
        take_cache_config({**values, **change})


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_is_of_the_embedded_model_and_as_fast_as_its_name_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its name is found from any folder
    settings = take_cache_config({}, str(path.relative_to(ROOT)))
    steps, speed = (float(part) for part in re.fullmatch(r"(\d+)_steps_([\d.]+)x", path.stem).groups())
    model = build_module(read_config(ROOT / "configs/shapes/sample.py").model, MODELS)
    assert settings.signature == Signature(model_name(model), steps, (4, 15, 16, 16))
    written = json.loads(path.read_text())
    assert written["measured"]["speed_up"] >= speed and written["sampler"]["num_sampling_steps"] == steps
    found_on, measured_on = (set(written["prompts"][key]) for key in ("found_on", "measured_on"))
    assert len(found_on) > 8 and len(measured_on) > 8 and not found_on & measured_on
    assert not (found_on | measured_on) & set(held_out_prompts(128))  # those that tables report
    assert problems(model, settings, int(steps)) == []


def test_the_published_configs_build_the_released_sizes():
    values = read_config(PUBLISHED[0])
    assert values.model.pop("from_pretrained") == "hpcai-tech/OpenSora-STDiT-v3"
    assert values.vae.pop("from_pretrained") == "hpcai-tech/OpenSora-VAE-v1.2"
    with torch.device("meta"):
        transformer, vae = build_module(values.model, MODELS), build_module(values.vae, MODELS)
    assert (transformer.config.depth, transformer.config.hidden_size) == (28, 1152)
    assert len(transformer.state_dict()) == 973
    assert vae.get_latent_size((51, 480, 854)) == [15, 60, 106]
    assert values.text_encoder.model_max_length == transformer.config.model_max_length == 300


def test_the_published_configs_share_their_models():
    first, *others = [read_config(path).to_dict() for path in PUBLISHED]
    for other in others:
        assert all(first[part] == other[part] for part in ("model", "vae", "text_encoder"))


def test_the_embedded_weights_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged_path("opensora/assets/shapes/vae") == str(ASSETS / "vae")
    assert packaged_path("owner/name") == "owner/name"
    values = read_config(ROOT / "configs/shapes/sample.py")
    sources = {part: values[part].from_pretrained for part in ("model", "vae", "text_encoder")}
    assert {packaged_path(source) for source in sources.values()} == {
        str(ASSETS / part) for part in ("transformer", "vae", "text_encoder")}


def test_the_steps_and_resolutions_are_those_of_the_names():
    for path in PUBLISHED:
        if path.stem != "base":
            resolution, steps, *_ = path.stem.split("_")
            values = read_config(path)
            assert (values.resolution, values.scheduler.num_sampling_steps) == (resolution, int(steps))
            assert values.scheduler.cfg_scale == 7.0 and values.num_frames == "2s"
