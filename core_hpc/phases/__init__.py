"""The phases of an iteration as pure steps: read published inputs, compute, publish one result.

`run_task` is all that an executor needs to know. A task may run twice at once without harm (store.py), knows
nothing of Slurm or of the other tasks that run, and takes its warm engine or trainer from `Warm`.
"""

from __future__ import annotations

from collections.abc import Callable

from core_hpc.common.faults import fault_point
from core_hpc.phases.context import TaskContext
from core_hpc.store import manifests
from core_hpc.store.schema import COLD, EVALUATE, HINT, RESCUE, SCORE, UPDATE

__all__ = ["TaskContext", "run_task"]


def run_task(context: TaskContext) -> None:
    """Run one task and publish its result; returns at once when it is published already."""
    step = _step(context.key.phase)
    context.stopwatch.lap("import")
    fault_point("task.started", str(context.key))
    if not context.paths.task_manifest(context.key).exists():
        manifests.make_folder(context.paths.task_folder(context.key))
        step(context)


def _step(phase: str) -> Callable[[TaskContext], None]:
    """Imports what the phase needs only: the update's DeepSpeed costs seconds."""
    if phase == HINT:
        from core_hpc.phases import hint

        return hint.run
    if phase == SCORE:
        from core_hpc.phases import score

        return score.run
    if phase == UPDATE:
        from core_hpc.phases import update

        return update.run
    from core_hpc.phases import generate

    return {COLD: generate.run_cold, RESCUE: generate.run_rescue, EVALUATE: generate.run_evaluate}[phase]
