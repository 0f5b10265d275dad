"""The run folder of a sweep as a first start makes it, for models that no test loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core_hpc.controller.prepare import splits_of
from core_hpc.runs import creation
from core_hpc.runs.folder import ModelFacts, Run
from core_hpc.runs.sweep import Sweep


def create_run(sweep: Sweep, *, num_weights: int = 0) -> Run:
    """Create the only run of a sweep, with facts about models that do not exist."""
    (plan,) = sweep.runs
    facts = {m.name: ModelFacts("0" * 64, 512, "plain", num_weights) for m in plan.config.team}
    return creation.create(plan, sweep.folder, splits_of(plan), facts)


PART = "def brevity(problem, completions, *, max_words=50):\n    return [0.0 for _ in completions]\n"


def sweep_with(folder: Path, source: str | None = PART, *, path: str = "my_rewards.py", **part: Any) -> Path:
    """A sweep file with one reward part, and beside it the file with the function."""
    folder.mkdir(exist_ok=True)
    data = {
        "name": "s",
        "iterations": 1,
        "output": str(folder / "out"),
        "team": [{"name": name, "model": "x"} for name in ("a", "b")],
        "problems": {name: {"source": "generated", "count": 40} for name in ("train", "evaluation")},
        "reward": {"parts": {"brevity": {"function": f"{path}:brevity", "weight": 0.1, **part}}},
    }
    if source is not None:
        (folder / "my_rewards.py").write_text(source)
    (folder / "s.yaml").write_text(json.dumps(data))
    return folder / "s.yaml"
