"""Reference frames land where the published code put them."""
import json

import pytest
import torch
from golden import GOLDEN, needs_golden, tensors

from opensora.utils.mask_strategy import apply_mask_strategy

pytestmark = needs_golden
CASES = tensors("mask_strategy")
TEXTS = json.loads((GOLDEN / "text_and_tables.json").read_text()) if GOLDEN.exists() else {}
META = TEXTS.get("apply_mask_strategy", {})


def references(case: str) -> list[list[torch.Tensor]]:
    return [[CASES[f"{case}.ref.{i}.{j}"] for j in range(len(frames))]
            for i, frames in enumerate(META[case]["ref_frames"])]


@pytest.mark.parametrize("case", sorted(META))
def test_masks_and_latents_are_as_recorded(case):
    meta, z = META[case], CASES[f"{case}.z_before"].clone()
    args = (z, references(case), meta["strategies"], meta["loop"], meta["align"])
    if meta["error"]:
        with pytest.raises(ValueError, match="asks for reference 1; allowed: 0 to 0"):
            apply_mask_strategy(*args)
    else:
        mask = apply_mask_strategy(*args)
        assert (mask is None) == (meta["mask"] is None)
        if mask is not None:
            assert torch.equal(mask, CASES[f"{case}.mask"]) and mask.tolist() == meta["mask"]
    assert torch.equal(z, CASES[f"{case}.z_after"])


def test_no_recorded_tensor_is_left_out():
    used = {f"{case}.ref.{i}.{j}" for case in META
            for i, frames in enumerate(META[case]["ref_frames"]) for j in range(len(frames))}
    rest = {name for name in CASES if ".ref." in name}
    assert rest == used and {name.split(".")[0] for name in CASES} == set(META)
