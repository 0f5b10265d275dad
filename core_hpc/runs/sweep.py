"""From a sweep file to runs: base files, profile, --set, grid or explicit runs.

In: the path of a sweep file, and overrides. Out: a `Sweep` of resolved, frozen `RunConfig`s. All
mistakes are reported at once, each with its YAML path, the nearest valid key and what to write.
Nothing is created and no heavy package is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import yaml
from core_hpc.common.errors import ConfigError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.identity import config_hash, flatten, scientific_fields
from core_hpc.config.run import SWEEP_KEYS, RunConfig
from core_hpc.config.yaml_text import parse_yaml
from core_hpc.extensions import sources
from core_hpc.extensions.points import uses
from core_hpc.extensions.sources import Source
from core_hpc.runs.arms import missing_arms
from core_hpc.runs.bases import apply_profile, read_with_bases
from core_hpc.runs.explain import explain_all
from core_hpc.runs.grid import expand
from core_hpc.runs.names import hash_of
from core_hpc.runs.origins import Layer, with_origins

PROFILE = "cluster.profile"
MAX_PATH_PARTS = 20
"""Parts of a dotted path, such as `protocol.sampling.top_p`."""
SHOWN_CHARACTERS = 200
READ_BEFORE = {"base": "write it in the sweep file", PROFILE: "use --cluster"}
"""Fields that are used before `--set` is, and what to do instead."""


@dataclass(frozen=True)
class RunPlan:
    """One run of a sweep. `run_id` is its label and the hash of its scientific fields."""

    label: str
    run_id: str
    config: RunConfig
    sources: Mapping[str, Source] = field(default_factory=dict)
    """The files of the user's functions as they were read, by digest (`extensions/sources.py`)."""


@dataclass(frozen=True)
class Sweep:
    """A resolved sweep file.

    `text` is the file as it was read, and `folder` is where the results go.
    """

    source: Path
    text: str
    name: str
    folder: Path
    runs: tuple[RunPlan, ...]

    @property
    def largest_team(self) -> int:
        """Largest number of models in a run."""
        return max(len(plan.config.team) for plan in self.runs)

    @property
    def cluster(self) -> ClusterSection:
        """The cluster section, which all runs share: a sweep has one driver."""
        return self.runs[0].config.cluster


def load_sweep(
    source: Path, overrides: Sequence[str] = (), *, output: str | None = None, profile: str | None = None
) -> Sweep:
    """Read a sweep file and resolve it to its runs.

    Args:
        source: The sweep file.
        overrides: Values of `--set`, each `path.to.field=value`.
        output: Replaces the field `output`.
        profile: Name or file of a cluster profile, instead of the field `cluster.profile`.

    Raises:
        ConfigError: The file has mistakes. The message lists all of them.
    """
    text, data, layers = read_with_bases(source)
    return resolve_sweep(source, text, data, overrides, output=output, profile=profile, layers=layers)


def resolve_sweep(
    source: Path,
    text: str,
    data: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    profile: str | None = None,
    layers: Sequence[Layer] = (),
) -> Sweep:
    """Resolve the content of a sweep file to its runs.

    Args:
        source: The file, or what stands for it in messages.
        text: The file as it was read.
        data: Its content, with that of its base files.
        overrides: As in `load_sweep`, like `output` and `profile`.
        layers: The file and its base files, if the content was merged from several.

    Raises:
        ConfigError: The content has mistakes. The message lists all of them.
    """
    layers = [*(layers or [Layer(source, dict(data))]), *apply_profile(source, data, profile)]
    mistakes: list[str] = []
    for override in overrides:
        _apply_override(data, override, mistakes)
    if output is not None:
        data["output"] = output
    if data.get("output") == "":
        mistakes.append("output: is empty; write a folder, or `.` for the current one")
    of_points: list[str] = []
    points = expand(data, of_points)
    mistakes += with_origins(of_points, data, layers)
    plain = {k: v for k, v in data.items() if k not in SWEEP_KEYS}
    runs: list[RunPlan] = []
    read = lru_cache(maxsize=None)(sources.read_source)  # all runs have the same content of a file
    for label, changes in points:
        merged = plain
        if PROFILE in changes:
            mistakes.append(
                f"run {label}: {PROFILE}: all runs share one profile; write it in `cluster`, or use --cluster"
            )
        for path, value in changes.items():
            merged = _with_value(merged, path, value, f"run {label}: {path}", mistakes)
        of_run: list[str] = []
        runs += _resolve(label, merged, of_run, read=read)
        mistakes += with_origins(of_run, merged, layers)
    if not mistakes:  # a field that could not be set makes runs equal
        mistakes += _equal_runs(runs)
    mistakes += _different_sections(runs)
    mistakes += _missing_arms(source, runs)
    mistakes = list(dict.fromkeys(mistakes))  # report a mistake once, not per point of the grid
    if mistakes:
        raise ConfigError(str(source), mistakes)
    first = runs[0].config
    return Sweep(source, text, first.name, Path(first.output).expanduser() / first.name, tuple(runs))


def _apply_override(data: dict[str, Any], override: str, mistakes: list[str]) -> None:
    path, equals, value = override.partition("=")
    if not equals or not all(path.split(".")):
        mistakes.append(f"--set {override}: write --set path.to.field=value")
        return
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as e:
        problem = getattr(e, "problem", None)
        mistakes.append(f"--set {path}: {value!r} is not a YAML value{f': {problem}' if problem else ''}")
        return
    parsed = sources.located(parsed, Path.cwd(), path)
    changed = dict(_with_value(data, path, parsed, f"--set {path}", mistakes))
    before, after = flatten(data), flatten(changed)
    mistakes += [
        f"--set {path}: {name} is read before --set, and so has no effect here; {advice}"
        for name, advice in READ_BEFORE.items()
        if after.get(name) not in (None, before.get(name))
    ]
    data.clear()
    data.update(changed)


def _with_value(data: Any, path: str, value: Any, where: str, mistakes: list[str]) -> Any:
    """A copy of `data` with another value at a dotted path.

    A part of the path that leads into a list is the index of a member, or its `name`.
    """
    head, _, rest = path.partition(".")
    if path.count(".") >= MAX_PATH_PARTS:
        mistakes.append(f"{where[:SHOWN_CHARACTERS]}: a path of more than {MAX_PATH_PARTS} parts")
        return data
    if isinstance(data, list):
        index = next(
            (i for i, v in enumerate(data) if str(i) == head or (isinstance(v, dict) and v.get("name") == head)), None
        )
        if index is None:
            names = ", ".join(str(v["name"]) for v in data if isinstance(v, dict) and "name" in v)[:SHOWN_CHARACTERS]
            mistakes.append(f"{where}: the list has no member {head!r}{f' (its members: {names})' if names else ''}")
            return data
        return [
            (_with_value(v, rest, value, where, mistakes) if rest else value) if i == index else v
            for i, v in enumerate(data)
        ]
    if data is None:
        data = {}
    if not isinstance(data, dict):
        mistakes.append(f"{where}: {head!r} is below a plain value, which has no fields")
        return data
    return {**data, head: _with_value(data.get(head, {}), rest, value, where, mistakes) if rest else value}


def _resolve(label: str, data: dict[str, Any], mistakes: list[str], *, read: Callable[[Path], Source]) -> list[RunPlan]:
    found: dict[str, Source] = {}
    data = sources.with_digests(data, mistakes, found, read=read)
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as e:
        mistakes += explain_all(e.errors())
        return []
    from core_hpc.problems.splits import source_mistakes  # loads Polars, which a refused file does not need

    sources.remember(found.values())
    for use in uses(config):
        if sources.digest_of(use.reference) in found:  # else the file cannot be read, which is reported above
            mistakes += [f"{use.path}: {message}" for message in sources.mistakes_of(use)]
    mistakes += [f"cluster.{message}" for message in config.cluster.slurm.gpu_mistakes()]
    for split in ("train", "evaluation"):
        source = getattr(config.problems, split)
        mistakes += [f"problems.{split}.{field}: {message}" for field, message in source_mistakes(source)]
    for index, own in enumerate(config.evaluation.sets):
        where = f"evaluation.sets.{index}.problems"
        mistakes += [f"{where}.{field}: {message}" for field, message in source_mistakes(own.problems)]
    for index, model in enumerate(config.team):
        if model.warmup is None:
            continue
        where = f"team.{index}.warmup"
        of_warmup = {f"{where}.problems": model.warmup.problems}
        of_warmup |= {f"{where}.hinted.{i}": s for i, s in enumerate(model.warmup.hinted)}
        mistakes += [f"{p}.{name}: {message}" for p, s in of_warmup.items() for name, message in source_mistakes(s)]
    return [RunPlan(label, f"{label}-{config_hash(scientific_fields(config))}", config, found)]


def _equal_runs(runs: Iterable[RunPlan]) -> list[str]:
    """Mistakes for runs that would compute the same thing."""
    by_hash: dict[str, str] = {}
    found = []
    for run in runs:
        identity = hash_of(run.run_id)
        if identity in by_hash:
            found.append(
                f"grid/runs: {run.label} and {by_hash[identity]} compute the same thing, because they differ in no "
                "scientific field"
            )
        by_hash.setdefault(identity, run.label)
    return found


def _different_sections(runs: Sequence[RunPlan]) -> list[str]:
    """Mistakes for fields that all runs of a sweep share, but that differ."""
    folder = "share one folder"
    why = {"name": folder, "output": folder, "cluster": "share one driver", "analysis": "are analysed together"}
    found = []
    for name, reason in why.items():
        sections = [flatten(run.config.model_dump(mode="json", include={name})) for run in runs]
        fields = sorted({path for section in sections for path in section})
        found += [
            f"{path}: {sections[0].get(path)!r} in run {runs[0].label}, but {section.get(path)!r} in run {run.label}. "
            f"The runs of a sweep {reason}: use the same value for all, or a sweep file for each"
            for path in fields
            for run, section in zip(runs[1:], sections[1:], strict=True)
            if section.get(path) != sections[0].get(path)
        ]
    return found


def _missing_arms(source: Path, runs: Sequence[RunPlan]) -> list[str]:
    """Mistakes for arms of the declared comparison that do not exist."""
    primary = runs[0].config.analysis.primary if runs else None
    if primary is None:
        return []
    labels = [run.label for run in runs]
    return list(missing_arms(primary, source=source, sweep=runs[0].config.name, labels=labels))
