"""From models to a sweep that only evaluates them (`iterations: 0`).

In: a run of which adapters are evaluated, or base models and PEFT folders; problem sets; ways of
sampling. Out: the content of a sweep file, with one run for each of their combinations. It is
launched, continued and analysed like any other sweep, so nothing is evaluated here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.config.model import ModelSection
from core_hpc.config.problems import ProblemsSection, answer_kind_of
from core_hpc.extensions import sources
from core_hpc.models.adapters import ADAPTER_CONFIG, LAST, is_adapter, published_iterations, read_shape
from core_hpc.problems.sets import all_problems
from core_hpc.problems.splits import EVALUATION, EXAMPLES, problems_digest
from core_hpc.runs.adapters import frozen_adapter
from core_hpc.runs.evaluation_arguments import SOURCE, Fields, NamedSampling, NamedSet, slug
from core_hpc.runs.folder import Run, list_runs, open_run, read_identity
from core_hpc.runs.names import ONLY_RUN
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import UPDATE, WARMUP

NOT_EVALUATED = {"warmup", "adapter", "learning_rate"}
"""Fields of a team member that matter only in training, or that `_trained` sets."""
KEPT_PROTOCOL = {"problems_per_iteration", "problems_per_part", "sampling", "prompt_function"}
"""Fields of `protocol` on which the evaluation of a run may depend: its parts, and its prompts and their length."""


@dataclass(frozen=True)
class Subject:
    """The team that is evaluated, and what the sweep takes over from a run.

    Attributes:
        name: Part of the default name of the sweep.
        team: By label: the sections `team` of the iterations.
        fields: Further fields of the sweep file.
        run: The run that the team comes from, or None.
    """

    name: str
    team: Mapping[str, list[Fields]]
    fields: Fields
    run: Run | None = None


# --- what is evaluated ---------------------------------------------------------------------------


def subject_of(names: Sequence[str], *, iterations: Sequence[str], base: str | None) -> Subject:
    """The team that arguments of the command name.

    Args:
        names: One run folder, or models and PEFT folders.
        iterations: Of the run: numbers, or `last`. Empty: the last one that all models have.
        base: The base model of PEFT folders, instead of the one that they name.

    Raises:
        InputError: Something does not exist. The message names what there is.
    """
    folders = [Path(name).expanduser() for name in names]
    runs = [folder for folder in folders if RunPaths(folder).identity.is_file() or any(folder.glob("*/run.json"))]
    if runs and len(names) > 1:
        raise InputError(
            f"{runs[0]}: a run is evaluated alone; use one command per run, with the same --name if you like"
        )
    if runs:
        if base is not None:
            raise InputError("--base is for PEFT folders; a run knows its base models")
        return _of_run(runs[0], iterations)
    if iterations:
        raise InputError(f"--iteration: {names[0]} is not a run folder; only a run has iterations")
    team: list[Fields] = []
    for name, folder in zip(names, folders, strict=True):
        member = _adapted(folder, base) if is_adapter(folder) else {"model": name, "tuning": "full"}
        taken = [other["name"] for other in team]
        short = slug(Path(name).name.rpartition(":")[2])
        number = 2
        while (unique := short if number == 2 and short not in taken else f"{short}-{number}") in taken:
            number += 1
        team.append({"name": unique, **member})
    return Subject(team[0]["name"], {"": team}, {"protocol": {"rescue_samples": 0}})


def _adapted(folder: Path, base: str | None) -> Fields:
    """A team member from a PEFT folder."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    model = base or config.get("base_model_name_or_path")
    if not model:
        raise InputError(f"{folder}: {ADAPTER_CONFIG} names no base model; add --base")
    shape = read_shape(folder)
    lora = {"rank": shape.rank, "alpha": shape.alpha, "targets": shape.targets}
    revision = {"revision": config["revision"]} if config.get("revision") and not base else {}
    return {"model": str(model), **revision, "adapter": str(folder), "lora": lora}


def _of_run(path: Path, iterations: Sequence[str]) -> Subject:
    found = list_runs(path)
    if len(found) > 1:
        raise InputError(
            f"{path}: has {len(found)} runs; name one of their folders: {', '.join(r.name for r in found)}"
        )
    if not RunPaths(found[0]).config.is_file():
        raise InputError(f"{found[0]}: imported predictions have no weights, so they cannot be evaluated")
    run = open_run(found[0])
    config = run.config
    published = set.intersection(*(set(published_iterations(run.root, m.name)) for m in config.team))
    available = [0, *sorted(published)]
    wanted = [str(available[-1]) if i == LAST else i for i in iterations or [LAST]]
    if unknown := [i for i in wanted if not i.isdecimal() or int(i) not in available]:
        have = ", ".join(map(str, available))
        raise InputError(f"--iteration {unknown[0]}: {run.root} has no such update of every model; there are {have}")
    label = read_identity(run.root).get("label", ONLY_RUN)
    of_run = "" if label == ONLY_RUN else f"{label}-"  # the runs of a sweep may be evaluated under one name
    team = {f"{of_run}iteration-{int(i)}": [_trained(run, m, int(i)) for m in config.team] for i in wanted}
    cluster = config.cluster.model_dump(mode="json", exclude_defaults=True)
    cluster.pop("profile", None)  # its fields are in the section already
    analysis = config.analysis.model_dump(mode="json", include={"skills", "margin"}, exclude_defaults=True)
    fields = {
        "seed": config.seed,
        "output": str(run.root.absolute().parents[1]),
        "protocol": {**config.protocol.model_dump(mode="json", include=KEPT_PROTOCOL), "rescue_samples": 0},
        **({"cluster": cluster} if cluster else {}),
        **({"analysis": analysis} if analysis else {}),
    }
    return Subject(slug(config.name), team, fields, run)


def _trained(run: Run, model: ModelSection, iteration: int) -> Fields:
    """A team member as it is after an iteration of a run."""
    fields = model.model_dump(mode="json", exclude_defaults=True, exclude=NOT_EVALUATED)
    if commit := run.facts[model.name].commit:
        fields["revision"] = commit
    folder: Path | None = None
    if model.warmup is not None:
        folder = manifests.read_manifest(run.paths.task_manifest(TaskKey(0, WARMUP, model.name))).folder
    if model.tuning == "full" and iteration > 0:
        folder = manifests.read_manifest(run.paths.task_manifest(TaskKey(iteration, UPDATE, model.name))).folder
    if folder is not None:
        fields.pop("revision", None)
        fields["model"] = str(folder.absolute())
    if model.tuning == "full":
        return fields
    adapter = None
    if iteration > 0:
        adapter = f"{run.root.absolute()}@{iteration}:{model.name}"
    elif model.adapter is not None:
        adapter = str(frozen_adapter(run, model.name).absolute())
    return {**fields, "adapter": adapter}


# --- the sweep file ------------------------------------------------------------------------------


def sweep_file(
    subject: Subject, *, name: str | None, sets: Sequence[NamedSet], ways: Sequence[NamedSampling], changed: set[str]
) -> Fields:
    """The content of the sweep file.

    Args:
        subject: The team.
        name: Name of the sweep; None: made from the subject.
        sets: Problem sets; empty: the held-out problems of the run.
        ways: Ways of sampling.
        changed: Fields of sampling that the arguments set, which no member of the team has of its own.

    Raises:
        InputError: There is no problem set, or two have the same name; or the sources of a run give other problems than
            when it began.
    """
    if not sets and subject.run is None:
        raise InputError("--problems: is missing; name a problem set, for example --problems gsm8k:test")
    if twice := [s.name for i, s in enumerate(sets) if s.name in [other.name for other in sets[:i]]]:
        raise InputError(f"--problems: two sets have the name {twice[0]}; write NAME=SET for one of them")
    teams = {label: [_without(member, changed) for member in team] for label, team in subject.team.items()}
    first = next(iter(teams.values()))
    sections = _problems(subject, sets)
    runs = []
    for label, team in teams.items():
        changes = _changes(first, team)
        for problems in sections:
            for way in ways:
                parts = [label, problems.name, way.name]
                runs.append(
                    {
                        "label": "_".join(filter(None, parts)),
                        **changes,
                        "problems": problems.source,
                        "evaluation": {"samples": way.samples, "sampling": way.sampling},
                    }
                )
    made = {"name": name or f"evaluate-{subject.name}", "iterations": 0, **subject.fields, "team": first, "runs": runs}
    return made if subject.run is None else sources.from_copies(made, subject.run.paths.extensions)


def _without(member: Fields, changed: set[str]) -> Fields:
    own = {k: v for k, v in member.get("evaluation_sampling", {}).items() if k not in changed}
    rest = {k: v for k, v in member.items() if k != "evaluation_sampling"}
    return {**rest, "evaluation_sampling": own} if own else rest


def _changes(first: Sequence[Fields], team: Sequence[Fields]) -> Fields:
    """What differs from the first team, by dotted path. Both have the same members."""
    return {
        f"team.{old['name']}.{field}": new.get(field)
        for old, new in zip(first, team, strict=True)
        for field in {**old, **new}
        if old.get(field) != new.get(field)
    }


def _problems(subject: Subject, sets: Sequence[NamedSet]) -> list[NamedSet]:
    """The sections `problems` of all sets, with the prompts of the run."""
    if subject.run is None:
        return [NamedSet(s.name, {"train": {"source": "none"}, "evaluation": s.source}) for s in sets]
    section = subject.run.config.problems
    if not sets or section.num_examples:
        _require_same_problems(subject.run, (EXAMPLES,) if sets else (EVALUATION, EXAMPLES))
    if not sets:  # the same section, because the held-out problems can depend on the training problems
        return [NamedSet("held-out", section.model_dump(mode="json"))]
    return [NamedSet(s.name, _with_prompts_of(section, s.source)) for s in sets]


def _require_same_problems(run: Run, splits: Sequence[str]) -> None:
    """Check that the sources of a run, which may be files of the user, still give the problems of these splits."""
    made, recorded = all_problems(run.config), read_identity(run.root).get("problems", {})
    for name in splits:
        if recorded.get(name) not in (None, problems_digest(getattr(made, name))):
            raise InputError(
                f"{run.root}: the sources of its problems ({name}) now give others than when the run began, because a "
                "file or a function was changed, or the command runs in another folder. Restore it, or name a problem "
                "set with --problems"
            )


def _with_prompts_of(section: ProblemsSection, evaluation: Fields) -> Fields:
    """The section `problems` for another problem set, with the worked examples and the instruction of a run.

    A set with answers of another kind gets the default instruction of that kind.
    """
    fields: Fields = {"train": {"source": "none"}, "evaluation": evaluation}
    if section.answer_kinds:
        fields["answer_kinds"] = {n: k.model_dump(mode="json") for n, k in section.answer_kinds.items()}
    if section.num_examples:
        fields["train"] = section.train.model_dump(mode="json")
        fields |= {"num_examples": section.num_examples, "near_duplicates": "drop"}
    if answer_kind_of(SOURCE.validate_python(evaluation)) == answer_kind_of(section.evaluation):
        return {**fields, "instruction": section.instruction}
    return {**fields, "instruction_style": section.instruction_style}
