"""The phases of an iteration.

A task of a phase reads published inputs, computes, and publishes one result. An executor only calls
`run_task`. Two processes may run the same task at the same time without harm, because the first one
to publish wins (`store/manifests.py`). A task knows nothing about SLURM or other tasks. Its warm
engine or trainer comes from `context.Warm`.
"""

from __future__ import annotations

from collections.abc import Callable

from core_hpc.answers.kinds import own_kinds
from core_hpc.answers.own import kinds_of
from core_hpc.common.environment import number_in
from core_hpc.common.faults import fault_point
from core_hpc.models.imports import large_imports
from core_hpc.phases.context import TaskContext
from core_hpc.store import manifests
from core_hpc.store.schema import COLD, EVALUATE, HINT, RESCUE, SCORE, TRAINING_PHASES, UPDATE, WARMUP

__all__ = ["TaskContext", "run_task"]


def run_task(context: TaskContext) -> None:
    """Run one task and publish its result. If the result is already published, nothing is done."""
    step = _step(context.key.phase)
    context.stopwatch.lap("import")
    fault_point("task.started", str(context.key))
    if not _is_published(context):
        manifests.make_folder(context.paths.task_folder(context.key))
        config = context.run.config
        with own_kinds(kinds_of(config.problems.answer_kinds, limit_s=config.extensions.time_limit_s)):
            step(context)


def _is_published(context: TaskContext) -> bool:
    """Whether a task is published; if it has several ranks, the answer of rank 0.

    A rank that found another answer would leave the others waiting for it.
    """
    here = manifests.is_file(context.paths.task_manifest(context.key))
    if context.key.phase not in TRAINING_PHASES or (number_in("WORLD_SIZE") or 1) == 1:
        return here
    from core_hpc.training.zero2 import from_rank_zero, start_process_group

    return bool(from_rank_zero(int(here), start_process_group()))


def _step(phase: str) -> Callable[[TaskContext], None]:
    """The function of a phase.

    Only its module is imported, because DeepSpeed (update) takes seconds.
    """
    if phase == HINT:
        from core_hpc.phases import hint

        return hint.run
    if phase == SCORE:
        from core_hpc.phases import score

        return score.run
    if phase == UPDATE:
        with large_imports():
            from core_hpc.phases import update

        return update.run
    if phase == WARMUP:
        with large_imports():
            from core_hpc.phases import warmup

        return warmup.run
    from core_hpc.phases import generate

    return {COLD: generate.run_cold, RESCUE: generate.run_rescue, EVALUATE: generate.run_evaluate}[phase]
