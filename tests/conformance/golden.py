"""Where the recorded data lie, and how close is close enough."""
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(),
                                  reason="recorded reference data (../shared/golden) not here")


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors") if GOLDEN.exists() else {}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """max |difference| <= tolerance x max |expected|, the contract of DESIGN section 5."""
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    assert difference <= tolerance * largest, f"{difference:.3g} > {tolerance} * {largest:.3g}"
