"""What the runs of a sweep read: equal sources must give equal problems and equal weights.

In: a sweep, and what preparation found for its new runs. Out: nothing, or an error that names the runs
whose inputs differ. Such runs would be compared, or averaged over seeds, although a file or a model
was changed between their starts. Started runs keep their inputs; `changed_files` names the files that
were written since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core_hpc.common.errors import RunConflictError
from core_hpc.config.identity import scientific_fields
from core_hpc.problems.splits import EVALUATION, EXAMPLES, TRAIN, Splits, problems_digest, warmup_split
from core_hpc.runs.folder import ModelFacts, exists, facts_in, read_identity, runs_in
from core_hpc.runs.sweep import Sweep
from core_hpc.store.paths import RunPaths

PROMPT_FIELDS = ("instruction", "instruction_style")
"""Fields of the section `problems` that do not decide which problems a run has."""
WEIGHT_FIELDS = ("model", "revision", "trust_remote_code", "allow_pickle")
"""Fields of a member of the team that decide which weights it has."""
SHOWN_RUNS = 10

Input = tuple[str, str]
"""What it is, for messages, and the scientific fields that decide it, as JSON."""


def check_inputs(sweep: Sweep, splits: Mapping[str, Splits], facts: Mapping[str, Mapping[str, ModelFacts]]) -> None:
    """Check that new runs have the problems and weights of the started runs in the same sweep folder.

    Args:
        sweep: the sweep.
        splits: the problems, by run id.
        facts: the facts about the models by name, by run id.

    Raises:
        RunConflictError: sources of a new run now give others. The message names the runs.
    """
    new = [plan for plan in sweep.runs if plan.run_id in splits and not exists(plan, sweep.folder)]
    started = _started(sweep) if new else {}
    if not started:
        return
    messages = []
    for plan in new:
        digests = {name: problems_digest(problems) for name, problems in splits[plan.run_id].by_name().items()}
        found = _inputs(scientific_fields(plan.config), digests, facts.get(plan.run_id, {}))
        messages += list(_differences(plan.run_id, found, started))
    if messages:
        more = [f"  ... and {len(messages) - SHOWN_RUNS} more"] * (len(messages) > SHOWN_RUNS)
        raise RunConflictError(
            "new runs of a sweep need the problems and the models of its started runs; nothing was created\n"
            + "\n".join([*messages[:SHOWN_RUNS], *more])
            + "\n  A file or a model was changed, a package has another version, or the command runs in another folder,"
            " to which paths are relative. Restore what was changed, or give the sweep another name "
            f"(--set name={sweep.name}-2)."
        )


def changed_files(sweep: Sweep) -> list[str]:
    """Notes about problem files that were written after a run of the sweep had begun, which has a copy of them."""
    first: dict[Path, str] = {}
    for plan in sweep.runs:
        identity = RunPaths(sweep.folder / plan.run_id).identity
        if identity.is_file():
            began = identity.stat().st_mtime
            for path in _files(scientific_fields(plan.config)):
                if path.is_file() and path.stat().st_mtime > began:
                    first.setdefault(path, plan.run_id)
    return [
        f"{path} was written after {run_id} had begun. Its figures are those of its copy; for the problems "
        "of now, give the sweep another name (--set name=..., or --name of evaluate)"
        for path, run_id in first.items()
    ]


def _files(fields: Any) -> Iterator[Path]:
    """The files of all problem sources in nested fields of a configuration."""
    if isinstance(fields, dict):
        if "source" in fields and isinstance(fields.get("path"), str):
            yield Path(fields["path"]).expanduser()
        fields = list(fields.values())
    if isinstance(fields, list):
        for value in fields:
            yield from _files(value)


def _started(sweep: Sweep) -> dict[Input, dict[str, str]]:
    """The inputs of the started runs: by digest, the first run that has it."""
    found: dict[Input, dict[str, str]] = {}
    for folder in runs_in(sweep.folder):
        identity = read_identity(folder)
        problems, facts = identity.get("problems", {}), facts_in(identity)
        for what, digest in _inputs(identity.get("scientific", {}), problems, facts):
            found.setdefault(what, {}).setdefault(digest, folder.name)
    return found


def _differences(
    run_id: str, inputs: Iterable[tuple[Input, str]], started: Mapping[Input, Mapping[str, str]]
) -> Iterator[str]:
    for what, digest in inputs:
        others = [run for other, run in started.get(what, {}).items() if other != digest]
        if others:
            yield f"  - {run_id}: {what[0]} would not be that of {others[0]}"


def _inputs(
    fields: Mapping[str, Any], problems: Mapping[str, str], facts: Mapping[str, ModelFacts]
) -> Iterator[tuple[Input, str]]:
    """Yield what a run reads, and its digest.

    Args:
        fields: its scientific fields.
        problems: digests of its problems, by the name under which they are frozen.
        facts: about its models, by name.
    """
    section = {k: v for k, v in fields.get("problems", {}).items() if k not in PROMPT_FIELDS}
    held_out = [section, [[own["name"], own["problems"]] for own in fields.get("evaluation", {}).get("sets", [])]]
    decisive: dict[str, Any] = {TRAIN: section, EXAMPLES: section, EVALUATION: held_out}
    for member in fields.get("team", []):
        name, fact = member["name"], facts.get(member["name"])
        if warmup := member.get("warmup"):
            decisive[warmup_split(name)] = [held_out, warmup["problems"], warmup.get("hinted")]
        if fact is not None:
            weights = [member.get(field) for field in WEIGHT_FIELDS]
            yield _input(f"team.{name}: the model {member['model']}", weights), fact.fingerprint
        if fact is not None and member.get("adapter"):
            yield _input(f"team.{name}: the adapter {member['adapter']}", [name, member["adapter"]]), fact.adapter
    for name, digest in problems.items():
        if name in decisive:
            yield _input(f"problems: the split {name}", decisive[name]), digest


def _input(what: str, decisive: Any) -> Input:
    return what, json.dumps(decisive, sort_keys=True)
