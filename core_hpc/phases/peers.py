"""What an update reads of the other models and of the problems, shared by the options that need it."""

from __future__ import annotations

from core_hpc.problems.splits import TRAIN
from core_hpc.runs.folder import Run
from core_hpc.store.paths import TaskKey


def peers_of(run: Run, model: str) -> list[str]:
    """The names of the other models of the team."""
    return [m.name for m in run.config.team if m.name != model]


def peer_tasks(run: Run, key: TaskKey, phase: str) -> list[TaskKey]:
    """The tasks of the other models in a phase, in the iteration of an update task."""
    parts = range(run.graph().num_parts)
    return [TaskKey(key.iteration, phase, peer, part) for peer in peers_of(run, key.model) for part in parts]


def questions_of(run: Run) -> dict[str, str]:
    """The question of each training problem, by its id."""
    return dict(run.split(TRAIN).select("problem_id", "question").rows())
