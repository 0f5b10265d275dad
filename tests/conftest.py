"""Fixtures shared by all tests: tiny models are made once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.support.cluster import DevCluster

hypothesis.settings.register_profile("shared_machine", deadline=None)  # a slow moment of the machine is no failure
hypothesis.settings.load_profile("shared_machine")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny random models of different weights; the second has a chat template."""
    from tests.support.tiny import make_tiny_model

    folder = tmp_path_factory.mktemp("models")
    return [make_tiny_model(folder / "m0", seed=0), make_tiny_model(folder / "m1", seed=1, chat=True)]


@pytest.fixture(scope="session")
def cluster() -> Iterator[DevCluster]:
    """A real Slurm cluster of four nodes on this machine (tests/support/cluster.py); skips where Slurm cannot be had."""
    from tests.support.cluster import running_cluster

    with running_cluster(nodes=4) as running:
        yield running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="cluster tests in full: every fault at every phase (some 35 minutes)"
    )
    parser.addoption(
        "--record", action="store_true", help="test_recorded_run.py: record the run anew in place of comparing it"
    )
