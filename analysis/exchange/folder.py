"""Import of predictions into a run folder.

The import reads a file in one of the two forms of `exchange/lines.py`, or one of other software
(`exchange/bridges.py`), and writes a run folder that all commands of this package read. It writes
under a temporary name first, so the result is complete or absent. The way back is in
`exchange/export.py`.

An imported folder has no config.json. Its run.json contains {"run_id", "imported": {file, from, map,
where, sha256, form, lines, verifier, models, model_names}}. It has the problems of the split
evaluation, and the phase evaluate of iteration 0. Values that the file does not have are empty, 0 or
false: prompt and completion ids, log-probabilities, seed, temperature and top_p, and missing token
counts. `counts/completions.py` takes 0 tokens of a completion with a text or an answer as unknown. A
missing question or gold answer is an empty text.

The fields of a line are checked in `exchange/lines.py`, the agreement of lines in
`exchange/predictions.py`.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from analysis.exchange.converters import Origin
from analysis.exchange.predictions import Predictions, read_predictions
from core_hpc.answers import extract, latex, latex_comparison, latex_reading, numbers, symbolic, verifier
from core_hpc.answers import kinds as answer_kinds
from core_hpc.common.errors import InputError
from core_hpc.common.ownership import FOLDER_MODE
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs import provenance
from core_hpc.runs.folder import list_runs
from core_hpc.store import manifests, output_folder
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import CORRECT, EVALUATE, PROBLEMS, ROLLOUTS
from core_hpc.store.shards import publish_frame


def verifier_version() -> dict[str, Any]:
    """Version of the verifier: package version, git state, checksum of the verifying code."""
    made_with = provenance.collect()
    known = {name: made_with[name] for name in ("core_hpc", "git_commit", "git_modified")}
    modules = (extract, answer_kinds, numbers, latex, latex_reading, latex_comparison, verifier, symbolic)
    code = b"".join(inspect.getsource(module).encode() for module in modules)
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
    output_folder.require_writable(out, min_free_gb=0, advice=output_folder.ANOTHER_OUT)


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
