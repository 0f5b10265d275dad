"""Shell scripts below slurm/: they parse, shellcheck finds nothing, and the files for profiles do what they say."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(p for p in (ROOT / "slurm").rglob("*") if p.suffix in (".sh", ".sbatch"))


def bash(code: str, *arguments: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-c", code, "bash", *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scripts_are_found() -> None:
    assert {"devcluster.sh", "controller.sbatch", "node_local.sh", "container.sh"} <= {p.name for p in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_script_parses(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", "--shell=bash", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_node_local_caches_live_as_long_as_the_job(tmp_path: Path) -> None:
    script = ROOT / "slurm" / "setup" / "node_local.sh"
    code = 'set -eu; source "$1"; mkdir -p "$TRITON_CACHE_DIR"; ls "$SLURM_TMPDIR"; env'
    told = bash(
        code, str(script), cwd=tmp_path, SLURM_TMPDIR=str(tmp_path), SLURM_JOB_ID="17", XDG_CACHE_HOME="/weights"
    ).splitlines()
    folder = told[0]
    assert folder.startswith("core_hpc-17-")
    env = dict(line.split("=", 1) for line in told[1:] if "=" in line)
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"):
        assert Path(env[name]).parent == tmp_path / folder
    assert env["XDG_CACHE_HOME"] == "/weights"
    assert list(tmp_path.iterdir()) == []


def test_node_local_hands_on_what_was_compiled(tmp_path: Path) -> None:
    script, kept = ROOT / "slurm" / "setup" / "node_local.sh", tmp_path / "kept"

    def job(number: int, commands: str) -> str:
        env = {"SLURM_TMPDIR": str(tmp_path), "SLURM_JOB_ID": str(number), "CORE_HPC_COMPILED": str(kept)}
        code = 'set -eu; source "$1"; mkdir -p "$TRITON_CACHE_DIR"; cd "$TRITON_CACHE_DIR"; '
        return bash(code + commands, str(script), cwd=tmp_path, **env)

    assert job(1, "ls") == ""
    assert list(kept.iterdir()) == [], "nothing was compiled"
    job(2, "echo two >kernel; mkdir more; echo deep >more/other")
    job(3, "echo three >another")
    assert job(4, "cat kernel more/other another") == "two\ndeep\nthree\n"
    assert sorted(p.name for p in kept.iterdir()) == ["2.tar", "3.tar"], "a job that compiles nothing leaves nothing"
    (kept / "2.tar").write_bytes((kept / "2.tar").read_bytes()[:700])
    assert job(5, "cat another; echo again >kernel") == "three\n", "a torn file is left out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]
    for number in range(100, 200):
        (kept / f"{number}.tar").symlink_to(kept / "3.tar")
    job(6, "echo six >six")
    assert not (kept / "6.tar").exists(), "the folder does not grow for ever"


def test_node_local_keeps_the_status_of_the_script(tmp_path: Path) -> None:
    script = ROOT / "slurm" / "setup" / "node_local.sh"
    done = subprocess.run(
        ["bash", "-c", f'source "{script}"; exit 7'], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False
    )
    assert done.returncode == 7
    assert list(tmp_path.iterdir()) == []


def test_container_passes_arguments_and_binds_folders(tmp_path: Path) -> None:
    """With a stand-in for apptainer that shows its arguments."""
    for name in ("bin", "real/outputs", "project", "weights"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "project" / "outputs").symlink_to(tmp_path / "real" / "outputs")
    apptainer = tmp_path / "bin" / "apptainer"
    apptainer.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    apptainer.chmod(0o755)
    told = bash(
        '"$@"',
        str(ROOT / "slurm" / "setup" / "container.sh"),
        "image.sif",
        "python",
        "-c",
        "two words",
        "",
        cwd=tmp_path / "project",
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        CORE_HPC_CACHE=str(tmp_path / "weights"),
        HF_HOME="",
        CORE_HPC_NODE_LOCAL="",
    ).split("\n")[:-1]
    assert told[:2] == ["exec", "--nv"]
    assert told[-5:] == ["image.sif", "python", "-c", "two words", ""]
    bound = [b for a, b in itertools.pairwise(told) if a == "--bind"]
    assert bound == [str(tmp_path / p) for p in ("project", "real/outputs", "weights")]
