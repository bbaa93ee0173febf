"""Promises of the adherence score: right clips score right, and what is wrong is wrong by name."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from opensora.datasets.shapes import parse_caption, place, render, sample_scene
from opensora.datasets.shapes_score import Adherence, average, measure_clip, score_clip

PLAIN = "a small red circle moves left on a white background"
PAIR = "a small red circle moves left slowly and a large blue square stays still on a black background"
PAN = "the camera pans right over a large green cross on a checked beige background"


def clip(caption: str, seed: int = 0, size: int = 128) -> np.ndarray:
    return render(place(parse_caption(caption), seed), size=size)


def soften(frames: np.ndarray) -> np.ndarray:
    """Blur of 1.2 pixels and noise of +-6, as a VAE might leave behind."""
    noise = np.random.default_rng(0).uniform(-6, 6, frames.shape)
    blurred = gaussian_filter(frames.astype(np.float32), (0, 1.2, 1.2, 0))
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def wrong(score: Adherence) -> set[str]:
    return {name for name, value in score.present().items() if value < 1}


@pytest.mark.parametrize(("distort", "scenes"), [(None, 60), (soften, 24)])
def test_the_ground_truth_scores_full_marks(distort, scenes):
    scores = []
    for seed in range(scenes):
        scene = sample_scene(20_000 + seed, held_out=seed % 2 == 1)
        frames = render(scene)
        scores.append(score_clip(distort(frames) if distort else frames, scene.caption))
    assert np.mean([score.mean for score in scores]) >= 0.98
    found = average(scores).present()
    assert set(found) == set(Adherence.__dataclass_fields__)
    assert min(found.values()) >= 0.95


@pytest.mark.parametrize("size", [64, 96])
def test_smaller_frames_are_read_as_well(size):
    for caption in (PLAIN, PAIR, PAN):
        assert score_clip(clip(caption, size=size), caption).mean == 1


@pytest.mark.parametrize(
    ("shown", "attribute"),
    [
        ("a small pink circle moves left on a white background", "color"),
        ("a small red diamond moves left on a white background", "shape"),
        ("a large red circle moves left on a white background", "size"),
        ("a small red circle moves left on a beige background", "background"),
        ("a small red circle moves left on a striped white background", "background"),
        ("a small red circle moves right on a white background", "direction"),
        ("a small red circle moves down on a white background", "direction"),
        ("a small red circle moves left slowly on a white background", "speed"),
        ("a small red circle moves left quickly on a white background", "speed"),
        ("a small red circle moves left and a small blue cross stays still on a white background", "count"),
    ],
)
def test_one_wrong_attribute_costs_itself_alone(shown, attribute):
    assert wrong(score_clip(clip(shown), PLAIN)) == {attribute}


@pytest.mark.parametrize("verb", ["stays still", "grows", "shrinks"])
def test_an_object_that_does_not_move_has_no_direction_and_no_speed(verb):
    shown = f"a small red circle {verb} on a white background"
    assert wrong(score_clip(clip(shown), PLAIN)) == {"motion", "direction", "speed"}
    assert "direction" not in score_clip(clip(PLAIN), shown).present()


def test_a_reversed_clip_moves_the_other_way_and_shrinks_for_growing():
    assert wrong(score_clip(clip(PLAIN)[::-1], PLAIN)) == {"direction"}
    grows = "a large yellow triangle grows on a navy background"
    assert wrong(score_clip(clip(grows)[::-1], grows)) == {"motion"}
    assert wrong(score_clip(clip(PAN)[::-1], PAN)) == {"direction"}


def test_an_object_that_jumps_about_is_neither_still_nor_moving():
    still = "a small red circle stays still on a white background"
    frames = clip(still).copy()
    for start in (1, 2, 3):
        frames[start::6] = np.roll(frames[start::6], 40, axis=2)
    assert wrong(score_clip(frames, still)) == {"motion"}


def vanishes(frames: np.ndarray) -> np.ndarray:
    frames[31:] = frames[0, 0, 0]
    return frames


def another_shape_for_a_while(frames: np.ndarray) -> np.ndarray:
    square = clip(PLAIN.replace("circle", "square"))
    frames[:41] = square[:41]
    return frames


def two_backgrounds(frames: np.ndarray) -> np.ndarray:
    left = frames[:, :, :64]
    left[(left == 246).all(axis=-1)] = (222, 204, 165)
    return frames


def flickers(frames: np.ndarray) -> np.ndarray:
    dark = frames[::2]
    dark[(dark == 246).all(axis=-1)] = (222, 204, 165)
    return frames


def black_between(frames: np.ndarray) -> np.ndarray:
    frames[1::3] = 0
    return frames


@pytest.mark.parametrize(("fault", "costs"), [
    (vanishes, {"count", "color", "shape", "size", "motion", "direction", "speed"}),
    (another_shape_for_a_while, {"shape"}),
    (two_backgrounds, {"background"}),
    (flickers, {"background"}),
    (black_between, {"background"}),
])
def test_a_fault_that_an_eye_would_see_costs_what_it_spoils(fault, costs):
    assert wrong(score_clip(fault(clip(PLAIN)), PLAIN)) == costs


def test_each_object_of_a_pair_is_held_against_its_own_words():
    assert score_clip(clip(PAIR), PAIR).mean == 1
    other = "a large blue square stays still and a small red circle moves left slowly on a black background"
    assert score_clip(clip(PAIR), other).mean == 1
    # colours bound to the wrong shapes: one of the two looks is missed whichever way they are matched
    rebound = "a small blue circle moves left slowly and a large red square stays still on a black background"
    assert score_clip(clip(PAIR), rebound).color == 0
    alone = "a small red circle moves left slowly on a black background"
    missing = score_clip(clip(alone), PAIR)
    assert (missing.count, missing.color, missing.motion, missing.direction) == (0, 0.5, 0.5, 1)


def test_a_pan_is_told_from_a_moving_object():
    moving = "a large green cross moves left on a checked beige background"
    assert wrong(score_clip(clip(moving), PAN)) == {"pan", "direction", "speed", "motion"}
    assert wrong(score_clip(clip(PAN), moving)) == {"motion", "direction", "speed"}
    stripes = "the camera pans right over a large green cross on a striped beige background"
    assert wrong(score_clip(clip(stripes), PAN)) == {"pattern"}
    faster = "the camera pans down quickly over a large green cross on a checked beige background"
    assert wrong(score_clip(clip(faster), PAN)) == {"direction", "speed"}


def test_the_reading_knows_nothing_of_the_prompt():
    reading = measure_clip(clip(PAN))
    (seen,) = reading.objects
    assert (seen.color, seen.shape, seen.size, seen.motion.kind) == ("green", "cross", "large", "still")
    assert (reading.background, reading.pattern, reading.count) == ("beige", "checked", 1)
    assert (reading.pan.direction, reading.pan.speed) == ("right", "medium")


def test_clips_that_show_nothing_score_next_to_nothing():
    rng = np.random.default_rng(0)
    gray = np.full((51, 128, 128, 3), 128, dtype=np.uint8)
    noise = rng.integers(0, 256, (51, 128, 128, 3), dtype=np.uint8)
    coarse = rng.integers(0, 256, (51, 8, 8, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    for caption in (PLAIN, PAIR, PAN, "a small red circle grows on a gray background"):
        assert all(score_clip(frames, caption).mean < 0.35 for frames in (gray, noise, coarse))


def test_another_prompts_clip_scores_low():
    scenes = [sample_scene(30_000 + seed) for seed in range(25)]
    scores = [
        score_clip(render(scene), other.caption).mean
        for scene, other in zip(scenes, scenes[1:] + scenes[:1], strict=True)
    ]
    assert np.mean(scores) < 0.4


def test_a_shapeless_blob_is_no_shape():
    frames = np.full((51, 128, 128, 3), 246, dtype=np.uint8)
    frames[:, 30:90, 60:64] = (222, 30, 38)
    frames[:, 40:44, 20:110] = (222, 30, 38)
    frames[:, 70:90, 60:110] = (222, 30, 38)
    (seen,) = measure_clip(frames).objects
    assert (seen.color, seen.shape, seen.motion.kind) == ("red", None, "still")


def test_an_average_takes_each_attribute_over_the_clips_that_have_it():
    scores = [Adherence(color=1.0, speed=0.0), Adherence(color=0.0), Adherence(color=0.5, pan=1.0)]
    assert average(scores) == Adherence(color=0.5, speed=0.0, pan=1.0)
    assert scores[0].mean == 0.5


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((4, 8, 8, 3), np.float32),
        np.zeros((4, 3, 8, 8), np.uint8),
        np.zeros((4, 8, 9, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(video):
    with pytest.raises(ValueError, match=r"video is .* allowed: uint8 \[T, H, W, 3\]"):
        score_clip(video, PLAIN)


def test_a_prompt_outside_the_grammar_is_refused():
    with pytest.raises(ValueError, match="'zebra'"):
        score_clip(clip(PLAIN, size=32), "a small zebra")
