"""Export of a run's completions as logs of other software: Inspect, lm-evaluation-harness.

In: a run folder. Out: a new folder with the logs of all chosen models. A log is about one model, one
set of problems and one iteration. Only one shard is in memory at a time. The folder is written under
a temporary name first, so the result is complete or absent. The formats are in
`exchange/inspect_log.py` and `exchange/lm_eval.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from analysis.exchange.converters import INSPECT, LM_EVAL
from analysis.exchange.evaluation import Evaluation, Fields
from analysis.exchange.export import Exported
from analysis.exchange.folder import new_folder, require_free
from analysis.exchange.inspect_log import InspectLogs
from analysis.exchange.lm_eval import LmEvalResults
from analysis.exchange.selection import OF_COMPLETION, OF_PROBLEM, Selection, note_of_counts, select
from core_hpc import __version__
from core_hpc.common.errors import InputError
from core_hpc.problems.sets import set_names, set_of
from core_hpc.problems.splits import split_of
from core_hpc.runs.folder import read_identity
from core_hpc.store.schema import COLD, EVALUATE

LOG_PHASES = (EVALUATE, COLD)
"""Phases that these formats have room for: completions without hints."""
_COLUMNS = (*OF_COMPLETION, "num_prompt_tokens")


class Logs(Protocol):
    """The logs of one model while they are written."""

    def add(self, evaluation: Evaluation, problem: Fields, completions: Sequence[Fields]) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


WRITERS: dict[str, Callable[[Path], Logs]] = {INSPECT: InspectLogs, LM_EVAL: LmEvalResults}


def export_logs(
    run: Path,
    out: Path,
    software: str,
    *,
    phase: str = EVALUATE,
    iteration: int | None = None,
    models: Sequence[str] = (),
) -> Exported:
    """Write a run's completions as logs of other software.

    Args:
        run: a run folder.
        out: the new folder; it must not exist, or be empty.
        software: a key of `WRITERS`.
        phase: one of `LOG_PHASES`.
        iteration: default: the latest that every chosen model has completions of.
        models: names; empty: the whole team.

    Raises:
        InputError: there is nothing to export, or `out` cannot be created.
        StoreError: a published file is damaged. Nothing is written.
    """
    if phase not in LOG_PHASES:
        raise InputError(
            f"export: {software} has no field for what phase {phase} adds (who saw which hint); leave --to out, or "
            f"use --phase {' or '.join(LOG_PHASES)}"
        )
    out = Path(out).resolve()
    require_free(out)
    selection = select(run, phase=phase, iteration=iteration, models=models)
    names = set_names(selection.config) if selection.config is not None and phase == EVALUATE else []
    # Training problems belong to the main set.
    problems = selection.problems.with_columns(set_of(names).alias("set")).with_row_index("position")
    counts: dict[str, int] = {}
    incomplete = []
    with new_folder(out) as folder:
        for model in selection.models:
            of_model = replace(selection, models=[model], keys=[key for key in selection.keys if key.model == model])
            if not of_model.keys:  # the run is in progress
                counts[model] = 0
                continue
            evaluations = _evaluations(of_model, problems, names)
            with closing(WRITERS[software](folder)) as logs:
                for problem, completions in _problems(of_model, problems):
                    logs.add(evaluations[problem.pop("set")], problem, completions)
                logs.finish()
            counts[model] = sum(e.figures.num_completions for e in evaluations.values())
            incomplete += [f"{e.task} of {model}" for e in evaluations.values() if not e.is_complete]
    notes = note_of_counts(counts)
    if incomplete:
        notes.append(f"not all completions are published yet: {', '.join(incomplete)}")
    return Exported(out, selection.iteration, counts, notes)


def _problems(selection: Selection, problems: pl.DataFrame) -> Iterator[tuple[Fields, list[Fields]]]:
    """Yield each problem with its completions, in the order of samples.

    Args:
        selection: of one model.
        problems: those of the selection, with `position` and `set`.
    """
    known = {row["problem_id"]: row for row in problems.iter_rows(named=True)}
    for _, rows in selection.tables(_COLUMNS):
        order = rows.join(problems.select("problem_id", "position"), on="problem_id", how="left")
        ordered = order.sort("position", "sample_index").iter_rows(named=True)
        for problem_id, completions in groupby(ordered, key=itemgetter("problem_id")):
            fields = known.get(problem_id, {})
            problem: Fields = {name: fields.get(name) for name in OF_PROBLEM}
            yield {**problem, "set": fields.get("set", "")}, list(completions)


def _evaluations(selection: Selection, problems: pl.DataFrame, names: Sequence[str]) -> dict[str, Evaluation]:
    """The evaluations of a model, by the name of the set; that of the main set is empty.

    Args:
        selection: of one model.
        problems: as for `_problems`.
        names: of the other sets.
    """
    config, (model,) = selection.config, selection.models
    times = [float(selection.manifest(key).writer["time"]) for key in selection.keys]
    identity = read_identity(selection.run)
    made_with = identity.get("provenance") or identity.get("imported", {}).get("verifier") or {}
    found = {}
    for name in ("", *names):
        of_set = problems.filter(pl.col("set") == name)
        expected: int | None = None
        sampling: dict[str, Any] = {}
        if config is not None:
            own = config.for_set(name)
            sampling = own.sampling_of(own.model(model), selection.phase).model_dump()
            if selection.phase == EVALUATE:
                expected = own.evaluation.samples * of_set.height
        found[name] = Evaluation(
            run_id=str(identity["run_id"]),
            model=model,
            source=None if config is None else config.model(model).model,
            phase=selection.phase,
            iteration=selection.iteration,
            task=name or _main_task(of_set, taken=names, phase=selection.phase),
            problem_ids=of_set["problem_id"].to_list(),
            num_expected=expected,
            num_examples=0 if config is None else config.problems.num_examples,
            sampling=sampling,
            started_s=min(times),
            finished_s=max(times),
            version=str(made_with.get("core_hpc", __version__)),
            git_commit=made_with.get("git_commit"),
        )
    return found


def _main_task(problems: pl.DataFrame, *, taken: Sequence[str], phase: str) -> str:
    """The name of the main set: its data set, if all problems have the same, else that of the split."""
    names = problems["data_set"].unique().to_list()
    only = re.sub(r"[^\w.-]+", "-", names[0] or "").strip("-") if len(names) == 1 else ""
    return only if only and only not in taken else split_of(phase)
