"""The message for a mistake in a sweep file: YAML path, what is wrong, what to write instead.

In: errors of pydantic. Out: one line of text for each mistake. Which rules there are is decided by the
configuration (`config/`); `runs/sweep.py` collects the messages.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from core_hpc.config.analysis import METRIC_PATTERN
from core_hpc.config.base import NAME_PATTERN
from core_hpc.config.extensions import OWN_NAME_PATTERN
from core_hpc.config.problems import COMMIT_PATTERN, PROBLEM_SOURCES
from core_hpc.config.run import SWEEP_KEYS, RunConfig
from core_hpc.config.tracking import PROJECT_PATTERN
from core_hpc.config.yaml_text import dump_yaml

MAX_LISTED = 10
"""Values of a list that a message repeats."""
PATTERNS = {
    NAME_PATTERN: "is not a name for files and tables: only small letters a to z, digits, _ and -, with a letter or "
    "digit first, and at most 63 characters",
    COMMIT_PATTERN: "is not a commit hash: 40 digits 0 to 9 and letters a to f, so that the files never change",
    OWN_NAME_PATTERN: "is not a name for a function of yours: only small letters a to z, digits and _, with a letter "
    "first, and at most 31 characters",
    PROJECT_PATTERN: "is not a name for a project of W&B: only letters A to Z, digits, _, -, . and blanks, not a blank "
    "or - first, and at most 128 characters",
    METRIC_PATTERN: "is not a metric with its number of completions, for example team_pass@2",
}
"""Pattern of a field -> what a text that does not fit it is not."""
SHARED = ("name", "output", "cluster.", "analysis.")
"""Beginnings of paths that all runs of a sweep share, so that a grid cannot have them."""
_SCALARS = ("int_", "float_", "string_type", "bool_", "literal_error", "finite_number")
"""Beginnings of pydantic's names for values of a wrong type, where one value is expected."""
_BRANCHES = ("constrained-", "list[")
"""Beginnings of the parts of a location by which pydantic names the form of a field that takes a value or a list."""
_SCALAR_BRANCHES = (("str", "string_type"), ("int", "int_type"), ("bool", "bool_type"))
"""Last part of such a location, and the error, where a mapping takes values of several types."""
_MEMBERS: dict[Any, tuple[str, ...]] = {list: ("0",), dict: ("NAME",)}
"""What stands in a path for a member of a field with several sections."""
CONSEQUENCES = ("default_factory_not_called",)
"""Errors of pydantic that only follow from another mistake: a default could not be computed."""
COMMAS = ("partition", "reservation", "gres")
"""Fields in which SLURM takes several values with commas between them."""


def explain_all(errors: Iterable[Any]) -> list[str]:
    """One line for each mistake, from the errors of pydantic.

    Where a field takes one value or a list, pydantic reports errors for both. Those for the given form remain.
    """
    lines = []
    for error in errors:
        branch = next((str(part) for part in error["loc"] if str(part).startswith(_BRANCHES)), "")
        other_form = "list_type" if branch.startswith("list[") else f"{branch.removeprefix('constrained-')}_type"
        is_list = isinstance(error["input"], list)
        if error["type"] in CONSEQUENCES or (error["type"] == other_form and is_list != branch.startswith("list[")):
            continue
        lines.append(explain(error))
        if branch.startswith("list[") and not is_list:
            field = ".".join(str(part) for part in error["loc"][: error["loc"].index(branch)])
            lines[-1] += (
                "; a list has one value per epoch or iteration. For a run with each value, write it in grid: "
                f"`grid: {{{field}: [...]}}`"
            )
    return lines


def explain(error: Any) -> str:
    """One line for an error of pydantic: YAML path, what is wrong, what to write."""
    parts = error["loc"]
    tags = {i for i in range(1, len(parts)) if parts[i] in PROBLEM_SOURCES and _holds_a_source(parts[i - 1])}
    location = [p for i, p in enumerate(parts) if i not in tags and not str(p).startswith(_BRANCHES)]
    kind, given = error["type"], error.get("input")
    if location and (location[-1], kind) in _SCALAR_BRANCHES:
        del location[-1]
    path = ".".join(str(p) for p in location)
    if kind == "extra_forbidden":
        tag = next((parts[i] for i in tags), None)
        return f"{path}: {_unknown_key(tag, location, given)}"
    if kind == "model_attributes_type" and isinstance(given, list):
        return f"{path}: is a list, but needs one source; write `{location[-1]}: {{source: ...}}`"
    if kind in ("union_tag_invalid", "union_tag_not_found", "model_attributes_type"):
        return f"{path}.{_source_mistake(error.get('ctx', {}).get('tag'))}"
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "invalid_key":
        return f"{path}: YAML reads this key (yes, on or a number) as {given!r}; put it in quotes"
    if kind == "model_type":
        keys = _valid_keys(location)
        example = f"for example `{_example(location, keys, given)}`; " if keys and location else ""
        if given is None and isinstance(location[-1], str) and location != ["problems"]:
            example = f"but has none; remove the line `{location[-1]}:` to use the defaults; "
        return f"{path}: needs keys of its own, {example}valid here: {', '.join(keys)}"
    if isinstance(given, list) and kind.startswith(_SCALARS):
        return f"{path}: {_values_of_a_grid(path, given)}"
    if isinstance(given, dict) and kind.startswith(_SCALARS):
        return f"{path}: is a mapping of keys, but needs one value"
    if kind in ("list_type", "tuple_type", "dict_type"):
        return f"{path}: {_wrong_form(location, given, is_mapping=kind == 'dict_type')}"
    if kind == "string_pattern_mismatch" and error["ctx"]["pattern"] in PATTERNS:
        return f"{path}: {_no_match(error['ctx']['pattern'], str(given))}"
    if kind in ("int_parsing", "float_parsing") and given in ("true", "false"):
        return f"{path}: must be a number, not {given} (YAML reads yes and on as true, no and off as false)"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a valid list")
    shown = "" if isinstance(given, (dict, list)) else f" (it is {given!r})"
    if not path:  # a rule about several sections, whose message names them
        return f"{message}{shown}"
    return f"{path}: {message[0].lower() + message[1:]}{shown}"


def _holds_a_source(part: Any) -> bool:
    """Whether pydantic puts the kind of a problem source behind this part of a location."""
    return isinstance(part, int) or part in ("train", "evaluation", "problems")


def _unknown_key(tag: str | None, location: Sequence[Any], value: Any) -> str:
    key = str(location[-1])
    valid = sorted(PROBLEM_SOURCES[tag].model_fields) if tag else _valid_keys(location[:-1])
    if location == [key] and key in SWEEP_KEYS:
        return "belongs to the whole sweep file; a single run cannot have it"
    if len(location) == 1:
        valid = [*valid, *SWEEP_KEYS]
    before, colon, after = key.partition(":")
    if colon and after and value is None and before in valid:
        return f"a space is missing after the colon; write `{before}: {after}`"
    near = difflib.get_close_matches(key, valid, n=1)
    if below := _paths_below(location[:-1], key):
        advice = f"did you mean {' or '.join(f'`{path}`' for path in below)}?"
    else:
        advice = f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(valid)}"
    return f"unknown key; {advice}"


def _source_mistake(tag: Any) -> str:
    """For a source of problems that does not exist, or is missing."""
    known = f"known: {', '.join(PROBLEM_SOURCES)}"
    if tag is None:
        return f"source: is missing; {known}"
    near = difflib.get_close_matches(str(tag).lower(), PROBLEM_SOURCES, n=1)
    return f"source: no source {tag!r}; {f'did you mean `{near[0]}`?' if near else known}"


def _values_of_a_grid(path: str, values: list[Any]) -> str:
    """For a list where one value belongs: its values are mostly meant for one run each."""
    if path.startswith(SHARED):
        name = path.rpartition(".")[2]
        is_joined = name in COMMAS and all(isinstance(value, str) for value in values)
        return "is a list, but needs one value" + (f": `{name}: {','.join(values)}`" if is_joined else "")
    shown = "[...]"
    if len(values) <= MAX_LISTED:
        shown = dump_yaml(values, default_flow_style=True, width=10_000).strip()
    return (
        "is a list, but needs one value. For a run with each of these values, write it in grid: "
        f"`grid: {{{path}: {shown}}}`"
    )


def _wrong_form(location: Sequence[Any], given: Any, *, is_mapping: bool) -> str:
    """For a value where a list, or a mapping of any keys, belongs."""
    if is_mapping:
        return f"must be a mapping, such as `{location[-1]}: {{key: value}}`"
    if keys := _valid_keys(location):
        return f"must be a list: begin each member with a hyphen, as `{_example([0], keys, given)}`"
    if isinstance(given, str):
        written = dump_yaml([given], default_flow_style=True, width=10_000).strip()
        return f"must be a list: `{location[-1]}: {written}`"
    return "must be a list" + ("" if isinstance(given, dict) else f" (it is {given!r})")


def _example(location: Sequence[Any], keys: Sequence[str], given: Any) -> str:
    """How to write keys where none are."""
    if location == ["cluster"] and isinstance(given, str):
        return f"cluster: {{profile: {given}}}"
    if isinstance(location[-1], int):
        return f"- {'name' if 'name' in keys else keys[0]}: ..."
    return f"{location[-1]}: {{{keys[0]}: ...}}"


def _no_match(pattern: str, given: str) -> str:
    """For a text that does not fit the pattern of its field."""
    message = f"{given!r} {PATTERNS[pattern]}"
    slug = re.sub(r"[^a-z0-9_]+", "-", given.lower()).strip("-_")[:63]
    return f"{message}; write `{slug}`" if pattern == NAME_PATTERN and slug else message


def _valid_keys(location: Sequence[Any]) -> list[str]:
    """The valid keys at a location of the configuration."""
    return sorted({key for model in _models_at(location) for key in model.model_fields})


def _paths_below(location: Sequence[Any], key: str) -> list[str]:
    """The paths of the fields with this name in the sections of a location; in a list, that of the first member."""
    return [
        ".".join(str(part) for part in (*location, name, *_MEMBERS.get(get_origin(field.annotation), ()), key))
        for model in _models_at(location)
        for name, field in model.model_fields.items()
        if any(key in section.model_fields for section in _sections(field.annotation))
    ]


def _models_at(location: Sequence[Any]) -> list[type[BaseModel]]:
    """The sections that can stand at a location of the configuration."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if not fields:  # a key of a mapping, such as the name of a reward part
            continue
        models = [section for field in fields for section in _sections(field.annotation)]
    return models


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _sections(a)]
