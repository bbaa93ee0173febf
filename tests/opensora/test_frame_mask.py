"""Frame masks: what each rule leaves clean, how often it is drawn, and what is refused."""
import pytest
import torch

from opensora.training.frame_mask import RULES, MaskGenerator


def masks(ratios: dict[str, float], frames: int, videos: int = 200) -> list[str]:
    """As text, one letter per frame: G to be generated, c given clean."""
    x = torch.zeros(videos, 4, frames, 2, 2)
    drawn = MaskGenerator(ratios).get_masks(x, torch.Generator().manual_seed(1))
    assert drawn.dtype == torch.bool and drawn.shape == (videos, frames)
    return ["".join("cG"[int(on)] for on in row) for row in drawn]


@pytest.mark.parametrize(("name", "allowed"), [
    ("identity", {"GGGGGGGG"}),
    ("intepolate", {"cGcGcGcG", "GcGcGcGc"}),
    ("interpolate", {"cGcGcGcG", "GcGcGcGc"}),
    ("quarter_head", {"cGGGGGGG", "ccGGGGGG"}),
    ("quarter_tail", {"GGGGGGGc", "GGGGGGcc"}),
    ("quarter_head_tail", {"cGGGGGGc", "ccGGGGcc"}),
    ("image_head", {"cGGGGGGG"}),
    ("image_tail", {"GGGGGGGc"}),
    ("image_head_tail", {"cGGGGGGc"}),
    ("image_random", {"G" * i + "c" + "G" * (7 - i) for i in range(8)}),
    ("quarter_random", {"G" * i + "c" * n + "G" * (8 - n - i) for n in (1, 2) for i in range(9 - n)}),
])
def test_a_rule_makes_just_its_masks_of_eight_frames(name: str, allowed: set[str]) -> None:
    assert set(masks({name: 1.0}, frames=8)) == allowed


def test_the_random_rule_gives_half_of_the_frames_on_average() -> None:
    drawn = masks({"random": 1.0}, frames=20, videos=1000)
    shares = torch.tensor([mask.count("c") / 20 for mask in drawn])
    assert abs(shares.mean() - 0.5) < 0.03   # the share is uniform in 0.1 .. 0.9: mean 0.5,
    assert abs(shares.std() - 0.25) < 0.03   # deviation sqrt(0.8^2 / 12 + mean of p (1 - p) / 20) = 0.252


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_there_is_always_a_frame_to_generate(name: str, frames: int) -> None:
    assert all("G" in mask for mask in masks({name: 1.0}, frames))


@pytest.mark.parametrize("name", sorted(RULES))
def test_an_image_is_generated_whole(name: str) -> None:
    assert set(masks({name: 1.0}, frames=1)) == {"G"}


def test_rules_are_drawn_as_often_as_asked_and_the_rest_is_identity() -> None:
    drawn = masks({"image_head": 0.25, "image_tail": 0.5}, frames=5, videos=4000)
    # deviation of a share over 4000 draws: below 0.008
    assert abs(drawn.count("cGGGG") / 4000 - 0.25) < 0.03
    assert abs(drawn.count("GGGGc") / 4000 - 0.5) < 0.03
    assert abs(drawn.count("GGGGG") / 4000 - 0.25) < 0.03


def test_torchs_seed_decides() -> None:
    generator, x = MaskGenerator({"random": 1.0}), torch.zeros(4, 4, 15, 2, 2)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return generator.get_masks(x)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_ratios_may_be_empty() -> None:
    assert set(masks({}, frames=4)) == {"GGGG"}


@pytest.mark.parametrize(("ratios", "message"), [
    ({"qarter_head": 0.5}, "mask_ratios key 'qarter_head'; allowed: identity, random, .*quarter_head"),
    ({"random": -0.1}, r"mask_ratios\['random'\]=-0.1; allowed"),
    ({"random": "often"}, r"mask_ratios\['random'\]='often'; allowed"),
    ({"random": float("nan")}, r"mask_ratios\['random'\]=nan; allowed"),
    ({"random": 0.7, "image_head": 0.4}, "mask_ratios sum to 1.1; allowed: 1 at most"),
])
def test_bad_ratios_are_refused_by_name(ratios: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskGenerator(ratios)


def test_ratios_that_are_no_dict_are_refused() -> None:
    with pytest.raises(TypeError, match="mask_ratios=0.5; allowed: a dict"):
        MaskGenerator(0.5)


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 5, 2, 2\); allowed: \[B, C, T, H, W\]"):
        MaskGenerator({}).get_masks(torch.zeros(4, 5, 2, 2))
