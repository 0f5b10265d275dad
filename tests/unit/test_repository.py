"""Rules of the repository: folder names, imports of heavy packages, shipped sweep files, pages in .github."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core_hpc.problems.sets import all_problems
from core_hpc.problems.splits import check_counts
from core_hpc.runs.sweep import load_sweep

ROOT = Path(__file__).parents[2]
SWEEPS = sorted([*(ROOT / "yaml").glob("*.yaml"), *(ROOT / "yaml" / "examples").glob("*.yaml")])


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_yaml_folder_does_not_shadow_pyyaml() -> None:
    assert not (ROOT / "yaml" / "__init__.py").exists()
    assert python("import yaml; print(yaml.safe_load('a: 1'))").strip() == "{'a': 1}"


def test_there_are_shipped_sweeps() -> None:
    assert ROOT / "yaml" / "quickstart.yaml" in SWEEPS


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.name)
def test_every_shipped_sweep_is_valid(path: Path) -> None:
    for run in load_sweep(path).runs:
        if run.config.problems.train.source in ("generated", "function"):
            check_counts(run.config, all_problems(run.config))


@pytest.mark.parametrize(
    "module",
    ["core_hpc.launch", "core_hpc.local.executor", "core_hpc.schedule.scheduler", "core_hpc.runs.folder", "analysis"],
)
def test_light_modules_import_no_heavy_package(module: str) -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'deepspeed', 'peft', 'sentence_transformers', 'submitit'}"
    assert python(f"import sys, {module}; print({heavy} & set(sys.modules))").strip() == "set()"


# --- pages in .github ----------------------------------------------------------------------------


def module_exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file()


def test_the_changelog_names_the_new_modules() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| (`[^|]*`) \|$", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.MULTILINE)
    names = [(re.findall(r"`([^`]+)`", old), re.findall(r"`([^`]+)`", new)) for old, new in rows]
    assert len(names) > 90
    assert [old for olds, _ in names for old in olds if module_exists(old)] == []
    assert [new for _, news in names for new in news if not module_exists(new)] == []


def test_files_and_names_in_the_contribution_guide_exist() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    quoted = set(re.findall(r"`([^`\n]+)`", text))
    paths = {
        q for q in quoted if re.match(r"(core_hpc|analysis|tests|yaml|slurm|\.github|\.ci)/", q) and "NAME" not in q
    }
    made_later = {".ci/passed"}
    assert [path for path in sorted(paths - made_later) if not (ROOT / path).exists()] == []
    modules = [path for top in ("core_hpc", "analysis", "tests") for path in (ROOT / top).rglob("*.py")]
    code = "".join(path.read_text() for path in modules)
    names = {q for q in quoted if re.fullmatch(r"[A-Za-z]\w*(\.\w+)?", q)} - {"NAME", *(path.name for path in modules)}
    assert [name for name in sorted(names) if not re.search(rf"\b{name.rpartition('.')[2]}\b", code)] == []
