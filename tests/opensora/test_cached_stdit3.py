"""The cache in STDiT3 itself: several prompts in one batch, each on its own schedule."""
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from adacache import AdaCacheConfig, Session, adaptive_cache
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config
from opensora.schedulers.rf import RFLOW

STEPS = 12
LENGTHS = (5, 3, 8)
# very different amplitudes of noise and caption, so that videos differ
AMPLITUDES = torch.tensor([0.2, 1.0, 3.0])
SIZES = {"fps": 24.0, "height": 48.0, "width": 32.0, "num_frames": 17.0}


@pytest.fixture
def model() -> STDiT3:
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(depth=2, hidden_size=32, num_heads=2, caption_channels=16,
                                model_max_length=8))
    for parameter in model.parameters():  # the zeros of the start would hide mistakes
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def sample(model: STDiT3, videos: list[int], with_mask: bool, settings: dict):
    """The chosen ones of three videos as a batch.  Returns (latents [n, 4, 3, 6, 4], trace)."""
    generator = torch.Generator().manual_seed(5)
    z = AMPLITUDES[:, None, None, None, None] * torch.randn(3, 4, 3, 6, 4, generator=generator)
    y = AMPLITUDES[:, None, None, None] * torch.randn(3, 1, 8, 16, generator=generator)
    mask = (torch.arange(8) < torch.tensor(LENGTHS)[:, None]).long()
    given = torch.ones(3, 3)
    given[0, 0], given[1, 2] = 0.0, 0.5  # a given frame, and one that joins halfway
    null = model.y_embedder.y_embedding[None, None].repeat(len(videos), 1, 1, 1)
    sizes = {name: torch.full((len(videos),), value) for name, value in SIZES.items()}
    sampler = RFLOW(num_sampling_steps=STEPS, cfg_scale=3.0)
    with adaptive_cache(model, AdaCacheConfig(**settings), STEPS) as session:
        torch.manual_seed(0)
        z = sampler.denoise(model, z[videos], torch.cat([y[videos], null]), mask[videos], "cpu", sizes,
                            given[videos] if with_mask else None, 3.0)
    return z, session.trace


@pytest.mark.parametrize("granularity", ["stack", "block"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_other_captions_and_frame_masks_do_not_touch_a_video(model, granularity, with_mask, monkeypatch):
    if with_mask:  # the sampler draws one noise for the batch; a video's must not depend on the others
        monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    settings = dict(probes=["temporal_blocks.1.attn"], granularity=granularity,
                    codebook=[(0.3, 4), (0.55, 3), (0.8, 2), (9.0, 1)])
    together, trace = sample(model, [0, 1, 2], with_mask, settings)
    for video in range(3):
        alone, own = sample(model, [video], with_mask, settings)
        assert trace[video].computed_steps == own[0].computed_steps
        torch.testing.assert_close(together[video : video + 1], alone, rtol=1e-5, atol=1e-5)
    assert len({tuple(video.computed_steps) for video in trace}) > 1, "the test shows nothing"


def test_a_model_that_was_left_in_training_samples_on_several_schedules_all_the_same(model):
    settings = dict(probes=["temporal_blocks.1.attn"], codebook=[(0.3, 4), (0.55, 3), (0.8, 2), (9.0, 1)])
    expected, trace = sample(model, [0, 1, 2], False, settings)
    assert len({tuple(video.computed_steps) for video in trace}) > 1, "the test shows nothing"
    model.y_embedder.uncond_prob = 0.0  # no captions are dropped
    assert torch.equal(sample(model.train(), [0, 1, 2], False, settings)[0], expected)


def test_a_compiled_block_has_no_graph_break_and_is_not_compiled_again_on_the_way(model, monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    to_compile = torch.compile
    with monkeypatch.context() as patch:  # a graph break is an error
        patch.setattr(torch, "compile", lambda f: to_compile(f, backend=counter, fullgraph=True))
        model.compile_blocks()
    frames = []
    monkeypatch.setattr(Session, "end_step", lambda session, end=Session.end_step: (
        end(session), frames.append((len(session.trace[0].computed_steps), counter.frame_count)))[0])
    settings = dict(probes=["temporal_blocks.1.attn"], codebook=[(99.0, 3)])
    sample(model, [0, 1], False, settings)
    computed, compiled = zip(*frames, strict=True)
    assert computed[-1] < STEPS
    assert set(compiled) == {2}, "a spatial and a temporal block, at the first step"


def test_parts_of_a_batch_with_captions_of_several_lengths_stay_compiled(model, monkeypatch):
    torch._dynamo.reset()
    counter, to_compile = CompileCounter(), torch.compile
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda f: to_compile(f, backend=counter))
        model.compile_blocks()
    settings = dict(probes=["temporal_blocks.1.attn"], codebook=[(0.3, 4), (0.55, 3), (0.8, 2), (9.0, 1)])
    _, trace = sample(model, [0, 1, 2], False, settings)
    assert len({tuple(video.computed_steps) for video in trace}) > 1, "the test shows nothing"
    for order in ([2, 0, 1], [1, 0, 2]):
        sample(model, order, False, settings)
    before = counter.frame_count
    for order in ([0, 2, 1], [1, 2, 0], [2, 1, 0]):  # other rows together, of the same lengths
        sample(model, order, False, settings)
    assert counter.frame_count == before < torch._dynamo.config.recompile_limit
