"""Configuration fields that vary between runs, and runs grouped by their values.

In: the `RunData` of one or several sweeps. Out: paths of fields, values, and groups of runs. Seeds
are never a field here: the runs of a group are the seeds of one configuration. No estimate is
computed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.counts.load import RunData
from analysis.metrics.pairs import fields_of, weights_of_arm
from core_hpc.common.errors import InputError
from core_hpc.config.base import DEFAULT_BY, Section
from core_hpc.config.identity import flatten

ABSENT = "-"
"""Value of a field that a run does not have."""


def varied_fields(runs: Sequence[RunData]) -> list[str]:
    """The scientific fields, without the seed, in which the runs differ. Models are named, not numbered.

    A field that has the default of another field in every run is left out: `update.ratio` follows from
    `update.loss`, so a grid of losses varies one field. A field at its default, which some runs do not
    have in their identity, has this default as its value.
    """
    own = [_named(data, fields_of(data)) for data in runs]
    paths = dict.fromkeys(path for fields in own for path in fields)
    varied = [path for path in paths if len({repr(fields.get(path, ABSENT)) for fields in own}) > 1]
    values = dict(zip(varied, zip(*(values_of(data, varied) for data in runs), strict=True), strict=True))
    varied = [path for path in varied if not _constant(values[path])]
    following = [set(_named(data, dict.fromkeys(_following(data.config)))) for data in runs if data.config is not None]
    in_all = set.intersection(*following) if len(following) == len(own) and following else set()
    return [path for path in varied if not any(path == f or path.startswith(f"{f}.") for f in in_all)]


def _constant(values: Sequence[Any]) -> bool:
    """Whether all runs have the field, with one value."""
    return ABSENT not in values and len(set(map(repr, values))) == 1


def different_fields(a: RunData, b: RunData) -> dict[str, tuple[Any, Any]]:
    """The values of the scientific fields in which two runs differ, without the seed, the most decisive fields first.

    That is `update.loss`, then fields by their depth, so that the options of a part of the method come
    after the parts. Last are fields that decide nothing of their own: those that have in both runs the
    default that another field gives them, and those of a part whose weight is 0 in both runs.
    """
    old, new = fields_of(a), fields_of(b)
    paths = [path for path in {**old, **new} if old.get(path, ABSENT) != new.get(path, ABSENT)]
    resolved_a, resolved_b = (_resolved(data) for data in (a, b))
    values = {path: (resolved_a.get(path, ABSENT), resolved_b.get(path, ABSENT)) for path in paths}
    follow_a, follow_b = (() if data.config is None else tuple(_following(data.config)) for data in (a, b))

    def rank(path: str) -> tuple[bool, bool, int, str]:
        section, _, name = path.rpartition(".")
        off = all(resolved.get(f"{section}.weight") == 0 for resolved in (resolved_a, resolved_b))
        off = off and not name.startswith("weight")
        minor = off or (path in follow_a and path in follow_b)
        return path != "update.loss", minor, path.count("."), path

    return {path: values[path] for path in sorted(values, key=rank) if not _constant(values[path])}


def _resolved(data: RunData) -> dict[str, Any]:
    """All fields of a run, also those at their defaults; empty for imported predictions."""
    return {} if data.config is None else flatten(data.config.model_dump(mode="json"))


def _following(section: Section, prefix: str = "") -> Iterator[str]:
    """The paths of fields that have the default which another field gives them."""
    for name, field in type(section).model_fields.items():
        value, path = getattr(section, name), f"{prefix}{name}"
        extra = field.json_schema_extra
        depends = isinstance(extra, dict) and DEFAULT_BY in extra
        if depends and value == field.get_default(call_default_factory=True, validated_data=vars(section)):
            yield path
            continue
        members = value if isinstance(value, list) else []
        parts = [(f"{path}.{i}.", part) for i, part in enumerate(members)] or [(f"{path}.", value)]
        for start, part in parts:
            if isinstance(part, Section):
                yield from _following(part, start)


def values_of(data: RunData, paths: Sequence[str]) -> list[Any]:
    """The values of fields in a run, also where they are the defaults."""
    named = _named(data, _resolved(data) | weights_of_arm(data))
    return [named.get(path, ABSENT) for path in paths]


def _named(data: RunData, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with the names of models in their paths, as in `--set`."""
    named = {}
    for path, value in fields.items():
        parts = path.split(".")
        if parts[0] == "team" and len(parts) > 1 and parts[1].isdecimal():
            parts[1] = data.models[int(parts[1])]
        named[".".join(parts)] = value
    return named


def grouped(runs: Sequence[RunData], by: Sequence[str]) -> dict[str, list[RunData]]:
    """Group runs by the values of fields. A group is one configuration with its seeds.

    Args:
        runs: the runs.
        by: paths of fields, for example `update.loss`.

    Returns:
        The runs by the name of their group (`loss=gspo`), in the order of the values.

    Raises:
        InputError: a field does not vary, or the runs differ in a further field.
    """
    varied = varied_fields(runs)
    for path in by:
        if path in varied:
            continue
        near = difflib.get_close_matches(path, [*varied, *(v.rpartition(".")[2] for v in varied)], n=1)
        advice = f"Did you mean {next(v for v in varied if v.endswith(near[0]))}? " if near else ""
        if path == "seed":
            advice = "Seeds are averaged. "
        raise InputError(f"--by {path}: the runs do not differ in it. {advice}They differ in: {_listed(varied)}")
    if rest := [path for path in varied if path not in by]:
        raise InputError(
            f"--by {' '.join(by)}: the runs also differ in {_listed(rest)}, so they are not seeds of one "
            f"configuration; write --by {' '.join([*by, *rest])}, or give fewer runs"
        )
    return by_values(runs, by)


def by_values(runs: Sequence[RunData], by: Sequence[str]) -> dict[str, list[RunData]]:
    """Group runs as `grouped` does, without a check of the fields."""
    groups: dict[tuple[Any, ...], list[RunData]] = {}
    for data in runs:
        groups.setdefault(tuple(map(_key, values_of(data, by))), []).append(data)
    return {group_name(groups[key][0], by): groups[key] for key in sorted(groups)}


def group_name(data: RunData, by: Sequence[str]) -> str:
    """The name of the group of a run, from the last parts of the paths and the values."""
    return ", ".join(f"{name}={value}" for name, value in zip(column_names(by), values_of(data, by), strict=True))


def column_names(by: Sequence[str]) -> list[str]:
    """The last part of each path, or the whole path where two fields have the same last part.

    >>> column_names(["update.loss", "team.a.lora.rank", "team.b.lora.rank"])
    ['loss', 'team.a.lora.rank', 'team.b.lora.rank']
    """
    last = [path.rpartition(".")[2] for path in by]
    return [name if last.count(name) == 1 else path for name, path in zip(last, by, strict=True)]


def _key(value: Any) -> tuple[int, Any]:
    """A key that sorts numbers by size, before texts."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 0, value
    return 1, str(value)


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths) or "nothing but their seeds"
