"""Shell scripts: they parse, shellcheck finds nothing, and they do what their comments promise."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CI = ROOT / ".ci" / "run"
SCRIPTS = [
    CI,
    ROOT / "tests" / "gpu" / "acceptance.sh",
    *sorted(p for p in (ROOT / "slurm").rglob("*") if p.suffix in (".sh", ".sbatch")),
]


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
    assert {"run", "devcluster.sh", "controller.sbatch", "node_local.sh", "container.sh"} <= {p.name for p in SCRIPTS}


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
    printed = bash(
        code, str(script), cwd=tmp_path, SLURM_TMPDIR=str(tmp_path), SLURM_JOB_ID="17", XDG_CACHE_HOME="/weights"
    ).splitlines()
    folder = printed[0]
    assert folder.startswith("core_hpc-17-")
    env = dict(line.split("=", 1) for line in printed[1:] if "=" in line)
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"):
        assert Path(env[name]).parent == tmp_path / folder
    assert env["XDG_CACHE_HOME"] == "/weights"
    assert list(tmp_path.iterdir()) == []


def test_node_local_passes_on_what_was_compiled(tmp_path: Path) -> None:
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
    assert job(5, "cat another; echo again >kernel") == "three\n", "a damaged file is left out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]
    for number in range(100, 200):
        (kept / f"{number}.tar").symlink_to(kept / "3.tar")
    job(6, "echo six >six")
    assert not (kept / "6.tar").exists(), "the folder does not grow forever"


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
    printed = bash(
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
    assert printed[:2] == ["exec", "--nv"]
    assert printed[-5:] == ["image.sif", "python", "-c", "two words", ""]
    bound = [b for a, b in itertools.pairwise(printed) if a == "--bind"]
    assert bound == [str(tmp_path / p) for p in ("project", "real/outputs", "weights")]


# --- .ci/run, in a small repository whose commands are stand-ins ---------------------------------

INSTALL = "mkdir -p .venv/bin && cp tools/* .venv/bin/ && "
QUICKSTART = f"{INSTALL}python -m core_hpc.launch yaml/quickstart.yaml"
TESTS = f"{INSTALL}python -m pytest -q"


@pytest.fixture
def small_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed repository with .ci/run. Every command in it succeeds; `python` writes its arguments to ../calls."""
    root = tmp_path / "repository"
    for folder in (".ci", "slurm", "tools", "bin"):
        (root / folder).mkdir(parents=True)
    shutil.copy(CI, root / ".ci" / "run")
    shutil.copy(ROOT / ".gitignore", root / ".gitignore")
    (root / "README.md").write_text(f"# A README\n\n{QUICKSTART}\n\n{TESTS}\n")
    for name in ("slurm/devcluster.sh", "bin/shellcheck", "bin/python", "tools/ruff", "tools/mypy"):
        (root / name).write_text(f'#!/bin/bash\necho "${{0##*/}} $*" >>{tmp_path}/calls\n')
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    for name, value in {"NAME": "a", "EMAIL": "a@example.org"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    for arguments in ("init -q", "add -A", "commit -q -m first"):
        subprocess.run(["git", *arguments.split()], cwd=root, check=True)
    return root


def ci(root: Path) -> tuple[int, str, str | None]:
    """The exit status of .ci/run, what it printed, and what it wrote to .ci/passed."""
    (root / ".ci" / "passed").write_text("of an earlier run")
    done = subprocess.run([root / ".ci" / "run"], cwd="/", capture_output=True, text=True, check=False)
    passed = root / ".ci" / "passed"
    return done.returncode, done.stdout + done.stderr, passed.read_text() if passed.exists() else None


def test_ci_writes_the_commit_that_passed(small_repository: Path) -> None:
    status, printed, passed = ci(small_repository)
    assert status == 0, printed
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=small_repository, capture_output=True, text=True, check=True
    )
    assert passed is not None
    assert passed.split()[0] == head.stdout.strip()
    calls = (small_repository.parent / "calls").read_text().splitlines()
    wanted = ["python -m pytest -q", "ruff check .", "ruff format --check .", "mypy "]
    assert [call for call in calls if not call.startswith("devcluster.sh")] == wanted


@pytest.mark.parametrize("command", ["bin/python", "tools/ruff", "tools/mypy"])
def test_ci_fails_and_writes_nothing_when_a_command_fails(small_repository: Path, command: str) -> None:
    with (small_repository / command).open("a") as script:
        script.write("exit 1\n")
    subprocess.run(["git", "commit", "-q", "-a", "-m", "broken"], cwd=small_repository, check=True)
    status, printed, passed = ci(small_repository)
    assert status == 1, printed
    assert passed is None


def test_ci_writes_nothing_with_uncommitted_changes(small_repository: Path) -> None:
    (small_repository / "new.py").touch()
    status, printed, passed = ci(small_repository)
    assert (status, passed) == (0, None)
    assert "uncommitted changes" in printed


def test_ci_writes_nothing_without_git(small_repository: Path) -> None:
    shutil.rmtree(small_repository / ".git")
    status, printed, passed = ci(small_repository)
    assert (status, passed) == (0, None)
    assert "no git checkout" in printed


@pytest.mark.parametrize(
    ("tests", "message"),
    [(f"true && {TESTS}", "different installation parts"), ("nothing", "no line with")],
)
def test_ci_refuses_a_readme_whose_commands_do_not_match(small_repository: Path, tests: str, message: str) -> None:
    (small_repository / "README.md").write_text(f"{QUICKSTART}\n{tests}\n")
    status, printed, passed = ci(small_repository)
    assert (status, passed) == (1, None)
    assert message in printed
    assert not (small_repository.parent / "calls").exists()
