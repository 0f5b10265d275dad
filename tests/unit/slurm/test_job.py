"""What a job runs is what was submitted, and only its submitter can change it."""

from __future__ import annotations

import errno
import functools
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common import ownership
from core_hpc.common.errors import InputError, StoreError
from core_hpc.common.ownership import OwnershipError
from core_hpc.config.cluster import ClusterSection
from core_hpc.controller.detach import ControllerSpec, run_controller
from core_hpc.doctor.node import ProbeSpec, examine
from core_hpc.runs import conflicts
from core_hpc.runs import folder as runs
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm import job, submit
from core_hpc.slurm.element import ElementSpec, run_element
from core_hpc.slurm.job import ChangedError, read_call, write_calls
from core_hpc.slurm.outcomes import JOB_BEGINS
from core_hpc.slurm.records import CALLS, SubmissionFolder
from core_hpc.slurm.resident_job import run_resident
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from tests.support.fake_slurm import publish, run_of
from tests.support.harness import ROOT
from tests.support.second_user import as_colleague, as_colleague_after, require_root, under_umask

PROBE = ProbeSpec(folder="f", packages=("torch", "vllm"), models=(), threads=2)
ELEMENT = ElementSpec("run", ("cold/0001/a/000",), "status", 2, 10, 15.0, 30.0, 1.5)
CONTROLLER = ControllerSpec("sweep", ("run-1", "run-2"), "start", -1, 12.5, "status")


# --- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "specs"),
    [(run_element, [ELEMENT, ELEMENT]), (run_resident, [ELEMENT]), (run_controller, [CONTROLLER]), (examine, [PROBE])],
)
def test_a_call_is_the_same_after_writing_and_reading(
    function: Callable[[Any], None], specs: list[Any], tmp_path: Path
) -> None:
    checksum = write_calls(tmp_path, [functools.partial(function, spec) for spec in specs])
    for index, spec in enumerate(specs):
        assert read_call(tmp_path / CALLS, checksum, index) == (function, spec)


def test_a_job_whose_log_is_on_a_full_disk_does_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spec = replace(ELEMENT, status=str(tmp_path / "status.json"), run=str(tmp_path / "none"))
    checksum = write_calls(tmp_path, [functools.partial(run_element, spec)])
    monkeypatch.setattr("core_hpc.slurm.element.Stop", lambda spec: None)
    for module in ("core_hpc.slurm.job.print", "core_hpc.slurm.element.print", "core_hpc.slurm.job.show_error"):
        monkeypatch.setattr(module, full, raising=False)
    assert job.main([str(tmp_path / CALLS), checksum]) == 1
    assert "none/run.json: cannot be read" in manifests.read_json(tmp_path / "status.json")["outcome"]["message"]
    monkeypatch.setattr(manifests, "write_json", full)
    assert job.main([str(tmp_path / CALLS), checksum]) == 1


def test_the_first_line_of_a_log_is_known_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "VISIBLE_WAIT_S", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert job.main([str(tmp_path / CALLS), "0"]) == 1
    assert JOB_BEGINS.match(capsys.readouterr().out)


def test_a_job_finds_its_call_when_the_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network file system, looking for the name itself may fail for a minute after a first look."""
    path = tmp_path / CALLS
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(job, "VISIBLE_WAIT_S", 20.0)
    monkeypatch.setattr("core_hpc.slurm.job.time.sleep", lambda seconds: path.touch())
    began = time.monotonic()
    job._wait_for(path)
    assert time.monotonic() - began < 10.0


def test_a_changed_call_is_refused_and_not_run(tmp_path: Path) -> None:
    checksum = write_calls(tmp_path, [functools.partial(examine, PROBE)])
    path = tmp_path / CALLS
    path.write_bytes(path.read_bytes().replace(b"torch", b"evil!"))
    with pytest.raises(ChangedError, match=r"changed after the job was submitted \(owner .*, mode 0640, changed "):
        read_call(path, checksum, 0)
    done = subprocess.run(
        [sys.executable, "-m", "core_hpc.slurm.job", str(path), checksum],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ChangedError.exit_code
    assert "Nothing of it was run" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_batch_script_carries_the_checksum_and_a_safe_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts: list[str] = []

    def sbatch(script: str) -> int:
        scripts.append(script)
        return 7

    monkeypatch.setattr(submit, "run_sbatch", sbatch)
    cluster = ClusterSection.model_validate({"driver": "arrays"})
    parameters = submit.job_parameters(cluster, "generate", name="n", comment="c")
    folder = tmp_path / "slurm" / "cold-0001-0000abcd"
    assert submit.submit(cluster, folder, parameters, [functools.partial(run_element, ELEMENT)]) == 7
    checksum = manifests.sha256_file(folder / CALLS)
    assert f"core_hpc.slurm.job {folder / CALLS} {checksum}\n" in scripts[0]
    assert "pickle" not in scripts[0]
    assert "submitit.core" not in scripts[0]
    assert "export PYTHONSAFEPATH=1\n" in scripts[0]
    assert sorted(p.name for p in folder.iterdir()) == ["calls.json", "submission.sh"]
    monkeypatch.chdir(ROOT)
    assert f"export PYTHONPATH={ROOT}" in "\n".join(
        submit.job_parameters(cluster, "score", name="n", comment="c")["setup"]
    )


def test_a_module_in_the_working_directory_is_not_loaded_by_a_job(tmp_path: Path) -> None:
    """The working directory may be a shared project folder."""
    (tmp_path / "json.py").write_text("raise SystemExit('this ran')")
    setup = "\n".join(submit._python_path())
    done = subprocess.run(
        ["bash", "-c", f"{setup}\n{sys.executable} -c 'import json, sys; print(json.__file__)'"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(tmp_path) not in done.stdout
    assert "this ran" not in done.stderr
    assert done.returncode == 0, done.stderr


# --- modes ---------------------------------------------------------------------------------------


def modes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root.parent)): f"{stat.S_IMODE(path.stat().st_mode):04o}"
        for path in (root, *root.rglob("*"))
    }


@pytest.mark.usefixtures("loose_umask")
def test_nobody_else_may_write_into_a_run_whatever_the_umask(project: Path) -> None:
    run = run_of(project, "arrays")
    publish(run, next(iter(run.graph().tasks())))
    folder = SubmissionFolder(run.paths.slurm).root / "cold-0001-0000abcd"
    manifests.make_folder(folder)
    write_calls(folder, [functools.partial(run_element, ELEMENT)])
    found = modes(project / "s")
    assert {path: mode for path, mode in found.items() if int(mode, 8) & ownership.OTHERS_MAY_WRITE} == {}
    assert {path: mode for path, mode in found.items() if not int(mode, 8) & stat.S_IRGRP} == {}, "the group reads"
    assert int(found["s"], 8) & 0o7 == 0


@pytest.mark.usefixtures("loose_umask")
def test_a_colleague_reads_everything_and_can_change_nothing(project: Path) -> None:
    run = run_of(project, "arrays")
    folder = SubmissionFolder(run.paths.slurm).root / "cold-0001-0000abcd"
    manifests.make_folder(folder)
    write_calls(folder, [functools.partial(run_element, ELEMENT)])
    code = """
root = pathlib.Path(sys.argv[1])
for path in [root, *sorted(root.rglob("*"))]:
    if path.is_dir():
        list(path.iterdir())
        attempt = lambda: (path / "new").write_text("x")
    else:
        path.read_bytes()
        attempt = lambda: path.open("ab").write(b"x")
    for change in (attempt, lambda: path.rename(path.with_name("other"))):
        try:
            change()
        except PermissionError:
            continue
        if path != root: sys.exit(f"changed {path}")
        path.with_name("other").rename(path)
print("read all")
"""
    done = as_colleague(code, project / "s")
    assert done.stdout == "read all\n", done.stdout + done.stderr


def test_a_run_folder_that_a_colleague_puts_there_is_refused(project: Path) -> None:
    """In a project folder of the group, a colleague can rename the whole sweep and make another one."""
    require_root()
    run = run_of(project, "arrays")
    assert runs.open_run(run.root, own=True).run_id == run.run_id
    code = """
sweep = pathlib.Path(sys.argv[1])
sweep.rename(sweep.with_name("aside"))
shutil.copytree(sweep.with_name("aside"), sweep)
"""
    done = as_colleague(code, project / "s")
    assert done.returncode == 0, done.stderr
    with pytest.raises(OwnershipError, match=r"run\.json: belongs to #64123, but this process runs as root"):
        runs.open_run(run.root, own=True)
    assert runs.open_run(run.root).run_id == run.run_id, "reading results stays possible"
    with pytest.raises(OwnershipError, match=r"/s: belongs to #64123.*Only its owner can continue"):
        conflicts.require_own_folders(load_sweep(project / "sweep.yaml"))


def test_a_start_by_a_colleague_is_refused_with_the_name_of_the_owner(project: Path) -> None:
    require_root()
    run_of(project, "arrays")
    imports = "import core_hpc.launch as launch, core_hpc.runs.sweep, core_hpc.slurm.submit, core_hpc.controller.detach"
    done = as_colleague_after(imports, "sys.exit(launch.main([sys.argv[1]]))", project / "sweep.yaml")
    assert done.returncode == InputError.exit_code, done.stdout + done.stderr
    assert "no permission to write here (it belongs to root, mode 2750)" in " ".join(done.stderr.split())


def test_a_configuration_that_the_group_may_change_is_refused_until_the_next_start(tmp_path: Path) -> None:
    """Folders of earlier versions had such modes. A start by their owner corrects them."""
    run = run_of(tmp_path, "arrays")
    config = RunPaths(run.root).config
    for path in (run.root, config):
        path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(OwnershipError, match=r"config\.json: the group may change it \(mode 0660.*chmod -R go-w"):
        runs.open_run(run.root, own=True)
    run_of(tmp_path, "arrays")
    assert runs.open_run(run.root, own=True).config == run.config
    assert modes(run.root)[run.root.name] == "0750"


@pytest.mark.parametrize(("umask", "expected"), [(0o002, "0640"), (0o077, "0600")])
@pytest.mark.parametrize("own_mode", [0o600, 0o666])
def test_a_published_file_is_as_readable_as_its_folder(
    umask: int, expected: str, own_mode: int, tmp_path: Path
) -> None:
    """safetensors makes files for their owner alone. A user who wants this for all files sets the umask."""

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "file").touch()
        (folder / "file").chmod(own_mode)
        return {}

    with under_umask(umask):
        manifest = manifests.publish(tmp_path / "new", "name", fill, as_folder=True)
    assert {f"{stat.S_IMODE(path.stat().st_mode):04o}" for path in (manifest.path, manifest.file("file"))} == {expected}


def test_missing_files_are_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        manifests.read_own_json(tmp_path / "run.json")


def test_libraries_of_the_commands_write_no_file_that_others_may_change(tmp_path: Path) -> None:
    """Every command that writes sets the umask before it does anything."""
    (tmp_path / "bad.yaml").write_text("name: [")
    code = (
        "import os, sys; os.umask(0o002)\n"
        "from core_hpc import launch, cancel; from core_hpc.doctor import __main__ as d\n"
        f"launch.main([{str(tmp_path / 'bad.yaml')!r}]); print(oct(os.umask(0o002)))\n"
        f"cancel.main([{str(tmp_path / 'bad.yaml')!r}]); print(oct(os.umask(0o002)))\n"
        f"d.main([{str(tmp_path / 'bad.yaml')!r}]); print(oct(os.umask(0o002)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("0o")] == ["0o22"] * 3
