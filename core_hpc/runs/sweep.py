"""From a sweep file to runs: inheritance, --set, grid or explicit runs, and the mistakes in them.

In: a YAML path and overrides. Out: a `Sweep` of resolved, frozen `RunConfig`s. All mistakes are reported at once
with their YAML path, the nearest valid key and what to write. Nothing is created and no heavy package is loaded.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

import yaml
from core_hpc.common.errors import ConfigError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.problems import PROBLEM_SOURCES
from core_hpc.config.run import RunConfig, config_hash, flatten, scientific_fields
from core_hpc.problems.splits import source_mistakes

SWEEP_KEYS = ("grid", "runs", "base")
MAX_RUNS = 1000
PROFILES = Path(__file__).parents[2] / "yaml" / "cluster"


@dataclass(frozen=True)
class RunPlan:
    """One run of a sweep. `label` names its point of the grid; `run_id` adds the hash of its scientific fields."""

    label: str
    run_id: str
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """A sweep file, resolved. `text` is the file as it was read."""

    source: Path
    text: str
    name: str
    folder: Path
    runs: tuple[RunPlan, ...]

    @property
    def largest_team(self) -> int:
        """Models of the run that has most."""
        return max(len(plan.config.team) for plan in self.runs)

    @property
    def clusters(self) -> list[ClusterSection]:
        """The different cluster sections of the runs."""
        return list({plan.config.cluster.model_dump_json(): plan.config.cluster for plan in self.runs}.values())


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that occurs twice, and reads 1e-5 as a number (YAML 1.2)."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """Parse YAML safely; yaml.YAMLError on mistakes."""
    return yaml.load(text, Loader=_UniqueKeyLoader)


def load_sweep(
    source: Path, overrides: Sequence[str] = (), *, output: str | None = None, profile: str | None = None
) -> Sweep:
    """Read, inherit, override and expand a sweep file; ConfigError lists every mistake.

    `profile` names a cluster profile instead of the file's `cluster.profile`.
    """
    text, data = _read_with_bases(source, ())
    _apply_profile(source, data, profile)
    mistakes: list[str] = []
    for override in overrides:
        _apply_override(data, override, mistakes)
    if output is not None:
        data["output"] = output
    points = _expand(data, mistakes)
    plain = {k: v for k, v in data.items() if k not in SWEEP_KEYS}
    runs: list[RunPlan] = []
    for label, changes in points:
        merged = plain
        for path, value in changes.items():
            merged = _with_value(merged, path, value, f"run {label}: {path}", mistakes)
        runs += _resolve(label, merged, mistakes)
    mistakes += _clashes(runs)
    mistakes = list(dict.fromkeys(mistakes))  # the same mistake in every point of a grid is one mistake
    if mistakes:
        raise ConfigError(str(source), mistakes)
    first = runs[0].config
    return Sweep(source, text, first.name, Path(first.output).expanduser() / first.name, tuple(runs))


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[str, dict[str, Any]]:
    resolved = path.expanduser().resolve()
    if resolved in seen:
        raise ConfigError(str(path), ["base: this file inherits from itself"])
    try:
        text = resolved.read_text(encoding="utf-8")
        data = parse_yaml(text)
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(str(path), [f"cannot be read: {e}"]) from e
    except yaml.YAMLError as e:
        raise ConfigError(str(path), [f"not valid YAML: {' '.join(str(e).split())}"]) from e
    if not isinstance(data, dict):
        raise ConfigError(str(path), ["the file must be a mapping of keys, for example `name: my-sweep`"])
    base = data.get("base")
    if base is None:
        return text, data
    if not isinstance(base, str):
        raise ConfigError(str(path), ["base: must be the path of another sweep file, relative to this one"])
    _, inherited = _read_with_bases(resolved.parent / base, (*seen, resolved))
    return text, _merge(inherited, data)


def _apply_profile(source: Path, data: dict[str, Any], named: str | None) -> None:
    """Put the fields of a cluster profile below those of the sweep's own `cluster` section."""
    own = data.get("cluster") or {}
    if not isinstance(own, dict):
        return  # reported when the section is validated
    wanted = named or own.get("profile")
    if not isinstance(wanted, str):
        return
    home = Path.cwd() if named else source.expanduser().resolve().parent
    choices = [folder / f"{wanted}.yaml" for folder in (home / "cluster", PROFILES)]
    if "/" in wanted or wanted.endswith((".yaml", ".yml")):
        choices = [home / Path(wanted).expanduser()]
    path = next((p for p in choices if p.is_file()), None)
    if path is None:
        shipped = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        looked = " and ".join(str(p) for p in choices)
        raise ConfigError(
            str(source), [f"cluster.profile: no profile {wanted!r} (looked for {looked}); shipped profiles: {shipped}"]
        )
    _, profile = _read_with_bases(path, ())
    profile.pop("base", None)
    data["cluster"] = {**_merge(profile, own), "profile": wanted}


def _merge(below: Any, above: Any) -> Any:
    """Mappings merge key by key; anything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{k: _merge(below[k], v) if k in below else v for k, v in above.items()}}
    return above


def _apply_override(data: dict[str, Any], override: str, mistakes: list[str]) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        mistakes.append(f"--set {override}: write --set path.to.field=value")
        return
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError:
        mistakes.append(f"--set {path}: {value!r} is not a YAML value")
        return
    changed = _with_value(data, path, parsed, f"--set {path}", mistakes)
    data.clear()
    data.update(changed)


def _with_value(data: Any, path: str, value: Any, where: str, mistakes: list[str]) -> Any:
    """A copy of `data` with the value at a dotted path replaced; list members are named by index or by `name`."""
    head, _, rest = path.partition(".")
    if isinstance(data, list):
        index = next(
            (i for i, v in enumerate(data) if str(i) == head or (isinstance(v, dict) and v.get("name") == head)), None
        )
        if index is None:
            mistakes.append(f"{where}: no list member {head!r}")
            return data
        return [
            (_with_value(v, rest, value, where, mistakes) if rest else value) if i == index else v
            for i, v in enumerate(data)
        ]
    if data is None:
        data = {}
    if not isinstance(data, dict):
        mistakes.append(f"{where}: {head!r} is below a plain value, not a section")
        return data
    return {**data, head: _with_value(data.get(head, {}), rest, value, where, mistakes) if rest else value}


def _expand(data: dict[str, Any], mistakes: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Points of the sweep as (label, {path: value})."""
    grid, runs = data.get("grid"), data.get("runs")
    if grid is not None and runs is not None:
        mistakes.append("grid, runs: give one of them, not both")
        return []
    if grid is not None:
        return _expand_grid(grid, mistakes)
    if runs is None:
        return [("run", {})]
    if not isinstance(runs, list) or not runs or not all(isinstance(r, dict) for r in runs):
        mistakes.append("runs: must be a non-empty list of mappings {label: ..., path.to.field: value}")
        return []
    points = []
    for i, run in enumerate(runs):
        label = str(run.get("label") or f"run{i}")
        points.append(
            (
                _slug(label),
                flatten({k: v for k, v in run.items() if k != "label"}) if len(run) > ("label" in run) else {},
            )
        )
    twice = {label for label, _ in points if [p[0] for p in points].count(label) > 1}
    mistakes += [f"runs: two runs are labelled {label!r}" for label in sorted(twice)]
    return points


def _expand_grid(grid: Any, mistakes: list[str]) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(grid, dict) or not grid:
        mistakes.append("grid: is empty; write `path.to.field: [value, value]`, or leave grid out")
        return []
    axes = flatten(grid)
    bad = [path for path, values in axes.items() if not isinstance(values, list) or not values]
    mistakes += [f"grid.{path}: must be a list with at least one value" for path in bad]
    if bad:
        return []
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(points) > MAX_RUNS:
        mistakes.append(f"grid: makes {len(points)} runs, more than {MAX_RUNS}")
        return []
    return [
        (_slug("_".join(f"{path.rpartition('.')[2]}-{value}" for path, value in point.items())), point)
        for point in points
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80] or "run"


def _resolve(label: str, data: dict[str, Any], mistakes: list[str]) -> list[RunPlan]:
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as e:
        mistakes += [_explain(error, data) for error in e.errors()]
        return []
    for split in ("train", "evaluation"):
        source = getattr(config.problems, split)
        mistakes += [f"problems.{split}.{field}: {message}" for field, message in source_mistakes(source)]
    return [RunPlan(label, f"{label}-{config_hash(scientific_fields(config))}", config)]


def _clashes(runs: Iterable[RunPlan]) -> list[str]:
    by_hash: dict[str, str] = {}
    found = []
    for run in runs:
        identity = run.run_id.rpartition("-")[2]
        if identity in by_hash:
            found.append(
                f"grid/runs: {run.label} and {by_hash[identity]} compute the same thing (they differ in no scientific field)"
            )
        by_hash.setdefault(identity, run.label)
    return found


# --- words for pydantic's errors -----------------------------------------------------------------


def _explain(error: Any, data: Any) -> str:
    location = [
        p for p in error["loc"] if p not in PROBLEM_SOURCES and not str(p).startswith(("constrained-", "list["))
    ]
    path = ".".join(str(p) for p in location) or "file"
    kind = error["type"]
    if kind == "extra_forbidden":
        tag = next((p for p in error["loc"] if p in PROBLEM_SOURCES), None)
        valid = sorted(PROBLEM_SOURCES[tag].model_fields) if tag else _valid_keys(RunConfig, location[:-1], data)
        if len(location) == 1:
            valid = [*valid, *SWEEP_KEYS]
        near = difflib.get_close_matches(str(location[-1]), valid, n=1)
        advice = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(valid)}"
        return f"{path}: unknown key; {advice}"
    if kind == "missing":
        return f"{path}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = "" if isinstance(given, (dict, list)) else f" (it is {given!r})"
    return f"{path}: {message[0].lower() + message[1:]}{shown}"


def _valid_keys(model: type[BaseModel], location: Sequence[Any], data: Any) -> list[str]:
    """Keys that are valid at a location of the configuration."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        models = (
            [m for parent in models for m in _sections(parent.model_fields[part].annotation)]
            if all(part in parent.model_fields for parent in models)
            else []
        )
    return sorted({key for m in models for key in m.model_fields})


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _sections(a)]
