"""`protocol.even_budget`: every model samples K + K' completions per problem.

Completions without a hint that exist only for the budget are not part of the control.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import yaml
from analysis.metrics.rescue import CONTROL, rescue_table
from core_hpc.common.errors import ConfigError
from core_hpc.config.run import RunConfig
from core_hpc.phases.hint import _hint_rows
from core_hpc.runs.sweep import load_sweep
from tests.support.analysis_data import rescue_counts

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
        return "".join(chr(i) for i in ids)


def hint_rows(text: str = "4 + 7 = 11. #### 12", **protocol: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the hint phase by (problem, student), if both models, one, or none are correct."""
    config = RunConfig.model_validate({**DATA, "protocol": {"rescue_samples": 3, **protocol}})
    run, key = SimpleNamespace(config=config, run_id="r"), SimpleNamespace(iteration=1)
    context: Any = SimpleNamespace(run=run, key=key, tokenizer=lambda model: LetterTokenizer())
    rows = {}
    for problem, right in (("both", "ab"), ("one", "a"), ("none", "")):
        same = {"problem_id": problem, "phase": "cold", "sample_index": 0, "score": 1.0, "text": text, "gold": "12"}
        group = pl.DataFrame([{"model": m, "correct": m in right, **same} for m in "ab"])
        rows |= {(problem, row["model"]): row for row in _hint_rows(context, group, ["a", "b"], "number")}
    return rows


@pytest.mark.parametrize("scope", ["failed", "all"])
def test_every_model_samples_every_problem_again_and_the_same_models_get_hints(scope: str) -> None:
    plain, even = (hint_rows(scope=scope, even_budget=e) for e in (False, True))
    assert {len(row["hint_draws"]) for row in even.values()} == {3}
    hinted = {("one", "b")} | ({("both", "a"), ("both", "b")} if scope == "all" else set())
    assert {key for key, row in plain.items() if row["hint_draws"]} == hinted
    for key, row in even.items():
        if key in hinted:
            assert row == plain[key]
        else:
            assert row["hint_draws"] == [False] * 3
            assert row["hint"] is None


def test_a_student_samples_without_a_hint_if_its_teacher_gives_none() -> None:
    row = hint_rows("#### 12", even_budget=True)["one", "b"]
    assert (row["reason"], row["hint"], row["hint_draws"]) == ("no_hint", None, [False] * 3)


def test_completions_of_a_student_that_has_no_hint_are_not_part_of_the_control() -> None:
    case = {"problem": "p00000", "student": "ada", "teacher": "bob", "hinted": (1, 2), "control": (1, 2)}
    counts = rescue_counts([case])
    extra = counts.filter(pl.col("phase") == "rescue", ~pl.col("hint_given")).with_columns(
        problem_id=pl.lit("hard"), teacher_model=pl.lit(None, pl.String()), c=pl.lit(0, counts.schema["c"])
    )
    (control,) = rescue_table(pl.concat([counts, extra]), groups=["all"]).filter(rate=CONTROL).to_dicts()
    assert (control["numerator"], control["denominator"]) == (1, 2)


def test_independent_training_has_no_rescue_phase(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**DATA, "update": {"group": "model"}}))
    with pytest.raises(
        ConfigError, match=r"update.group: model trains each model alone, but .* set protocol.rescue_samples to 0"
    ):
        load_sweep(path)
    assert load_sweep(path, ["protocol.rescue_samples=0"]).runs[0].config.update.group == "model"
