"""What the publication of a task must contain: how many rows, and of which problems and samples.

In: a run, and what is published. Out: nothing, or a DamagedError. A row that was lost before the
manifest was written agrees with the manifest, so only the configuration can show that it is
missing. Files and their checksums are checked in `store/`, the whole run in `analysis/counts`.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from core_hpc.common.errors import StoreError
from core_hpc.config.run import RunConfig
from core_hpc.problems.sets import num_samples
from core_hpc.problems.splits import EVALUATION, TRAIN
from core_hpc.runs.folder import Run
from core_hpc.store import manifests, shards
from core_hpc.store.manifests import DamagedError, Manifest
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import (
    COLD,
    EVALUATE,
    GENERATION_PHASES,
    HINT,
    HINTS,
    RESCUE,
    ROLLOUTS,
    SCORE,
    SCORES,
    STEPS,
    TRAINING_PHASES,
    UPDATE,
    Table,
)

TABLE_OF: dict[str, Table] = {
    **dict.fromkeys(GENERATION_PHASES, ROLLOUTS),
    HINT: HINTS,
    SCORE: SCORES,
    **dict.fromkeys(TRAINING_PHASES, STEPS),
}
SAMPLE = ("problem_id", "sample_index")
_DRAWS = (*HINTS.key, "hint_draws")


def check_counts(run: Run, key: TaskKey, manifest: Manifest) -> None:
    """Check the number of rows that a manifest records. No file of rows is opened.

    Raises:
        DamagedError: The configuration asks for another number of rows.
    """
    rows = [entry.rows or 0 for entry in manifest.files if entry.table == TABLE_OF[key.phase].name]
    if len(rows) != 1:
        raise DamagedError(
            manifest.path, f"{manifest.path}: names {len(rows)} {TABLE_OF[key.phase].name} tables, not 1"
        )
    if key.phase == SCORE:
        expected = _num_scored(run, key)
    elif key.phase == EVALUATE and run.config.evaluation.sets:
        expected = int(_evaluated(run, key)["num"].sum())
    else:
        expected = expected_rows(run.config, key, _num_problems(run, key))
    fits = rows[0] == expected
    if key.phase == RESCUE and not run.config.protocol.even_budget:
        # The hints decide which problems are sampled again; `check_rows` reads them.
        fits = 0 <= rows[0] <= (expected or 0) and rows[0] % run.config.protocol.rescue_samples == 0
    if expected is not None and not fits:
        raise DamagedError(
            manifest.path, f"{manifest.path}: {rows[0]} rows, but the configuration asks for {expected}; rows are lost"
        )


def expected_rows(config: RunConfig, key: TaskKey, num_problems: int) -> int | None:
    """Rows of a task's publication, in a run without `evaluation.sets`.

    For rescue it is the most that it may have, and None for scores.

    Args:
        config: The configuration of the run.
        key: The task.
        num_problems: Problems of the task's iteration, or of the evaluation.
    """
    protocol = config.protocol
    size = protocol.problems_per_part
    here = max(0, min(size, num_problems - key.part * size))
    per_problem = {
        COLD: protocol.cold_samples,
        RESCUE: protocol.rescue_samples,
        EVALUATE: config.evaluation.samples,
        HINT: len(config.team),
    }
    if key.phase == UPDATE:
        return config.steps_per_iteration
    return here * per_problem[key.phase] if key.phase in per_problem else None


def _num_problems(run: Run, key: TaskKey) -> int:
    return run.num_problems(EVALUATION) if key.phase == EVALUATE else run.config.protocol.problems_per_iteration


def scored_tasks(config: RunConfig, key: TaskKey) -> list[TaskKey]:
    """The tasks whose completions a score task compares."""
    phases = (COLD, RESCUE) if config.protocol.rescue_samples else (COLD,)
    return [TaskKey(key.iteration, phase, model.name, key.part) for phase in phases for model in config.team]


def _num_scored(run: Run, key: TaskKey) -> int | None:
    """Completions that a score task compares; None if their manifests cannot be read now."""
    try:
        found = [manifests.read_manifest(run.paths.task_manifest(k)) for k in scored_tasks(run.config, key)]
    except StoreError:
        return None  # an input was withdrawn, and will be made again
    return sum(entry.rows or 0 for manifest in found for entry in manifest.files if entry.table == ROLLOUTS.name)


# --- the rows themselves -------------------------------------------------------------------------


def problems_of_part(run: Run, key: TaskKey) -> pl.DataFrame:
    """The problems of a task, as `schema.PROBLEMS`, in the order of its iteration."""
    size = run.config.protocol.problems_per_part
    problems = run.split(EVALUATION if key.phase == EVALUATE else TRAIN)
    if key.phase != EVALUATE:
        problems = problems[run.choice.problems(key.iteration, problems["problem_id"])]
    return problems[key.part * size :][:size]


def _evaluated(run: Run, key: TaskKey) -> pl.DataFrame:
    """The problems of an evaluate task, and the number of completions of each (`num`)."""
    return problems_of_part(run, key).select("problem_id", num=num_samples(run.config))


def expected_samples(run: Run, key: TaskKey) -> pl.DataFrame | None:
    """The columns `SAMPLE` of the rollouts that a task must publish.

    None if what decides about them cannot be read now, because it was withdrawn after the task: the
    hints of a rescue task, or the scores by which problems were chosen.
    """
    try:
        drawn = _drawn(run, key)
    except StoreError:
        if key.phase == RESCUE or (key.phase == COLD and run.config.protocol.choose == "pass_rate"):
            return None
        raise
    counted = drawn.filter(pl.col("num") > 0).with_columns(sample_index=pl.int_ranges("num", dtype=pl.Int32))
    return counted.explode("sample_index").select(SAMPLE)


def _drawn(run: Run, key: TaskKey) -> pl.DataFrame:
    """The problems that a task samples, and the number of completions of each (`num`)."""
    if key.phase == EVALUATE:
        return _evaluated(run, key)
    if key.phase == RESCUE:
        hints = shards.read_task(run.root, TaskKey(key.iteration, HINT, TEAM, key.part), HINTS, columns=_DRAWS)
        return hints.filter(pl.col("model") == key.model).select("problem_id", num=pl.col("hint_draws").list.len())
    return problems_of_part(run, key).select("problem_id", num=pl.lit(run.config.protocol.cold_samples))


def check_rows(run: Run, key: TaskKey, rollouts: pl.DataFrame) -> None:
    """Check that rollouts are exactly those that a task must publish.

    Args:
        run: The run.
        key: A task that samples.
        rollouts: All its rows, with the columns of `ROLLOUTS` or at least its key. The key is
            unique (`check_frame`).

    Raises:
        DamagedError: A row is missing, or belongs to another task.
    """
    path = RunPaths(run.root).task_manifest(key)
    own = {"run_id": run.run_id, "iteration": key.iteration, "phase": key.phase, "model": key.model}
    foreign = rollouts.filter(~pl.all_horizontal(pl.col(name) == pl.lit(value) for name, value in own.items()))
    found, expected = rollouts.select(SAMPLE), expected_samples(run, key)
    expected = found if expected is None else expected
    wrong = [
        *(f"a row of {row} is another task's" for row in foreign.select(*own).unique().to_dicts()),
        *(f"no row of {row}" for row in expected.join(found, on=SAMPLE, how="anti").to_dicts()),
        *(f"the task does not sample {row}" for row in found.join(expected, on=SAMPLE, how="anti").to_dicts()),
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DamagedError(path, f"{path}: the rows are not those of the task: {wrong[0]}{more}")


def read_rollouts(run: Run, keys: list[TaskKey], *, columns: Sequence[str]) -> pl.DataFrame:
    """Read and check what tasks that sample have published, in the order of the keys.

    Args:
        run: The run.
        keys: The tasks.
        columns: Decode only these columns and those of the key, which come first.

    Raises:
        DamagedError: A file is damaged, or its rows are not those of its task.
        StoreError: A column that is decoded has a forbidden null, or a key occurs twice.
    """
    wanted = tuple(dict.fromkeys((*ROLLOUTS.key, *columns)))
    frames = []
    for key in keys:
        frames.append(shards.read_task(run.root, key, ROLLOUTS, columns=wanted))
        check_rows(run, key, frames[-1])
    return pl.concat(frames)


def check_publication(run: Run, key: TaskKey) -> None:
    """Check everything about a publication: files, checksums, number of rows, and the rollouts themselves.

    Raises:
        DamagedError: Something is wrong with it.
        StoreError: It does not exist, or cannot be read now.
    """
    manifest = manifests.read_manifest(run.paths.task_manifest(key))
    manifests.check_files(manifest, checksum=True)
    check_counts(run, key, manifest)
    if key.phase in GENERATION_PHASES:
        check_rows(run, key, shards.read_manifest_table(manifest, ROLLOUTS))
