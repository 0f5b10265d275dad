"""Reasons why the tidy table of a command is empty.

The input is the `RunData` of the runs, whose table has no row. The output is one line of text. A
table is empty because its data are not published yet, or because the run never makes them: part of
the method is switched off, the team has one model, or the predictions were imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.counts.load import RunData
from analysis.report.evaluation_tables import missing
from analysis.report.training_tables import no_curves, no_rescues
from core_hpc.store.schema import EVALUATE

_OF_RESCUES = ("rescue", "hints", "teaching")
_OF_TEAMS = ("gain", "teaching", "overlap-change")
"""Commands whose tables need two models."""
_NEEDS_TEAM = "the table needs two models or more"


def why_empty(command: str, runs: Sequence[RunData], *, phase: str = EVALUATE) -> str:
    """Return why the table of a command is empty; with the names of the runs, if they have different reasons."""
    reasons = {data.name: _reason(command, data, phase) for data in runs}
    different = dict.fromkeys(reasons.values())
    return next(iter(different)) if len(different) == 1 else "; ".join(f"{run}: {why}" for run, why in reasons.items())


def _reason(command: str, data: RunData, phase: str) -> str:
    if command in _OF_TEAMS and len(data.models) < 2:
        return _NEEDS_TEAM
    if command in _OF_RESCUES:
        return no_rescues(data)
    if command == "curves":
        return no_curves(data)
    if phase != EVALUATE:
        if data.config is None:
            return f"imported predictions have no completions of the phase {phase}"
        return f"no completions of the phase {phase} are published yet"
    if command == "overlap-change":
        if data.config is None:
            return "imported predictions have no evaluation before and after training"
        if data.only_evaluates:
            return "the run has no training (iterations: 0), so nothing changes"
    return " and ".join(missing(data)) or "the data that it needs are not published yet"
