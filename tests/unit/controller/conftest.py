"""Fixtures of the tests of the controller."""

from __future__ import annotations

import sys

import pytest

from tests.support.wandb_package import RecordingWandb


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> RecordingWandb:
    """The package wandb, which records its calls."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    package = RecordingWandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package
