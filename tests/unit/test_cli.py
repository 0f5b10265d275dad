"""The console command `core-hpc`, and what an ordinary (not editable) installation contains."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import core_hpc
from core_hpc import __main__ as cli
from core_hpc import export
from core_hpc.common import packages, shipped
from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.slurm.submit import job_parameters
from tests.support.analysis_data import evaluation_rows, make_run, publish_rollouts

ROOT = Path(__file__).parents[2]
SHIPPED_BY_NAME = {"yaml": ["**/*.yaml", "examples/*.py"], "slurm": ["*.sh", "*.sbatch", "setup/*.sh"]}
MODULES = ("core_hpc.launch", "core_hpc.evaluate", "core_hpc.cancel", "core_hpc.status", "core_hpc", "core_hpc.doctor")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**variables, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *arguments, cwd=cwd, **{"PYTHONPATH": str(ROOT), **environment})


def test_an_export_is_refused_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root
    nothing: Any = None
    with pytest.raises(InputError, match=r"no permission to write here .*; choose another folder for --out"):
        export.write(nothing, tmp_path / "new" / "m0")
    assert not list(tmp_path.iterdir())


# --- the console command -------------------------------------------------------------------------


def test_the_version_is_printed_without_loading_the_subcommands(tmp_path: Path) -> None:
    code = (
        "import json, sys, core_hpc.__main__ as cli\n"
        "try:\n    cli.main(['--version'])\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    version, modules = python("-c", code, cwd=tmp_path).stdout.splitlines()
    assert version == f"core-hpc {core_hpc.__version__}"
    loaded = {name for name in json.loads(modules) if name.startswith(("core_hpc", "analysis"))}
    assert loaded <= {"core_hpc", "core_hpc.__main__", "core_hpc.common"} | {
        f"core_hpc.common.{name}" for name in ("startup", "packages", "terminal")
    }
    assert not {"polars", "pydantic", "shtab"} & set(json.loads(modules))


@pytest.mark.parametrize("command", [*cli.COMMANDS, "completion"])
def test_every_subcommand_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: core-hpc {command} " in capsys.readouterr().out


def test_the_modules_keep_their_own_names_in_their_help() -> None:
    for name, module in (("launch", "core_hpc.launch"), ("status", "core_hpc.status"), ("analysis", "analysis")):
        done = python("-m", module, "--help", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: python -m {module} "), name


@pytest.mark.parametrize("arguments", [[], ["lunch"], ["completion", "tcsh"]])
def test_a_wrong_command_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: core-hpc" in capsys.readouterr().err


def test_the_exit_status_is_that_of_the_subcommand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "neither a sweep's file nor its folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("core-hpc ''", {"launch", "evaluate", "status", "cancel", "export", "doctor", "analysis", "completion"}),
        ("core-hpc launch --dr", {"--driver", "--dry-run"}),
        ("core-hpc launch --driver re", {"resident"}),
        ("core-hpc analysis pass", {"passk"}),
        ("core-hpc completion ''", {"bash", "zsh"}),
        ("core-hpc launch swe", {"sweep.yaml"}),
    ],
)
def test_completion_in_bash(words: str, wanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(cli.completion_script("bash"))
    (tmp_path / "sweep.yaml").touch()
    position = "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))"
    complete = '_shtab_core_hpc "" "${COMP_WORDS[COMP_CWORD]}"'
    code = f"source ./script; COMP_WORDS=({words}); {position}; {complete}"
    done = run("bash", "-c", f'{code}; printf "%s\\n" "${{COMPREPLY[@]}}"', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {line.strip() for line in done.stdout.splitlines()} - {"--help", "-h", "--version", ""}
    assert found == wanted


def test_completion_in_zsh(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef core-hpc")
    assert all(name in script for name in cli.COMMANDS)


# --- an older Python -----------------------------------------------------------------------------


@pytest.mark.parametrize("module", [*MODULES, "core_hpc.export", "analysis"])
def test_an_older_python_is_refused_with_the_version_that_is_needed(module: str, tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.version_info = (3, 10, 12, 'final', 0)\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, "one line without a traceback"
    assert "needs Python 3.11 or newer, but this is Python 3.10" in done.stderr
    assert sys.executable in done.stderr


def test_an_older_python_can_read_the_check() -> None:
    """Nothing is imported before the check, and it has no syntax of newer versions."""
    source = (ROOT / "core_hpc" / "__init__.py").read_text()
    tree = ast.parse(source, feature_version=(3, 4))
    assert {type(node) for node in tree.body} == {ast.Expr, ast.Import, ast.Assign, ast.If}
    assert [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names] == ["sys"]
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert required == ">={}.{}".format(*core_hpc.OLDEST_PYTHON)


# --- a refused command ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["name: [", "nam: x"])
def test_a_refused_sweep_loads_only_what_reads_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    code = (
        "import json, sys\n"
        "from core_hpc.__main__ import main\n"
        "assert main(['launch', 'sweep.yaml', '--dry-run']) == 2\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = python("-c", code, cwd=tmp_path)
    assert "mistake" in done.stderr
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"polars", "numpy", "scipy", "analysis", "psutil", "submitit", "torch", "huggingface_hub"}
    packages_of = {name.split(".")[1] for name in loaded if name.startswith("core_hpc.")}
    assert packages_of == {"__main__", "common", "config", "extensions", "launch", "runs", "store"}


# --- a folder of the user with the name `analysis` -----------------------------------------------


@pytest.fixture(params=["package", "file"])
def hiding(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What hides the package `analysis` in the working directory."""
    path = tmp_path / "analysis" if request.param == "package" else tmp_path / "analysis.py"
    if request.param == "package":
        path.mkdir()
    code = "raise RuntimeError('the user\\'s own code was imported')\n"
    (path / "__init__.py" if request.param == "package" else path).write_text(code)
    return path


@pytest.mark.parametrize("module", MODULES)
def test_python_m_reports_what_hides_analysis(hiding: Path, module: str) -> None:
    arguments = ["analysis", "--help"] if module == "core_hpc" else ["--help"]
    done = python("-m", module, *arguments, cwd=hiding.parent)
    assert "Traceback" not in done.stderr
    if module == "core_hpc.doctor":  # does not need `analysis`
        assert done.returncode == 0, done.stderr
        return
    assert (done.returncode, done.stdout) == (2, "")
    assert str(hiding) in done.stderr
    assert "core-hpc" in done.stderr


def test_processes_that_the_launcher_starts_do_not_need_analysis(hiding: Path) -> None:
    """They start in the working directory, even if the console command was used."""
    children = (
        "core_hpc.controller.prepare, core_hpc.phases.worker, core_hpc.slurm.element, core_hpc.slurm.resident_job"
    )
    done = python("-c", f"import {children}, core_hpc.doctor.node", cwd=hiding.parent)
    assert done.returncode == 0, done.stderr


def test_the_job_of_a_detached_controller_does_not_import_from_the_working_directory(
    hiding: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hiding.parent)
    parameters = job_parameters(ClusterSection(driver="arrays"), "controller", name="n", comment="c")
    script = "\n".join([*parameters["setup"], f"{sys.executable} -c 'import core_hpc.controller.detach'"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_plain_folder_hides_analysis_only_if_the_package_is_not_on_the_path(tmp_path: Path) -> None:
    """An editable installation is not on Python's path; an import hook finds it after all folders of the path."""
    own = tmp_path / "analysis"
    own.mkdir()
    (own / "notes.txt").touch()
    assert packages.hiding_analysis([str(tmp_path)]) == own
    assert packages.hiding_analysis([str(tmp_path), str(ROOT)]) is None
    assert packages.hiding_analysis([str(ROOT), str(tmp_path)]) is None
    assert packages.hiding_analysis([str(tmp_path / "empty")]) is None


# --- an ordinary installation --------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation from a wheel. The wheel is built from a copy, because a build leaves files."""
    folder = tmp_path_factory.mktemp("installation")
    copy, target = folder / "copy", folder / "site"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("core_hpc", "analysis", "yaml", "slurm", ".github"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    installed = run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=folder)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return target


def test_pyproject_names_every_package() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = [path for top in ("core_hpc", "analysis") for path in (ROOT / top).rglob("__init__.py")]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    assert set(named) == found | {f"core_hpc.shipped.{name}" for name in SHIPPED_BY_NAME}


@pytest.mark.slow
def test_an_installation_has_sweeps_profiles_and_scripts(site: Path, tmp_path: Path) -> None:
    for name, patterns in SHIPPED_BY_NAME.items():
        wanted = {path.relative_to(ROOT / name) for pattern in patterns for path in (ROOT / name).glob(pattern)}
        root = site / "core_hpc" / "shipped" / name
        installed = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        assert {path for path in installed if "__pycache__" not in path.parts} == wanted  # pip compiles the examples
        for path in wanted:
            assert os.access(root / path, os.X_OK) == os.access(ROOT / name / path, os.X_OK), path
    assert {top.name for top in site.iterdir()} >= {"core_hpc", "analysis"}
    assert not (site / "yaml").exists(), "it would be merged with PyYAML's folder"
    assert (site / "core_hpc" / "py.typed").exists()
    assert (site / "analysis" / "py.typed").exists()
    assert all((site / "analysis" / "browse" / name).exists() for name in ("page.html", "page.css", "page.js"))
    (license_file,) = site.glob("core_hpc-*.dist-info/licenses/**/LICENSE")
    assert "Apache License" in license_file.read_text()
    code = "from core_hpc.common import shipped; print(shipped.checkout_folder(), shipped.shipped_folder('slurm'))"
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.stdout.split() == ["None", str(site / "core_hpc" / "shipped" / "slurm")]


def test_a_checkout_uses_its_own_folders() -> None:
    assert shipped.checkout_folder() == ROOT
    assert shipped.shipped_folder("yaml") == ROOT / "yaml"
    assert shipped.shipped_folder("slurm") == ROOT / "slurm"


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["quickstart.yaml", "replication/independent.yaml", "examples/reward_part.yaml"])
def test_a_shipped_sweep_can_be_planned_with_a_shipped_profile(site: Path, tmp_path: Path, sweep: str) -> None:
    path = site / "core_hpc" / "shipped" / "yaml" / sweep
    arguments = ("-m", "core_hpc.launch", path, "--cluster", "one_node", "--dry-run")
    done = python(*arguments, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert "#SBATCH" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_doctor_reads_the_requirements_of_an_installation(site: Path, tmp_path: Path) -> None:
    code = "from core_hpc.doctor.packages import _declared; w, r = _declared(); print(w, sorted({e for e, _ in r}))"
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout.strip() == f"{project['requires-python']} {sorted(['', *project['optional-dependencies']])}"


@pytest.mark.slow
def test_the_console_script_ignores_the_working_directory(site: Path, hiding: Path) -> None:
    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(site / "bin" / "core-hpc", *arguments, cwd=hiding.parent, PYTHONPATH=str(site))

    assert script("--version").stdout.strip() == f"core-hpc {core_hpc.__version__}"
    for command in ("launch", "status", "analysis"):
        done = script(command, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: core-hpc {command} ")


# --- terminals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [*MODULES, "analysis"])
def test_ctrl_c_while_importing_has_no_traceback(tmp_path: Path, module: str) -> None:
    """A package that every command loads stands for the moment at which the user gives up."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise KeyboardInterrupt\n")
    found = python("-m", module, "status", cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert found.stderr == "\ninterrupted\n"
    assert found.returncode == -signal.SIGINT


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise RuntimeError('a bug')\n")
    found = python("-m", "core_hpc.launch", cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert "Traceback" in found.stderr
    assert "RuntimeError: a bug" in found.stderr


ASCII_TERMINAL = {"PYTHONIOENCODING": "ascii"}


def test_a_report_can_be_printed_on_an_ascii_terminal(tmp_path: Path) -> None:
    run_folder = make_run(tmp_path / "r\u00e9sum\u00e9")
    publish_rollouts(run_folder, evaluation_rows({"ada": [[True, False]], "bob": [[False, False]]}, 0))
    found = python(
        "-m", "analysis", "report", run_folder, "--out", tmp_path / "\u00fcbersicht", cwd=ROOT, **ASCII_TERMINAL
    )
    assert found.returncode == 0, found.stderr
    assert "written: " in found.stdout
    assert "?bersicht" in found.stdout
