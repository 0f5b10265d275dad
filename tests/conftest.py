"""Fixtures shared by all tests: tiny models are made once a session."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny random models of different weights; the second has a chat template."""
    from tiny import make_tiny_model

    folder = tmp_path_factory.mktemp("models")
    return [make_tiny_model(folder / "m0", seed=0), make_tiny_model(folder / "m1", seed=1, chat=True)]
