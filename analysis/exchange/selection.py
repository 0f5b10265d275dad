"""What an export contains: which phase, iteration and models of a run, and their completions.

In: a run folder and the user's choices. Out: a `Selection`, which reads the completions shard by
shard. This module writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from analysis.counts.load import configuration, problems_of
from analysis.exchange.folder import one_run
from analysis.exchange.lines import GIVEN
from core_hpc.answers.kinds import KINDS
from core_hpc.common.errors import InputError
from core_hpc.config.run import RunConfig
from core_hpc.problems.splits import split_of
from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths, TaskKey
from core_hpc.store.schema import ATTRIBUTES, PROBLEMS, ROLLOUTS
from core_hpc.store.shards import published_keys, read_manifest_table, read_task

OF_COMPLETION = (
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
"""Fields of a completion that every export reads."""
OF_PROBLEM = ("answer_kind", "question", *ATTRIBUTES)
"""Fields of a problem that an export contains; null where unknown.

Where the run is imported again, functions of its user are not known. Kinds of answers that they
verify are `GIVEN`, so that the import uses the verdicts of the run.
"""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The completions of one phase and iteration, of some models of a run."""

    run: Path
    config: RunConfig | None  # None: imported predictions
    models: list[str]  # the chosen ones, in the team's order
    phase: str
    iteration: int
    keys: list[TaskKey]  # in the order of models and parts
    problems: pl.DataFrame  # problem_id and OF_PROBLEM, in the order of the split

    def manifest(self, key: TaskKey) -> Manifest:
        """The manifest of one of the tasks."""
        return manifests.read_manifest(RunPaths(self.run).task_manifest(key))

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[TaskKey, pl.DataFrame]]:
        """Yield the completions of one task after the other, by problem id and sample.

        Raises:
            StoreError: a published file is damaged.
        """
        for key in self.keys:
            rows = read_task(self.run, key, ROLLOUTS, columns=columns)
            yield key, rows.sort("problem_id", "sample_index")


def select(run: Path, *, phase: str, iteration: int | None = None, models: Sequence[str] = ()) -> Selection:
    """Find what is to be exported.

    Args:
        run: a run folder, or a sweep folder with one run.
        phase: of generation.
        iteration: default: the latest that every chosen model has completions of.
        models: names; empty: the whole team.

    Raises:
        InputError: there is no such model, or nothing to export.
    """
    run = one_run(run)
    config, team = configuration(run)
    if unknown := [name for name in models if name not in team]:
        raise InputError(f"--model {unknown[0]}: {run} has no such model, only {', '.join(team)}")
    chosen = [name for name in team if not models or name in models]
    keys = _keys(run, chosen, phase, iteration)
    return Selection(
        run=run,
        config=config,
        models=chosen,
        phase=phase,
        iteration=keys[0].iteration,
        keys=keys,
        problems=_known_problems(run, config, split_of(phase)),
    )


def _keys(run: Path, models: Sequence[str], phase: str, iteration: int | None) -> list[TaskKey]:
    """The published tasks of one phase and iteration, in the order of models and parts."""
    published: dict[int, list[TaskKey]] = {}
    for key in published_keys(run, [phase]):
        if key.model in models:
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


def _known_problems(run: Path, config: RunConfig | None, split: str) -> pl.DataFrame:
    """The problems of a split with `OF_PROBLEM`."""
    manifest = manifests.read_manifest(RunPaths(run).problems / f"{split}{MANIFEST_SUFFIX}")
    kinds = read_manifest_table(manifest, PROBLEMS, checksum=True)
    problems = problems_of(run, config).filter(pl.col("split") == split).drop("split", "gold")
    known = problems.join(kinds.select("problem_id", "answer_kind"), on="problem_id", how="left", maintain_order="left")
    kind = pl.when(pl.col("answer_kind").is_in(list(KINDS))).then("answer_kind").otherwise(pl.lit(GIVEN))
    return known.with_columns(pl.col("question").replace("", None), kind.alias("answer_kind"))


def note_of_counts(num_completions: dict[str, int]) -> list[str]:
    """A note if the models have different numbers of completions; else nothing."""
    if len(set(num_completions.values())) < 2:
        return []
    per_model = ", ".join(f"{model} {n}" for model, n in num_completions.items())
    return [f"the models have different numbers of completions (is the run in progress?): {per_model}"]
