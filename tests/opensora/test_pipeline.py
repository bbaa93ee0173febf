"""From requests to pixels: what a sample depends on, and what it does not."""
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image

from opensora.pipeline import Pipeline
from opensora.utils.config import read_config
from opensora.utils.inference_config import InferenceConfig
from opensora.utils.sample_request import plan_samples


def settings(tiny, **changes) -> InferenceConfig:
    return InferenceConfig.from_dict({**read_config(tiny / "sample.py"), **changes}, "sample.py")


def videos(config: InferenceConfig, which: slice = slice(None), **options) -> list[torch.Tensor]:
    samples = Pipeline.load(config).generate(plan_samples(config)[which], **options)
    return [sample.video for sample in samples]


@pytest.fixture
def picture(tmp_path) -> str:
    Image.new("RGB", (48, 32), (250, 10, 10)).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_a_sample_is_a_video_of_the_size_that_was_asked_for(tiny):
    (video,) = videos(settings(tiny))
    assert video.shape == (3, 17, 32, 48) and torch.isfinite(video).all() and video.std() > 0


def test_a_prompt_changes_the_video_and_so_do_seed_and_number(tiny):
    (first,), (again,) = videos(settings(tiny)), videos(settings(tiny))
    assert torch.equal(first, again)
    for change in ({"prompt": "a blue square"}, {"seed": 8}, {"start_index": 1}):
        assert not torch.allclose(first, videos(settings(tiny, **change))[0], atol=1e-3)
    pair = videos(settings(tiny, num_sample=2))
    torch.testing.assert_close(pair[0], first, rtol=0, atol=1e-4)
    assert not torch.allclose(pair[1], first, atol=1e-3)


def test_a_video_alone_is_the_same_video_in_a_batch(tiny, picture):
    prompts = ["a red circle", "a blue square moves right", "a red square"]
    masks = ["", "0", "0,0,0,0,2,0.5"]  # free, its first frame given, two frames that join midway
    config = settings(tiny, prompt=prompts, reference_path=["", picture, picture], mask_strategy=masks)
    together = videos(config)
    for row in range(3):
        (alone,) = videos(config, slice(row, row + 1))
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-4)


def test_an_edit_ratio_of_1_leaves_the_given_frames_free(tiny, picture):
    plain = settings(tiny, num_frames=17)
    free = replace(plain, reference_path=picture, mask_strategy="0,0,0,0,1,1")
    torch.testing.assert_close(videos(free), videos(plain), rtol=0, atol=1e-5)


def test_random_draws_elsewhere_change_nothing_and_are_not_changed(tiny, picture):
    config = settings(tiny, reference_path=picture, mask_strategy="0,0,0,0,1,0.5")
    torch.manual_seed(1)
    (first,) = videos(config)
    after = torch.rand(1)
    torch.manual_seed(1)
    Pipeline.load(config)  # building draws initial weights
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(2)
    assert torch.equal(videos(config)[0], first)


def test_a_given_first_frame_is_kept(tiny, picture):
    """Of the latents, the given ones are those of the reference, whatever the model says."""
    config = settings(tiny, reference_path=picture, mask_strategy="0")
    pipeline, requests = Pipeline.load(config), plan_samples(config)
    seen = {}
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda z, *options: decode(seen.setdefault("z", z), *options)
    pipeline.generate(requests)
    ((reference,),) = pipeline.encode_references(requests)
    assert torch.equal(seen["z"][0, :, :1], reference)


def test_without_held_frames_the_model_sees_no_frame_mask(tiny):
    pipeline = Pipeline.load(settings(tiny))
    seen = []
    pipeline.model.register_forward_pre_hook(lambda m, a, kw: seen.append(kw.get("x_mask")), with_kwargs=True)
    pipeline.generate(plan_samples(pipeline.config))
    assert seen == [None] * 6


def test_clips_go_on_where_the_last_one_ended(tiny):
    """Two clips of 34 frames that share 17 (5 latent ones) make 51; the first 34 are the first clip's."""
    config = settings(tiny, num_frames=34, loop=2, prompt="|0| a red circle |1| a blue square")
    (both,) = videos(config)
    assert config.total_frames == 51 and both.shape == (3, 51, 32, 48)
    (first,) = videos(replace(config, loop=1))
    assert torch.equal(both[:, :34], first)


def test_each_clip_gets_the_text_of_its_segment(tiny):
    config = settings(tiny, num_frames=34, loop=3, prompt="|0| a red circle |2| a blue square", aes=6.5)
    pipeline, seen = Pipeline.load(config), []
    encode = pipeline.text_encoder.encode
    pipeline.text_encoder.encode = lambda texts: (seen.append(texts), encode(texts))[1]
    pipeline.generate(plan_samples(config))
    assert seen == [["a red circle aesthetic score: 6.5."], ["a blue square aesthetic score: 6.5."]]


def test_every_denoising_run_is_wrapped_once(tiny):
    events = []

    @contextmanager
    def wrap(model, num_steps):
        events.append(("in", num_steps, hasattr(model, "temporal_blocks")))
        yield len(events)
        events.append("out")

    def progress(step, steps, context):
        events.append((step, steps, context))

    config = settings(tiny, num_frames=34, loop=2, scheduler=dict(
        type="rflow", use_timestep_transform=True, num_sampling_steps=2))
    (sample,) = Pipeline.load(config).generate(plan_samples(config), wrap, progress)
    run = [("in", 2, True), (1, 2, 1), (2, 2, 1), "out"]
    assert events == run + [("in", 2, True), (1, 2, 5), (2, 2, 5), "out"]
    assert [(r.context, r.row) for r in sample.runs] == [(1, 0), (5, 0)]


def test_seconds_are_a_samples_share_of_its_batch(tiny):
    config = settings(tiny, prompt=["a red circle", "a blue square"])
    first, second = Pipeline.load(config).generate(plan_samples(config))
    assert first.seconds == second.seconds
    assert set(first.seconds) == {"text", "denoise", "decode", "total"}
    parts = first.seconds["text"] + first.seconds["denoise"] + first.seconds["decode"]
    assert 0 < parts <= first.seconds["total"]


def test_offload_gives_the_same_video(tiny):
    assert torch.equal(videos(settings(tiny, offload=True))[0], videos(settings(tiny))[0])


def test_compiled_blocks_make_the_same_video(tiny, monkeypatch):
    to_compile, compiled = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or to_compile(f, backend="eager"))
    compiled_video, video = videos(settings(tiny, compile=True))[0], videos(settings(tiny))[0]
    torch.testing.assert_close(compiled_video, video, rtol=1e-4, atol=1e-4)
    assert [f.__name__ for f in compiled] == ["compute"] * 4  # blocks of depth 2


def test_with_offload_each_model_leaves_the_device_before_the_next_comes(tiny, monkeypatch):
    pipeline = Pipeline.load(settings(tiny, offload=True))
    moves = []
    for name in ("text_encoder", "model", "vae"):
        part = getattr(pipeline, name)
        # the device is told from "cpu", where a model goes back to, by its type
        monkeypatch.setattr(part, "to", lambda place, name=name: moves.append((name, place == "cpu")))
    pipeline.generate(plan_samples(pipeline.config))
    assert moves == [(name, back) for name in ("text_encoder", "vae", "model", "vae")
                     for back in (False, True)]


@pytest.mark.parametrize("part, change, message", [
    ("vae", {"micro_frames": 17}, "vae: unknown key 'micro_frames'.*micro_frame_size"),
    ("text_encoder", {"max_length": 4}, "text_encoder: unknown key 'max_length'.*model_max_length"),
    ("scheduler", {"num_steps": 4}, "scheduler: unknown key 'num_steps'.*num_sampling_steps"),
    ("model", {"dept": 4}, "model: unknown key 'dept'.*depth"),
    ("model", {"type": "STDiT"}, "type='STDiT' is unknown.*STDiT3"),
    ("vae", {"from_pretrained": "/no/where"}, "vae: from_pretrained='/no/where' does not exist"),
    ("text_encoder", {"model_max_length": 9}, "text_encoder.model_max_length=9; allowed: 12"),
    ("text_encoder", {"dtype": "int8"}, "text_encoder.dtype='int8'; allowed: fp32"),
    ("model", {"depth": 3}, "does not fit STDiT3: missing spatial_blocks.2"),
])
def test_models_that_cannot_be_had_or_do_not_fit_are_refused(tiny, part, change, message):
    config = settings(tiny)
    config = replace(config, **{part: {**getattr(config, part), **change}})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Pipeline.load(config)
