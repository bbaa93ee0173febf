"""Reference frames are copied where the strategy says, and strategies that cannot work are named."""
import pytest
import torch

from opensora.utils.mask_strategy import (
    append_generated,
    apply_mask_strategy,
    dframe_to_frame,
    find_nearest_point,
    mask_or_none,
    parse_mask_strategy,
)


def reference(frames: int) -> torch.Tensor:
    """[2, frames, 3, 3]; frame t holds t + 1."""
    return torch.arange(1.0, frames + 1).view(1, -1, 1, 1).expand(2, -1, 3, 3).clone()


def clip(frames: int = 10, batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, 2, frames, 3, 3)


def apply(strategy, z, *refs, loop=0, align=None):
    mask = apply_mask_strategy(z, [list(refs)], [strategy], loop, align)
    return mask[0].tolist(), z[0, 0, :, 0, 0].tolist()


def test_left_out_values_have_their_defaults():
    assert parse_mask_strategy("0") == [[0, 0, 0, 0, 1, 0.0]]
    assert parse_mask_strategy("1,2") == [[1, 2, 0, 0, 1, 0.0]]
    assert parse_mask_strategy("") == parse_mask_strategy(None) == []


@pytest.mark.parametrize("bad", [
    "a", "0;", "0,0,0,0,1,0,7", "0,0,1.5", "-1", "0,0,0,0,-1", "0,0,0,0,1,2", "0,0,0,0,1,nan"])
def test_a_malformed_strategy_names_itself_and_the_grammar(bad):
    with pytest.raises(ValueError) as error:
        parse_mask_strategy(f"0;{bad}")
    message = str(error.value)
    assert f"mask_strategy={'0;' + bad!r}" in message and "\n" not in message
    assert "loop,ref,ref_start,target_start,length,edit_ratio" in message


def test_frames_are_copied_and_held():
    mask, z = apply("0,0,1,4,2,0.25", clip(), reference(3))
    assert mask == [1, 1, 1, 1, 0.25, 0.25, 1, 1, 1, 1]
    assert z == [0, 0, 0, 0, 2, 3, 0, 0, 0, 0]


def test_negative_starts_count_from_the_end():
    _, z = apply("0,0,-2,-3,2", clip(), reference(5))
    assert z == [0, 0, 0, 0, 0, 0, 0, 4, 5, 0]


def test_starts_are_aligned_to_whole_chunks():
    _, z = apply("0,0,0,8,1", clip(15), reference(1), align=5)  # 8 is nearer to 10 than to 5
    assert z.index(1) == 10
    assert find_nearest_point(8, 5, 10) == 5  # no whole chunk after 10


def test_copies_end_where_clip_or_reference_end():
    mask, z = apply("0,0,0,8,9", clip(), reference(5))
    assert z[-2:] == [1, 2] and mask == [1] * 8 + [0, 0]
    mask, _ = apply("0,0,0,0,9", clip(), reference(2))
    assert mask == [0, 0] + [1] * 8


def test_other_loops_are_left_alone():
    mask, z = apply("1,0,0,0,5", clip(), reference(5))
    assert set(mask) == {1} and set(z) == {0}


def test_latents_may_have_another_dtype_than_references():
    z = clip().bfloat16()
    assert apply("0", z, reference(1))[1][0] == 1 and z.dtype == torch.bfloat16


@pytest.mark.parametrize(("strategy", "says"), [
    ("0,1", "asks for reference 1; allowed: 0 to 0"), ("0,-2", "asks for reference -2"),
    ("0,0,5", "ref_start=5; allowed: -5 to 4"), ("0,0,-6", "ref_start=-6"),
    ("0,0,0,10", "target_start=10; allowed: -10 to 9"), ("0,0,0,-11", "target_start=-11"),
])
def test_what_is_not_there_is_named_and_nothing_is_copied(strategy, says):
    z = clip()
    with pytest.raises(ValueError) as error:
        apply(f"0;{strategy}", z, reference(5))
    message = str(error.value)
    assert says in message and f"mask_strategy='0;{strategy}'" in message and "\n" not in message
    assert not z.any()


def test_a_strategy_without_references_is_an_error():
    for refs in ([], None):
        with pytest.raises(ValueError, match="reference_path names none"):
            apply_mask_strategy(clip(), [refs], ["0"], 0)


def test_a_reference_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"\[2, 1, 4, 3\]; allowed: the clip's, \[2, 10, 3, 3\]"):
        apply("0", clip(), torch.zeros(2, 1, 4, 3))


def test_a_mask_that_holds_nothing_is_no_mask():
    free = apply_mask_strategy(clip(batch=2), [[], []], ["", None], 0)
    assert free.tolist() == [[1] * 10] * 2 and mask_or_none(free) is None
    assert apply_mask_strategy(clip(), [], [], 0) is None and mask_or_none(None) is None
    held = apply_mask_strategy(clip(batch=2), [[], [reference(1)]], ["", "0"], 0)
    assert mask_or_none(held) is held


class Vae:
    def encode(self, x):
        return x


def test_the_end_of_a_clip_starts_the_next_one():
    """Clip 0 was 15 latents, 5 of which are carried over: latents 11 ... 15 of it are 1 ... 5 of the next."""
    refs, strategies = append_generated(Vae(), reference(15)[None], [[reference(1)]], ["0"], 1, 5, 0.0)
    assert strategies == ["0;1,1,-5,0,5,0.0"]
    z = clip(15)
    mask = apply_mask_strategy(z, refs, strategies, 1, align=5)
    assert z[0, 0, :6, 0, 0].tolist() == [11, 12, 13, 14, 15, 0] and mask[0].tolist() == [0] * 5 + [1] * 10


def test_every_sample_of_a_prompt_starts_from_the_same_references():
    refs, strategies = [[reference(1)], None], ["0", None]
    for _ in range(2):
        more, longer = append_generated(Vae(), clip(15, batch=2), refs, strategies, 1, 5, 0.5)
        assert [len(r) for r in more] == [2, 1] and longer == ["0;1,1,-5,0,5,0.5", "1,0,-5,0,5,0.5"]
    assert len(refs[0]) == 1 and refs[1] is None and strategies == ["0", None]


def test_latents_of_whole_chunks_are_17_frames_each():
    assert [dframe_to_frame(n) for n in (0, 5, 15)] == [0, 17, 51]
    with pytest.raises(ValueError, match="condition_frame_length=7; allowed: multiples of 5"):
        dframe_to_frame(7)
