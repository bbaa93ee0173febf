"""Promises of the world of shapes: what its captions say, the frames show."""

import numpy as np
import pytest
import torch

from opensora.datasets.shapes import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    SHAPES,
    VOCABULARY,
    Description,
    Scene,
    ShapesDataset,
    held_out_prompts,
    is_held_out,
    parse_caption,
    place,
    render,
    sample_scene,
    shades,
)


def object_mask(frames: np.ndarray, background: str) -> np.ndarray:
    """bool [T, H, W]: pixels that are not the plain background."""
    return (frames.astype(int) != np.array(BACKGROUNDS[background])).any(-1)


def centers(mask: np.ndarray) -> np.ndarray:
    """[T, 2] x and y, in pixels."""
    return np.array([np.argwhere(m).mean(0)[::-1] for m in mask])


def test_one_seed_tells_one_story():
    assert sample_scene(7) == sample_scene(7)
    assert sample_scene(7) != sample_scene(8)
    assert np.array_equal(render(sample_scene(7), 5, 32), render(sample_scene(7), 5, 32))


def test_the_world_that_the_shipped_weights_learnt_does_not_change():
    # recorded when the embedded model was trained
    assert sample_scene(0).caption == "a large cyan diamond moves down on a striped black background"
    pan = "the camera pans up slowly over a small green circle on a checked black background"
    assert sample_scene(3).caption == pan
    assert held_out_prompts(1) == ["a large orange diamond stays still on a white background"]


def test_captions_use_a_small_vocabulary_and_all_of_it():
    captions = [sample_scene(seed).caption.split() for seed in range(1500)]
    assert {word for words in captions for word in words} == set(VOCABULARY)
    assert len(VOCABULARY) == len(set(VOCABULARY)) <= 60
    assert max(map(len, captions)) <= 24


def test_a_caption_can_be_read_back():
    for seed in range(500):
        description = sample_scene(seed, held_out=seed % 2 == 1).description
        assert parse_caption(description.caption) == description


def test_case_and_a_final_full_stop_do_not_matter():
    text = "a small red circle grows on a white background"
    assert parse_caption("A small red circle grows on a white background.") == parse_caption(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a huge red circle grows on a white background", "word 2 is 'huge'; allowed there: small, large"),
        ("a small red circle moves sideways on a white background", "word 6 is 'sideways'.*left, right, up"),
        ("a small red circle grows on a white", "word 9 is missing; allowed there: background"),
        ("a small red circle grows on a white background today", "word 10 is 'today'.*the end"),
        ("a small red circle grows or shrinks", "word 6 is 'or'; allowed there: and, on"),
        ("", "word 1 is missing; allowed there: the, a"),
        ("the camera pans up over a small red circle on a striped white background",
         "a pan up over a striped background does not show; allowed: checked"),
        ("the camera pans left over a small red circle on a white background",
         "a plain background does not show; allowed: striped or checked"),
    ],
)
def test_a_caption_outside_the_grammar_is_refused_by_its_word(text, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(text)


def test_no_training_clip_has_a_held_out_caption():
    prompts = held_out_prompts(300)
    assert len(set(prompts)) == 300
    training = {sample_scene(seed).caption for seed in range(3000)}
    assert not training & set(prompts)
    assert all(is_held_out(parse_caption(p)) for p in prompts)
    assert not any(is_held_out(parse_caption(c)) for c in training)


def test_naming_the_objects_in_another_order_changes_no_side():
    pairs = [d for d in (sample_scene(s).description for s in range(200)) if len(d.objects) == 2]
    assert len(pairs) > 20
    for d in pairs:
        assert not is_held_out(Description(d.objects[::-1], d.background, d.pattern))


def test_held_out_captions_are_distributed_like_training_ones():
    training = [sample_scene(seed).caption for seed in range(1200)]
    held_out = [sample_scene(seed, held_out=True).caption for seed in range(1200)]
    for word in ("and", "camera", "small", "triangle", "grows", "slowly", "left", "navy", "pink"):
        shares = [np.mean([f" {word} " in f" {c} " for c in captions]) for captions in (training, held_out)]
        # 4 standard errors of a difference of shares below 1/2
        assert abs(shares[0] - shares[1]) < 4 * np.sqrt(2 * 0.25 / 1200), word


def test_speed_is_the_same_in_every_direction_and_doubles_from_word_to_word():
    # 128 pixels x 0.0032 a frame x 50 frames
    for adverb, pixels in ((" slowly", 20.48), ("", 40.96), (" quickly", 81.92)):
        for direction, unit in DIRECTIONS.items():
            text = f"a small red circle moves {direction}{adverb} on a white background"
            path = centers(object_mask(render(place(parse_caption(text), 3)), "white"))
            np.testing.assert_allclose(path[-1] - path[0], np.array(unit) * pixels, atol=0.6)
            np.testing.assert_allclose(path[25] - path[0], np.array(unit) * pixels / 2, atol=0.6)


def test_a_still_object_does_not_change_a_pixel():
    frames = render(place(parse_caption("a large pink cross stays still on a navy background"), 0))
    assert (frames == frames[0]).all()


@pytest.mark.parametrize(("verb", "ratio"), [("grows", 1.7), ("shrinks", 1 / 1.7)])
def test_a_growing_object_stays_in_place_and_ends_1_7_times_as_wide(verb, ratio):
    frames = render(place(parse_caption(f"a large blue square {verb} on a white background"), 1), size=256)
    widths = object_mask(frames, "white").any(1).sum(1)
    assert widths[-1] / widths[0] == pytest.approx(ratio, rel=0.03)
    # 0.42 of the frame x 0.9 halfway
    assert widths[25] == pytest.approx(256 * 0.42 * 0.9, abs=2)
    path = centers(object_mask(frames, "white"))
    assert np.abs(path - path[0]).max() < 1


def test_shapes_have_their_areas_and_colours():
    # in units of the size: pi/4; 0.9^2; 2 x 0.58 x 0.53; two bars of 1.04 x 0.4 less the middle; 2 x 0.58^2
    areas = {"circle": 0.7854, "square": 0.81, "triangle": 0.6148, "cross": 0.672, "diamond": 0.6728}
    for shape, area in areas.items():
        text = f"a large green {shape} stays still on a black background"
        frame = render(place(parse_caption(text), 5), 1, 256)[0].astype(float)
        alpha = (frame[..., 1] - 10) / (168 - 10)  # green channel from black to green
        assert alpha.sum() == pytest.approx(area * (0.42 * 256) ** 2, rel=0.01)
        assert (frame == np.array(COLORS["green"])).all(-1).mean() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_even_a_large_fast_object_stays_mostly_visible(shape):
    for direction in DIRECTIONS:
        text = f"a large red {shape} moves {direction} quickly on a white background"
        areas = object_mask(render(place(parse_caption(text), 2), size=64), "white").sum((1, 2))
        assert areas.min() > 0.7 * areas.max()


def test_two_objects_never_touch_and_differ_in_colour():
    scenes = [s for s in map(sample_scene, range(300)) if len(s.description.objects) == 2]
    assert len(scenes) > 30
    for scene in scenes:
        a, b = scene.description.objects
        assert a.color != b.color
        for t in (0, 25, 50):
            gap = []
            for axis in (0, 1):
                ca, cb = (
                    start[axis] + obj.motion.velocity()[axis] * t
                    for start, obj in zip(scene.starts, (a, b), strict=True)
                )
                gap.append(abs(ca - cb) - a.half_extent()[axis] - b.half_extent()[axis])
            assert max(gap) > -1e-9


@pytest.mark.parametrize(
    ("pattern", "direction", "shift"),
    [("striped", "right", (0, 4)), ("checked", "left", (0, -4)), ("checked", "down", (4, 0))],
)
def test_in_a_pan_everything_drifts_against_the_camera(pattern, direction, shift):
    text = f"the camera pans {direction} over a small red circle on a {pattern} gray background"
    # 125 pixels x 0.0064 a frame: 4 pixels in 5 frames
    frames = render(place(parse_caption(text), 4), 6, 125).astype(int)
    rolled = np.roll(frames[0], (-shift[0], -shift[1]), axis=(0, 1))
    difference = np.abs(frames[5] - rolled)[4:-4, 4:-4]
    assert difference.max() <= 2
    assert np.abs(frames[5] - frames[0]).max() > 20


def test_a_pattern_without_a_pan_rests():
    frames = render(place(parse_caption("a small red circle grows on a checked gray background"), 0), 51, 64)
    assert (frames[:, 0] == frames[0, 0]).all() or (frames[:, -1] == frames[0, -1]).all()
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 2


def test_every_object_stands_out_from_every_background():
    for color in COLORS.values():
        for background in BACKGROUNDS:
            for shade in shades(background):
                assert np.linalg.norm(np.array(color) - shade) > 100


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_the_frame_size_changes_nothing_but_the_sharpness(seed):
    scene = sample_scene(seed)
    big = render(scene, 3, 128).astype(float).reshape(3, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(big - render(scene, 3, 32)).mean() < 1.0


def test_the_dataset_yields_clips_in_the_models_range():
    dataset = ShapesDataset(2, num_frames=4, size=16, seed=5)
    item = dataset[1]
    assert item["video"].shape == (3, 4, 16, 16)
    assert item["video"].dtype == torch.float32
    raw = ShapesDataset(2, num_frames=4, size=16, seed=5, as_uint8=True)[1]["video"]
    assert raw.dtype == torch.uint8
    assert torch.allclose(item["video"], raw.float() / 127.5 - 1, atol=1e-6)
    assert (item["fps"], item["num_frames"], item["height"], item["width"]) == (24, 4, 16, 16)
    assert item["text"] == dataset.scene(1).caption
    assert len(dataset) == len(list(dataset)) == 2


def test_seeds_give_other_clips_and_held_out_sets_other_captions():
    texts = {ShapesDataset(40, seed=s).scene(i).caption for s in (0, 1) for i in range(40)}
    assert len(texts) > 75
    held_out = ShapesDataset(40, held_out=True)
    assert all(is_held_out(held_out.scene(i).description) for i in range(40))


@pytest.mark.parametrize("key", ["length", "num_frames", "size"])
def test_an_empty_dataset_is_refused_by_its_key(key):
    with pytest.raises(ValueError, match=f"{key} is 0; allowed: 1 or more"):
        ShapesDataset(**{"length": 1, key: 0})


def test_a_scene_is_only_its_description_and_its_places():
    scene = sample_scene(0)
    again = Scene(parse_caption(scene.caption), scene.starts, scene.phase)
    assert np.array_equal(render(scene, 2, 32), render(again, 2, 32))
