"""Fixtures of the unit tests."""

from pathlib import Path

import pytest

from core_hpc.slurm import executor, watch
from tests.support.fake_slurm import FakeSlurm
from tests.support.slurm_commands import FakeCommands


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """NOT SLURM: receives the submissions of the executors of a test. Its answers count at once."""
    fake = FakeSlurm()
    monkeypatch.setattr(executor, "submit_elements", fake.submit)
    monkeypatch.setattr(watch, "SETTLE_S", 0.0)
    monkeypatch.setattr(watch, "UNSEEN_S", 0.0)
    monkeypatch.setattr(watch, "STATUS_S", 0.0)
    return fake


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    """Scripts that the test writes, found on PATH instead of the commands of SLURM."""
    fake = FakeCommands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    return fake
