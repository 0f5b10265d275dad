"""The hint phase with `protocol.hint_leak`: hints, reasons and the column `leak`; and its curves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from core_hpc.config.run import RunConfig
from core_hpc.controller.run_tracker import RunTracker
from core_hpc.phases.hint import _hint_rows
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import HINT, HINTS

DATA: dict[str, Any] = {
    "name": "s",
    "iterations": 1,
    "team": [{"name": n, "model": "x"} for n in "ab"],
    "problems": {split: {"source": "generated", "count": 4} for split in ("train", "evaluation")},
}


class LetterTokenizer:
    """A tokenizer whose tokens are single letters."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


def student_row(text: str, treatment: str) -> dict[str, Any]:
    """The row of the student `b`, whose teacher `a` wrote `text`. The gold answer is 11."""
    config = RunConfig.model_validate({**DATA, "protocol": {"hint_leak": treatment, "hint_probability": 1}})
    run, key = SimpleNamespace(config=config, run_id="r"), SimpleNamespace(iteration=1)
    context: Any = SimpleNamespace(run=run, key=key, tokenizer=lambda model: LetterTokenizer())
    same = {"problem_id": "p", "phase": "cold", "sample_index": 0, "score": 1.0, "text": text, "gold": "11"}
    group = pl.DataFrame([{"model": m, "correct": m == "a", **same} for m in "ab"])
    return next(row for row in _hint_rows(context, group, ["a", "b"], "number") if row["model"] == "b")


LEAKING = "Add both. 4 + 7 = 11. #### 11"


@pytest.mark.parametrize(
    ("text", "treatment", "expected"),
    [
        (LEAKING, "keep", ("rescue", "Add both. 4 + 7 = 11.", "result")),
        (LEAKING, "cut", ("rescue", "Add both.", "none")),
        (LEAKING, "reject", ("leak", None, None)),
        ("4 + 7 = 11. #### 11", "cut", ("leak", None, None)),
        ("Take 11 and 4. #### 11", "reject", ("rescue", "Take 11 and 4.", "anywhere")),
        ("#### 11", "reject", ("no_hint", None, None)),
    ],
)
def test_hints_reasons_and_leaks(text: str, treatment: str, expected: tuple[str, str | None, str | None]) -> None:
    row = student_row(text, treatment)
    assert (row["reason"], row["hint"], row["leak"]) == expected
    assert row["num_hint_tokens"] == len(row["hint"] or "")
    assert row["hint_draws"] == ([True] if row["hint"] else [])
    frame = pl.DataFrame([row], schema=HINTS.schema)
    assert frame["leak"].to_list() == [expected[2]]


def test_the_share_of_leaking_hints_is_written_for_students_and_team(tmp_path: Path) -> None:
    key = TaskKey(1, HINT, TEAM, 0)
    rows = [{**student_row(LEAKING, treatment), "problem_id": treatment} for treatment in ("keep", "cut", "reject")]
    written: list[tuple[str, str, float | None, int]] = []

    class Tracker(RunTracker):
        def __init__(self) -> None:
            self._run: Any = SimpleNamespace(root=tmp_path)
            self._graph: Any = SimpleNamespace(iterations=1, tasks_of=lambda iteration: [key])
            self._points: Any = SimpleNamespace(scalar=lambda *point: written.append(point[:4]))

    paths = RunPaths(tmp_path)
    frame = pl.DataFrame(rows, schema=HINTS.schema)
    shards.publish_frame(paths.task_folder(key), paths.task_name(key), frame, HINTS)
    Tracker()._write_leaks(key, 0.0)
    assert written == [("b", "rescue/leak_share", 0.5, 1), (TEAM, "rescue/leak_share", 0.5, 1)]
