"""Import of predictions into a run folder, and export of a run's completions.

The import reads a file in one of the two forms of `exchange/lines.py`, or one of other software
(`exchange/bridges.py`), and writes a run folder that all commands of this package read. The export
reads a run folder and writes such a file. Both write under a temporary name first, so the result is
complete or absent.

An imported folder has no config.json. Its run.json contains {"run_id", "imported": {file, from, map,
where, sha256, form, lines, verifier, models, model_names}}. It has the problems of the split
evaluation, and the phase evaluate of iteration 0. Values that the file does not have are empty, 0 or
false: prompt and completion ids, log-probabilities, seed, temperature and top_p, and missing token
counts. A missing question or gold answer is an empty text.

The fields of a line are checked in `exchange/lines.py`, the agreement of lines in
`exchange/predictions.py`.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from analysis.counts.load import configuration, problems_of
from analysis.exchange.converters import Origin
from analysis.exchange.lines import PER_COMPLETION, PER_PROBLEM
from analysis.exchange.predictions import GIVEN, Predictions, read_predictions
from core_hpc.answers import extract, latex, numbers, symbolic, verifier
from core_hpc.answers import kinds as answer_kinds
from core_hpc.common.errors import InputError
from core_hpc.common.ownership import FOLDER_MODE
from core_hpc.config.run import RunConfig
from core_hpc.problems.splits import EVALUATION, split_of
from core_hpc.runs import provenance
from core_hpc.runs.folder import list_runs
from core_hpc.store import manifests
from core_hpc.store.paths import MANIFEST_SUFFIX, TEAM, RunPaths, TaskKey
from core_hpc.store.schema import ATTRIBUTES, COLD, CORRECT, EVALUATE, HINT, HINTS, PROBLEMS, RESCUE, ROLLOUTS
from core_hpc.store.shards import publish_frame, published_keys, read_manifest_table

FORMS = (PER_PROBLEM, PER_COMPLETION)
EXPORT_PHASES = (EVALUATE, COLD, RESCUE)
"""Phases that can be exported. Lines of the rescue phase have further fields: who saw which hint."""

_EXPORTED = (
    "model",
    "problem_id",
    "sample_index",
    "text",
    "answer",
    "verdict",
    "correct",
    "gold",
    "num_completion_tokens",
    "finish_reason",
)
_OF_PROBLEM = ("answer_kind", "question", *ATTRIBUTES)
_OF_RESCUE = ("hint_given", "cold_failed", "teacher_model", "teacher_sample_index")


def verifier_version() -> dict[str, Any]:
    """Version of the verifier: package version, git state, checksum of the verifying code."""
    made_with = provenance.collect()
    known = {name: made_with[name] for name in ("core_hpc", "git_commit", "git_modified")}
    code = b"".join(inspect.getsource(m).encode() for m in (extract, answer_kinds, numbers, latex, verifier, symbolic))
    return {**known, "code_sha256": hashlib.sha256(code).hexdigest()}


def one_run(path: Path) -> Path:
    """The run folder itself, or the only run of a sweep folder.

    Raises:
        InputError: the path is neither, or the sweep has several runs.
    """
    runs = list_runs(Path(path).resolve())
    if len(runs) > 1:
        raise InputError(f"{path}: has {len(runs)} runs; give one of {', '.join(run.name for run in runs)}")
    return runs[0]


def require_free(out: Path) -> None:
    """Raise InputError when `out` exists and is not an empty folder, or cannot be written."""
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; give another folder as --out")
    manifests.require_writable(out, min_free_gb=0)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` on success, and is removed on failure."""
    manifests.make_folder(out.parent)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir(mode=FOLDER_MODE)
    try:
        yield temporary
        temporary.rename(out)  # replaces an empty folder only
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# --- import --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    path: Path
    num_problems: int
    num_completions: dict[str, int]  # per model
    left_out: list[str]  # lenient only: one line per problem that is missing for a model
    notes: list[str]  # messages for the user: renamed models, ignored fields


def import_predictions(file: Path, out: Path, *, origin: Origin | None = None, lenient: bool = False) -> Imported:
    """Write a run folder from a file of predictions that other software made.

    Args:
        file: JSON lines, one per model and problem or one per completion (`exchange/lines.py`), the
            same as Parquet, or a file of the software that `origin` names.
        out: the new folder; it must not exist, or be empty.
        origin: how records of the file become lines; default: they are lines already.
        lenient: leave out problems that are missing for a model, instead of rejecting the file.

    Raises:
        InputError: the file has bad lines (the message lists the first ones), or `out` cannot be
            created. Nothing is written.
    """
    out = Path(out).resolve()
    require_free(out)
    predictions = read_predictions(Path(file), origin=origin, lenient=lenient)
    with new_folder(out) as folder:
        publish_frame(RunPaths(folder).problems, EVALUATION, predictions.problems, PROBLEMS)
        for name, rows in predictions.rows.items():
            frame = _rollouts(out.name, name, rows, predictions.problems)
            key = TaskKey(0, EVALUATE, name)
            publish_frame(RunPaths(folder).task_folder(key), RunPaths(folder).task_name(key), frame, ROLLOUTS)
        manifests.write_json(
            RunPaths(folder).identity, {"run_id": out.name, "imported": _origin(predictions, origin or Origin())}
        )
    models = predictions.models.items()
    notes = [
        f"model {original!r} has the name `{name}` in the new folder" for name, original in models if name != original
    ]
    if predictions.unread:
        notes.append(f"ignored fields: {', '.join(predictions.unread)}")
    num_completions = {name: rows.height for name, rows in predictions.rows.items()}
    return Imported(out, predictions.problems.height, num_completions, predictions.left_out, notes)


def _origin(predictions: Predictions, origin: Origin) -> dict[str, Any]:
    chosen = {"map": dict(origin.fields), "where": dict(origin.where)}
    return {
        "file": str(predictions.file.resolve()),
        "from": origin.name,
        **{name: value for name, value in chosen.items() if value},
        "sha256": predictions.sha256,
        "form": predictions.form,
        "lines": predictions.num_lines,
        "verifier": verifier_version(),
        "models": list(predictions.models),
        "model_names": predictions.models,
    }


def _rollouts(run_id: str, model: str, rows: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """The rows of one model with the columns of `schema.ROLLOUTS`."""
    golds = problems.select("problem_id", "gold")
    rows = rows.drop("line").join(golds, on="problem_id", how="left", maintain_order="left")
    known = {"run_id": run_id, "phase": EVALUATE, "model": model, "correct": pl.col("verdict") == CORRECT}
    unknown: dict[str, Any] = {
        "iteration": 0,
        "adapter_iteration": 0,
        "seed": 0,
        "prompt_token_ids": [],
        "completion_token_ids": [],
        "logprobs": [],
        "temperature": 0.0,
        "top_p": 0.0,
        "num_prompt_tokens": 0,
        "cold_failed": None,
        "hint_given": False,
        "teacher_model": None,
        "teacher_sample_index": None,
    }
    values = {
        name: value if isinstance(value, pl.Expr) else pl.lit(value) for name, value in {**known, **unknown}.items()
    }
    return rows.with_columns(**values).select(pl.col(name).cast(dtype) for name, dtype in ROLLOUTS.schema.items())


# --- export --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path
    iteration: int
    num_completions: dict[str, int]  # per model
    notes: list[str]


def export_predictions(
    run: Path, out: Path, form: str = PER_COMPLETION, *, phase: str = EVALUATE, iteration: int | None = None
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
        iteration: default: the latest iteration that every model has completions of.

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
    run, out = one_run(run), Path(out).resolve()
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a file as --out")
    config, models = configuration(run)
    keys = _keys(run, models, phase, iteration)
    problems = _known_problems(run, config, split_of(phase))
    lines = {PER_PROBLEM: _problem_lines, PER_COMPLETION: _completion_lines}[form]
    counts = dict.fromkeys(models, 0)
    hints_of = {key.part: _hints(run, key) for key in keys} if phase == RESCUE else {}
    manifests.make_folder(out.parent)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as f:
            for key in keys:
                manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
                columns = (*_EXPORTED, *_OF_RESCUE) if phase == RESCUE else _EXPORTED
                rows = read_manifest_table(manifest, ROLLOUTS, columns=columns, checksum=True)
                counts[key.model] += rows.height
                if phase == RESCUE:
                    rows = rows.join(hints_of[key.part], on=["model", "problem_id"], how="left", maintain_order="left")
                frame = lines(rows.sort("problem_id", "sample_index"), problems)
                frame.with_columns(phase=pl.lit(phase)).write_ndjson(f)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    notes = []
    if len(set(counts.values())) > 1:
        per_model = ", ".join(f"{model} {n}" for model, n in counts.items())
        notes.append(f"the models have different numbers of completions (is the run in progress?): {per_model}")
    return Exported(out, keys[0].iteration, counts, notes)


def _keys(run: Path, models: Sequence[str], phase: str, iteration: int | None) -> list[TaskKey]:
    """The published tasks of one phase and iteration, in the order of models and parts."""
    published: dict[int, list[TaskKey]] = {}
    for key in published_keys(run):
        if key.phase == phase:
            published.setdefault(key.iteration, []).append(key)
    complete = [i for i, keys in published.items() if {key.model for key in keys} == set(models)]
    chosen = max(complete, default=None) if iteration is None else iteration
    if chosen is None or chosen not in published:
        known = ", ".join(str(i) for i in sorted(published)) or "none"
        if iteration is None:
            problem = f"no iteration of phase {phase} is published for every model"
        else:
            problem = f"iteration {iteration} of phase {phase} is not published"
        raise InputError(f"{run}: {problem}; iterations that are published in part or in full: {known}")
    return sorted(published[chosen], key=lambda key: (models.index(key.model), key.part))


def _hints(run: Path, key: TaskKey) -> pl.DataFrame:
    """The hints of the part that a task of the rescue phase belongs to."""
    manifest = manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(key.iteration, HINT, TEAM, key.part)))
    return read_manifest_table(manifest, HINTS, columns=("model", "problem_id", "hint"), checksum=True)


def _known_problems(run: Path, config: RunConfig | None, split: str) -> pl.DataFrame:
    """The problem's fields of a line, except the gold answer; null where unknown."""
    manifest = manifests.read_manifest(RunPaths(run).problems / f"{split}{MANIFEST_SUFFIX}")
    kinds = read_manifest_table(manifest, PROBLEMS, checksum=True)
    problems = problems_of(run, config).filter(pl.col("split") == split).drop("split", "gold")
    known = problems.join(kinds.select("problem_id", "answer_kind"), on="problem_id", how="left", maintain_order="left")
    return known.with_columns(pl.col("question").replace("", None), pl.col("answer_kind").replace(GIVEN, None))


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
        *_OF_PROBLEM,
    )


def _problem_lines(rows: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    without_text = (pl.col("text") == "") & (pl.col("answer").is_not_null() | pl.col("correct"))
    lossy = rows.filter((pl.col("gold") == "") | without_text)
    if lossy.height:
        problem, model = lossy.select("problem_id", "model").row(0)
        raise InputError(
            f"problem {problem!r}, model {model}: has no gold answer, or has answers without texts; "
            f"export one line per completion (--form {PER_COMPLETION})"
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
        *_OF_PROBLEM,
    )
