"""Shared by all tests: tiny models on disk, made once."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder with transformer/, vae/, text_encoder/ and sample.py, a config for them."""
    from tiny_models import save_tiny_models

    return save_tiny_models(tmp_path_factory.mktemp("tiny"))
