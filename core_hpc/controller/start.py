"""One start of a sweep by the user, and the preparation of its new runs in a child process.

In: a sweep. Out: the problems and the facts about the models of each run whose folder does not
exist yet. The child (`controller/prepare.py`) loads torch and transformers, which the launcher must
not load. Nothing is created in run folders here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.controller.prepare import FACTS_FILE, read_splits
from core_hpc.problems.splits import Splits
from core_hpc.runs import folder as runfolders
from core_hpc.runs.folder import ModelFacts, facts_in
from core_hpc.runs.inputs import check_inputs
from core_hpc.runs.sweep import Sweep

ERROR_CHARACTERS = 4000

Prepared = dict[str, tuple[Splits, dict[str, ModelFacts]]]
"""By run id: its problems, and the facts about its models by name."""


@dataclass(frozen=True)
class Start:
    """One start by the user. A detached controller passes `start_id` on to its successor.

    Attributes:
        by_user: False in a detached controller.
        verify: check the checksums of everything that is published.
    """

    start_id: str
    by_user: bool = True
    verify: bool = False

    @classmethod
    def new(cls, *, verify: bool) -> Start:
        return cls(uuid.uuid4().hex[:8], verify=verify)


def prepare_new_runs(sweep: Sweep, console: Console) -> Prepared:
    """Prepare the runs whose folder does not exist yet.

    Raises:
        InputError: models or problems do not fit, or are others than those of the started runs. It lists all
            mistakes.
    """
    new = [plan for plan in sweep.runs if not runfolders.exists(plan, sweep.folder)]
    if not new:
        return {}
    console.print("preparing models and problems (the first time takes a minute or two, to convert weights) ...")
    with tempfile.TemporaryDirectory() as folder:
        files = {source.digest: source for plan in new for source in plan.sources.values()}
        request = json.dumps(
            {
                "configs": [plan.config.model_dump(mode="json") for plan in new],
                "sources": [asdict(source) for source in files.values()],
            }
        )
        done = subprocess.run(
            [sys.executable, "-m", "core_hpc.controller.prepare", folder],
            input=request.encode(),
            capture_output=True,
            check=False,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        answer = Path(folder, FACTS_FILE)
        if not answer.exists():
            end = done.stderr.decode(errors="replace")[-ERROR_CHARACTERS:]
            raise CoreHpcError(f"preparation ended with status {done.returncode}; the end of its output:\n{end}")
        facts = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in facts:
            raise InputError(f"{sweep.source}: nothing was created\n{facts['error']}")
        found = [facts_in({"models": run}) for run in facts["facts"]]
        splits = {number: read_splits(Path(folder), number) for number in set(facts["splits"])}
    prepared = {plan.run_id: (splits[n], f) for plan, n, f in zip(new, facts["splits"], found, strict=True)}
    check_inputs(sweep, {i: s for i, (s, _) in prepared.items()}, {i: f for i, (_, f) in prepared.items()})
    return prepared
