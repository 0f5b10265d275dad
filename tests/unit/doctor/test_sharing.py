"""Warnings about folders in which others can exchange what a job loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from core_hpc.doctor import sharing
from core_hpc.doctor.checks import OK, WARN, Finding, Subject
from core_hpc.doctor.sharing import check_sharing
from core_hpc.slurm.commands import Slurm
from tests.support.fake_slurm import run_of
from tests.support.second_user import as_colleague

EXCHANGE = """
folder = pathlib.Path(sys.argv[1])
folder.rename(folder.with_name("aside"))
folder.mkdir()
"""


@pytest.fixture(autouse=True)
def _own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of this machine is another matter; here only its owner can change it."""
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.setattr(sharing, "OWN_CODE", code)
    monkeypatch.setattr(sys, "prefix", str(code))
    monkeypatch.setattr(sharing, "user_name", lambda uid: "ada")


def findings(project: Path) -> list[Finding]:
    from core_hpc.runs.sweep import load_sweep

    run_of(project, "arrays")
    sweep = load_sweep(project / "sweep.yaml")
    return list(check_sharing(Subject(sweep, True, Slurm())))


def test_the_sticky_bit_keeps_a_colleague_from_exchanging_a_sweep(project: Path) -> None:
    (warned,) = findings(project)
    assert warned.status == WARN
    assert "can rename what is in" in warned.what
    assert f"chmod +t {project}" in warned.advice
    project.chmod(0o3775)
    (fine,) = findings(project)
    assert fine.status == OK
    assert as_colleague(EXCHANGE, project / "s").returncode != 0
    project.chmod(0o2775)
    assert as_colleague(EXCHANGE, project / "s").returncode == 0, "what the warning is about"


def test_code_that_others_can_change_is_named(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.chmod(0o3775)
    shared = tmp_path / "shared"
    (shared / "core_hpc").mkdir(parents=True)
    monkeypatch.setattr(sharing, "OWN_CODE", shared / "core_hpc")
    for folder, mode, expected in ((shared, 0o775, shared), (shared / "core_hpc", 0o1777, shared / "core_hpc")):
        shared.chmod(0o755)
        folder.chmod(mode)
        _, warned = findings(project)
        assert (warned.status, f"chmod -R go-w {expected}" in warned.advice) == (WARN, True)
    assert "everybody can change" in warned.what


def test_a_group_that_has_only_its_user_is_no_danger(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "user_name", lambda uid: sharing._group(project.stat().st_gid))
    (fine,) = findings(project)
    assert fine.status == OK
