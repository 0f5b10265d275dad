"""Predictions in and out: foreign JSON lines into a run folder, a run's completions into JSON lines.

In: a file in one of the two forms of prediction_lines.py, or a run folder. Out: a run folder that every command of this
package reads, or such a file. Both appear whole under their names, or not at all.
An imported folder has no config.json; its run.json says {"run_id", "imported": {file, sha256, form, lines, verifier,
models, model_names}}. It has the problems of the split evaluation, and phase evaluate of iteration 0. What foreign
software does not say is empty, 0 or false: prompt and completion ids, log-probabilities, seed, temperature and top_p,
and token counts where the file has none; a question or gold answer that is not known is an empty text.
What a line may say, and whether the lines agree, is decided in prediction_lines.py and predictions.py.
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
from analysis.exchange.lines import PER_COMPLETION, PER_PROBLEM
from analysis.exchange.predictions import GIVEN, Predictions, read_predictions
from core_hpc.answers import extract, latex, numbers, symbolic, verifier
from core_hpc.answers import kinds as answer_kinds
from core_hpc.common.errors import InputError
from core_hpc.config.run import RunConfig
from core_hpc.problems.splits import EVALUATION, split_of
from core_hpc.runs import provenance
from core_hpc.runs.folder import list_runs
from core_hpc.store import manifests
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths, TaskKey
from core_hpc.store.schema import ATTRIBUTES, COLD, CORRECT, EVALUATE, PROBLEMS, ROLLOUTS
from core_hpc.store.shards import publish_frame, published_keys, read_manifest_table

FORMS = (PER_PROBLEM, PER_COMPLETION)
EXPORT_PHASES = (EVALUATE, COLD)
"""Rescue completions saw hints, which neither form can say."""

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


def verifier_version() -> dict[str, Any]:
    """Which verifier this is: version and git state of the package, and a checksum of the code that verifies."""
    made_with = provenance.collect()
    known = {name: made_with[name] for name in ("core_hpc", "git_commit", "git_modified")}
    code = b"".join(inspect.getsource(m).encode() for m in (extract, answer_kinds, numbers, latex, verifier, symbolic))
    return {**known, "code_sha256": hashlib.sha256(code).hexdigest()}


def one_run(path: Path) -> Path:
    """The run folder itself, or the only run of a sweep folder; InputError otherwise."""
    runs = list_runs(Path(path).resolve())
    if len(runs) > 1:
        raise InputError(f"{path}: has {len(runs)} runs; give one of {', '.join(run.name for run in runs)}")
    return runs[0]


def require_free(out: Path) -> None:
    """InputError when `out` is there and is not an empty folder, or cannot be written."""
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; give another folder as --out")
    manifests.require_writable(out, min_free_gb=0)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well; when it does not, nothing is left."""
    manifests.make_folder(out.parent)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir(mode=manifests.FOLDER_MODE)
    try:
        yield temporary
        temporary.rename(out)  # replaces an empty folder, and nothing else
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# --- in ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    path: Path
    num_problems: int
    num_completions: dict[str, int]  # by model
    left_out: list[str]  # lenient: problems that some model lacks, a line each
    notes: list[str]  # what the user should know: renamed models, fields that were not read


def import_predictions(file: Path, out: Path, *, lenient: bool = False) -> Imported:
    """Make a run folder of a file of foreign predictions.

    Args:
        file: JSON lines, one per model and problem or one per completion (prediction_lines.py).
        out: the folder to make; must not exist, or be empty.
        lenient: leave out problems that some model lacks, instead of refusing the file.

    Raises:
        InputError: the file has bad lines (all are looked for, the first are listed), or `out` cannot be made.
            Nothing was written.
    """
    out = Path(out).resolve()
    require_free(out)
    predictions = read_predictions(Path(file), lenient=lenient)
    with new_folder(out) as folder:
        publish_frame(RunPaths(folder).problems, EVALUATION, predictions.problems, PROBLEMS)
        for name, rows in predictions.rows.items():
            frame = _rollouts(out.name, name, rows, predictions.problems)
            key = TaskKey(0, EVALUATE, name)
            publish_frame(RunPaths(folder).task_folder(key), RunPaths(folder).task_name(key), frame, ROLLOUTS)
        manifests.write_json(RunPaths(folder).identity, {"run_id": out.name, "imported": _origin(predictions)})
    renamed = [
        f"model {original!r} is called `{name}` here"
        for name, original in predictions.models.items()
        if name != original
    ]
    unread = [f"fields that were not read: {', '.join(predictions.unread)}"] * bool(predictions.unread)
    num_completions = {name: rows.height for name, rows in predictions.rows.items()}
    return Imported(out, predictions.problems.height, num_completions, predictions.left_out, renamed + unread)


def _origin(predictions: Predictions) -> dict[str, Any]:
    return {
        "file": str(predictions.file.resolve()),
        "sha256": predictions.sha256,
        "form": predictions.form,
        "lines": predictions.num_lines,
        "verifier": verifier_version(),
        "models": list(predictions.models),
        "model_names": predictions.models,
    }


def _rollouts(run_id: str, model: str, rows: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """One model's rows as schema.ROLLOUTS."""
    known = rows.drop("line").join(
        problems.select("problem_id", "gold"), on="problem_id", how="left", maintain_order="left"
    )
    said = {"run_id": run_id, "phase": EVALUATE, "model": model, "correct": pl.col("verdict") == CORRECT}
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
        name: value if isinstance(value, pl.Expr) else pl.lit(value) for name, value in {**said, **unknown}.items()
    }
    return known.with_columns(**values).select(pl.col(name).cast(dtype) for name, dtype in ROLLOUTS.schema.items())


# --- out -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    iteration: int
    num_completions: dict[str, int]  # by model
    notes: list[str]


def export_predictions(
    run: Path, out: Path, form: str = PER_COMPLETION, *, phase: str = EVALUATE, iteration: int | None = None
) -> Exported:
    """Write a run's completions as JSON lines that `import_predictions` reads; a file of that name is replaced.

    Lines are ordered by model (as in the team), part, problem and sample. One shard is in memory at a time.

    Args:
        run: a run folder.
        out: the file to write.
        form: `PER_COMPLETION` says everything; `PER_PROBLEM` has texts only, numbered by position, verified again when read.
        phase: evaluate or cold (`EXPORT_PHASES`); an import reads evaluate.
        iteration: default: the latest that every model has something of.

    Raises:
        InputError: there is nothing to export, or the form cannot say what the run has.
        StoreError: a published file is damaged.
    """
    if form not in FORMS or phase not in EXPORT_PHASES:
        raise InputError(f"export: the form is one of {', '.join(FORMS)}, the phase one of {', '.join(EXPORT_PHASES)}")
    run, out = one_run(run), Path(out).resolve()
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a file")
    config, models = configuration(run)
    keys = _keys(run, models, phase, iteration)
    problems = _known_problems(run, config, split_of(phase))
    lines = {PER_PROBLEM: _problem_lines, PER_COMPLETION: _completion_lines}[form]
    counts = dict.fromkeys(models, 0)
    manifests.make_folder(out.parent)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as f:
            for key in keys:
                manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
                rows = read_manifest_table(manifest, ROLLOUTS, columns=_EXPORTED, checksum=True)
                counts[key.model] += rows.height
                lines(rows.sort("problem_id", "sample_index"), problems).with_columns(phase=pl.lit(phase)).write_ndjson(
                    f
                )
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    uneven = len(set(counts.values())) > 1
    notes = [
        f"not as many for every model (is the run in progress?): {', '.join(f'{m} {n}' for m, n in counts.items())}"
    ] * uneven
    return Exported(out, keys[0].iteration, counts, notes)


def _keys(run: Path, models: Sequence[str], phase: str, iteration: int | None) -> list[TaskKey]:
    """Published tasks of one phase and iteration, in the order of the models and parts."""
    published: dict[int, list[TaskKey]] = {}
    for key in published_keys(run):
        if key.phase == phase:
            published.setdefault(key.iteration, []).append(key)
    complete = [i for i, keys in published.items() if {key.model for key in keys} == set(models)]
    chosen = max(complete, default=None) if iteration is None else iteration
    if chosen is None or chosen not in published:
        there = ", ".join(str(i) for i in sorted(published)) or "none"
        said = f"no iteration of phase {phase} is published for every model"
        said = said if iteration is None else f"iteration {iteration} of phase {phase} is not published"
        raise InputError(f"{run}: {said}; published in part or whole: {there}")
    return sorted(published[chosen], key=lambda key: (models.index(key.model), key.part))


def _known_problems(run: Path, config: RunConfig | None, split: str) -> pl.DataFrame:
    """problem_id and what lines say of a problem beside its gold answer; null where it is not known."""
    kinds = read_manifest_table(
        manifests.read_manifest(RunPaths(run).problems / f"{split}{MANIFEST_SUFFIX}"), PROBLEMS, checksum=True
    )
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
        *_OF_PROBLEM,
    )


def _problem_lines(rows: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    unsaid = rows.filter(
        (pl.col("gold") == "") | ((pl.col("text") == "") & (pl.col("answer").is_not_null() | pl.col("correct")))
    )
    if unsaid.height:
        problem, model = unsaid.select("problem_id", "model").row(0)
        why = "no gold answer, or answers without texts"
        raise InputError(f"problem {problem!r}, model {model}: {why}; export one line per {PER_COMPLETION}")
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
