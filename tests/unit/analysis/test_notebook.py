"""The example notebook runs, and every function that `help(analysis)` names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from itertools import product
from pathlib import Path

import analysis
from tests.support.analysis_data import config, evaluation_rows, make_run, publish_rollouts

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "yaml" / "examples" / "notebook.py"


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """A sweep of two losses with two seeds: gspo solves all problems of ada."""
    for loss, seed in product(("grpo", "gspo"), (1, 2)):
        folder = tmp_path / "demo" / f"loss-{loss}-seed-{seed}-0000000{seed}"
        run = make_run(folder, config(seed=seed, update={"loss": loss}))
        rows = {"ada": [[loss == "gspo"] * 4] * 8, "bob": [[False] * 4] * 8}
        publish_rollouts(run, [row for i in (0, 2) for row in evaluation_rows(rows, i)])
    done = subprocess.run(
        [sys.executable, NOTEBOOK, tmp_path / "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "4 run(s); they differ in: update.loss" in done.stdout
    assert "averaged over seeds, best first" in done.stdout
    ranked = re.findall(r"[0-9]+ +┆ (gspo|grpo) ", done.stdout)
    assert ranked[:2] == ["gspo", "grpo"]


def test_the_notebook_has_cells() -> None:
    text = NOTEBOOK.read_text()
    assert text.count("# %%\n") >= 5
    assert text.count("# %% [markdown]\n") >= 5


def test_every_function_of_the_page_exists_and_is_documented() -> None:
    names = re.findall(r"^    ((?:analysis|core_hpc)\.[a-z_.]+)  +", analysis.__doc__ or "", re.MULTILINE)
    assert len(names) > 18
    for name in names:
        module, _, function = name.rpartition(".")
        assert getattr(import_module(module), function).__doc__, name
