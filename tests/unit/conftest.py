"""Fixtures of the tests without real components."""

import pytest

from core_hpc.slurm import executor, watch
from tests.support.fake_slurm import FakeSlurm


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """NOT SLURM: what the executors of this test submit goes to it, and what it says is believed at once."""
    fake = FakeSlurm()
    monkeypatch.setattr(executor, "submit_elements", fake.submit)
    monkeypatch.setattr(watch, "SETTLE_S", 0.0)
    monkeypatch.setattr(watch, "STATUS_S", 0.0)
    return fake
