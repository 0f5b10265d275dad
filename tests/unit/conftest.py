"""Fixtures of the unit tests."""

import pytest

from core_hpc.slurm import executor, watch
from tests.support.fake_slurm import FakeSlurm


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """NOT SLURM: receives the submissions of the executors of a test. Its answers count at once."""
    fake = FakeSlurm()
    monkeypatch.setattr(executor, "submit_elements", fake.submit)
    monkeypatch.setattr(watch, "SETTLE_S", 0.0)
    monkeypatch.setattr(watch, "STATUS_S", 0.0)
    return fake
