"""Rules of the repository itself: folder names, light imports, shipped sweep files."""

import subprocess
import sys
from pathlib import Path

import pytest

from core_hpc.problems.splits import check_counts, make_splits
from core_hpc.runs.sweep import load_sweep

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "yaml").glob("*.yaml"))


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
        if run.config.problems.train.source == "generated":
            check_counts(run.config, make_splits(run.config.problems))


@pytest.mark.parametrize(
    "module",
    ["core_hpc.launch", "core_hpc.local.executor", "core_hpc.schedule.scheduler", "core_hpc.runs.folder", "analysis"],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'deepspeed', 'peft', 'sentence_transformers', 'submitit'}"
    assert python(f"import sys, {module}; print({heavy} & set(sys.modules))").strip() == "set()"
