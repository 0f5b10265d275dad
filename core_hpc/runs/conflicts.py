"""What a sweep file may not change: the scientific fields, and the iterations, of started runs.

In: a sweep, and the run folders of its earlier starts. Out: the sweep with the ids of its started runs,
or an error whose message names the fields. Nothing is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from core_hpc.common import ownership
from core_hpc.common.errors import RunConflictError
from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.runs.arms import arm_name
from core_hpc.runs.folder import exists, read_identity
from core_hpc.runs.names import hash_of, label_of
from core_hpc.runs.sweep import RunPlan, Sweep
from core_hpc.store import shards
from core_hpc.store.output_folder import require_writable
from core_hpc.store.schema import UPDATE


def with_started_ids(sweep: Sweep) -> Sweep:
    """Give every run the id with which it was started.

    A folder with equal scientific fields is the folder of the run if its label names the same arm, as
    `run` and `seed-42` do: a grid of seeds may be added to a sweep of one run. Earlier versions made
    the id from the text of the numbers, so `32` and `32.0` gave two ids.
    """
    new = _new_runs(sweep)
    if not new:
        return sweep  # its folder need not be listed
    started = _started(sweep.folder)
    by_label, by_hash = _by_part(started, label_of), _by_part(started, hash_of)
    found = {p.run_id: _as_started(p, [*by_label[p.label], *by_hash[hash_of(p.run_id)]]) for p in new}
    return replace(sweep, runs=tuple(found.get(plan.run_id, plan) for plan in sweep.runs))


def _new_runs(sweep: Sweep) -> list[RunPlan]:
    return [plan for plan in sweep.runs if not exists(plan, sweep.folder)]


def _as_started(plan: RunPlan, candidates: Sequence[Path]) -> RunPlan:
    fields, arm = flatten(scientific_fields(plan.config)), arm_name(plan.config.name, plan.label)
    for found in candidates:
        same_arm = arm_name(plan.config.name, label_of(found.name)) == arm
        if same_arm and flatten(read_identity(found).get("scientific", {})) == fields:
            return replace(plan, run_id=found.name)
    return plan


def _started(sweep: Path) -> list[Path]:
    """The folders of the started runs of a sweep, in the order of their ids."""
    return [path.parent for path in sorted(sweep.glob("*/run.json"))]


def _by_part(folders: Sequence[Path], part: Callable[[str], str]) -> Mapping[str, Sequence[Path]]:
    """Folders of runs by a part of their ids."""
    found = defaultdict(list)
    for folder in folders:
        found[part(folder.name)].append(folder)
    return found


def check_conflicts(sweep: Sweep) -> None:
    """Check that no run of this sweep was started with other scientific fields.

    Raises:
        RunConflictError: There is such a run. The message names the fields.
    """
    messages = [message for of_run in find_conflicts(sweep).values() for message in of_run]
    if messages:
        raise RunConflictError(
            "the scientific fields of a started run cannot change; nothing was changed\n"
            + "\n".join(messages)
            + f"\n  Undo the change, or give the sweep another name (--set name={sweep.name}-2), or write a grid with "
            "both values."
        )


def find_conflicts(sweep: Sweep) -> dict[str, list[str]]:
    """By run id: which started runs with the same label have other values, and which fields differ."""
    wanted, new_runs = {run.run_id for run in sweep.runs}, _new_runs(sweep)
    started = _by_part(_started(sweep.folder), label_of) if new_runs else {}
    found: dict[str, list[str]] = {}
    for plan in new_runs:
        for folder in started[plan.label]:
            if folder.name in wanted:
                continue
            old = flatten(read_identity(folder).get("scientific", {}))
            new = flatten(scientific_fields(plan.config))
            changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            lines = [f"      {key}: {_show(old, key)} -> {_show(new, key)}" for key in changed]
            message = "\n".join([f"  - {folder} was made with other values", *lines])
            found.setdefault(plan.run_id, []).append(message)
    return found


def check_iterations(sweep: Sweep) -> None:
    """Check that no run was trained for more iterations than it would have.

    Its last evaluation would be another one, and the later results would be hidden.

    Raises:
        RunConflictError: `iterations` is lower than what is trained.
    """
    messages = []
    for plan in sweep.runs:
        keys = shards.published_keys(sweep.folder / plan.run_id, (UPDATE,)) if exists(plan, sweep.folder) else []
        last = max((key.iteration for key in keys), default=0)
        if last > plan.config.iterations:
            what = f"iterations: {plan.config.iterations}, but iteration {last} is trained"
            messages.append(f"  - {plan.run_id}: {what}")
    if messages:
        raise RunConflictError(
            "a run cannot become shorter than what it has done; nothing was changed\n"
            + "\n".join(messages)
            + "\n  Set iterations to at least the last number. To study fewer iterations, evaluate an earlier one "
            "(python -m core_hpc.evaluate RUN_FOLDER --iteration I), or give the sweep another name "
            f"(--set name={sweep.name}-2)."
        )


def _show(fields: Mapping[str, Any], key: str) -> str:
    return repr(fields[key]) if key in fields else "(absent)"


def folder_checks(sweep: Sweep) -> Iterator[Callable[[], None]]:
    """What a start checks about the output folder. Each raises an error that names what to do."""
    yield partial(check_iterations, sweep)
    yield partial(require_writable, sweep.folder)
    if sweep.cluster.uses_slurm:
        yield partial(require_own_folders, sweep)


def require_own_folders(sweep: Sweep) -> None:
    """Check that the folders of a sweep belong to this user, so that its jobs do not refuse them.

    Raises:
        OwnershipError: One belongs to somebody else.
    """
    for folder in (sweep.folder, *(sweep.folder / plan.run_id for plan in sweep.runs)):
        if folder.is_dir():
            ownership.require_owner(folder)
