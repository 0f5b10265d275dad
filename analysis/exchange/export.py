"""Export of a run's completions as JSON lines, which `exchange/folder.py` imports again.

In: a run folder. Out: a file in one of the two forms of `exchange/lines.py`. It is written under a
temporary name first, so the result is complete or absent. Logs of other software are written in
`exchange/logs.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from analysis.exchange.lines import GIVEN, PER_COMPLETION, PER_PROBLEM
from analysis.exchange.selection import OF_COMPLETION, OF_PROBLEM, note_of_counts, select
from core_hpc.common.errors import InputError
from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, HINTS, RESCUE
from core_hpc.store.shards import read_task

FORMS = (PER_PROBLEM, PER_COMPLETION)
EXPORT_PHASES = (EVALUATE, COLD, RESCUE)
"""Phases that can be exported. Lines of the rescue phase have further fields: who saw which hint."""

_EXPORTED = ("model", *OF_COMPLETION)
_OF_RESCUE = ("hint_given", "cold_failed", "teacher_model", "teacher_sample_index")


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path
    iteration: int
    num_completions: dict[str, int]  # per model
    notes: list[str]


def export_predictions(
    run: Path,
    out: Path,
    form: str = PER_COMPLETION,
    *,
    phase: str = EVALUATE,
    iteration: int | None = None,
    models: Sequence[str] = (),
) -> Exported:
    """Write a run's completions as JSON lines that `import_predictions` reads.

    An existing file of that name is replaced. Lines are ordered by model (in the team's order),
    part, problem and sample. Only one shard is in memory at a time.

    Args:
        run: a run folder.
        out: the file to write.
        form: `PER_COMPLETION` contains all fields. `PER_PROBLEM` contains the texts only; an
            import numbers them by position and verifies them again.
        phase: one of `EXPORT_PHASES`. The import reads evaluate only. Lines of rescue also have
            hint_given, cold_failed, teacher_model, teacher_sample_index and hint (what the student
            could see; null if there is no hint). Only `PER_COMPLETION` has room for them.
        iteration: default: the latest iteration that every chosen model has completions of.
        models: names; empty: the whole team.

    Raises:
        InputError: there is nothing to export, or the form has no field for what the run contains.
        StoreError: a published file is damaged.
    """
    if form not in FORMS:
        raise InputError(f"export: unknown form {form!r}; use one of {', '.join(FORMS)}")
    if phase not in EXPORT_PHASES:
        raise InputError(f"export: phase {phase!r} cannot be exported; use one of {', '.join(EXPORT_PHASES)}")
    if phase == RESCUE and form != PER_COMPLETION:
        raise InputError(
            f"export: phase {phase} needs one line per completion (--form {PER_COMPLETION}): some saw a hint"
        )
    out = Path(out).resolve()
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a file as --out")
    if out.is_relative_to(Path(run).resolve()):
        raise InputError(f"{out}: is inside the run folder, which must not change; give another place as --out")
    selection = select(run, phase=phase, iteration=iteration, models=models)
    lines = {PER_PROBLEM: _problem_lines, PER_COMPLETION: _completion_lines}[form]
    counts, sizes = dict.fromkeys(selection.models, 0), dict.fromkeys(selection.models, 0)
    hints_of = {key.part: _hints(selection.run, key) for key in selection.keys} if phase == RESCUE else {}
    columns = (*_EXPORTED, *_OF_RESCUE) if phase == RESCUE else _EXPORTED
    manifests.make_folder(out.parent)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as f:
            for key, rows in selection.tables(columns):
                counts[key.model] += rows.height
                sizes[key.model] += rows["problem_id"].n_unique()
                if phase == RESCUE:
                    rows = rows.join(hints_of[key.part], on=["model", "problem_id"], how="left", maintain_order="left")
                lines(rows, selection.problems).with_columns(phase=pl.lit(phase)).write_ndjson(f)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    # Each model attempts its own failures again, so their numbers differ.
    notes = [] if phase == RESCUE else note_of_counts(counts)
    if phase == EVALUATE and not notes and min(sizes.values()) < selection.problems.height:
        per_model = ", ".join(f"{model} {size}" for model, size in sizes.items())
        notes.append(f"not all of the {selection.problems.height} problems are published yet: {per_model}")
    return Exported(out, selection.iteration, counts, notes)


def _hints(run: Path, key: TaskKey) -> pl.DataFrame:
    """The hints of the part that a task of the rescue phase belongs to."""
    of_part = TaskKey(key.iteration, HINT, TEAM, key.part)
    return read_task(run, of_part, HINTS, columns=("model", "problem_id", "hint"))


def _completion_lines(rows: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    return rows.join(problems, on="problem_id", how="left", maintain_order="left").select(
        pl.col("problem_id").alias("problem"),
        "model",
        pl.col("sample_index").alias("sample"),
        "answer",
        "text",
        "correct",
        "verdict",
        pl.col("gold").replace("", None),
        pl.col("num_completion_tokens").alias("token_count"),
        (pl.col("finish_reason") == "length").alias("truncated"),
        *(column for column in (*_OF_RESCUE, "hint") if column in rows.columns),
        *OF_PROBLEM,
    )


def _problem_lines(rows: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    without_text = (pl.col("text") == "") & (pl.col("answer").is_not_null() | pl.col("correct"))
    given = pl.col("problem_id").is_in(problems.filter(pl.col("answer_kind") == GIVEN)["problem_id"].implode())
    lossy = rows.filter((pl.col("gold") == "") | without_text | given)
    if lossy.height:
        problem, model = lossy.select("problem_id", "model").row(0)
        raise InputError(
            f"problem {problem!r}, model {model}: has no gold answer, answers without texts, or answers that an import "
            f"cannot verify; export one line per completion (--form {PER_COMPLETION})"
        )
    grouped = rows.group_by("problem_id", "model", maintain_order=True).agg(
        pl.col("gold").first(),
        pl.col("text").alias("completions"),
        pl.col("num_completion_tokens").alias("token_counts"),
        (pl.col("finish_reason") == "length").alias("truncated"),
    )
    return grouped.join(problems, on="problem_id", how="left", maintain_order="left").select(
        pl.col("problem_id").alias("example_id"),
        "model",
        "gold",
        "completions",
        "token_counts",
        "truncated",
        *OF_PROBLEM,
    )
