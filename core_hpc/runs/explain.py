"""The message for a mistake in a sweep file: YAML path, what is wrong, what to write instead.

In: an error of pydantic. Out: one line of text. Which rules there are is decided by the
configuration (`config/`); `runs/sweep.py` collects the messages.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from core_hpc.config.problems import PROBLEM_SOURCES
from core_hpc.config.run import SWEEP_KEYS, RunConfig


def explain(error: Any) -> str:
    """One line for an error of pydantic: YAML path, what is wrong, what to write."""
    parts = error["loc"]
    tags = {i for i in range(1, len(parts)) if parts[i] in PROBLEM_SOURCES and _holds_a_source(parts[i - 1])}
    location = [p for i, p in enumerate(parts) if i not in tags and not str(p).startswith(("constrained-", "list["))]
    path = ".".join(str(p) for p in location) or "file"
    kind = error["type"]
    if kind == "extra_forbidden":
        tag = next((parts[i] for i in tags), None)
        valid = sorted(PROBLEM_SOURCES[tag].model_fields) if tag else _valid_keys(location[:-1])
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


def _holds_a_source(part: Any) -> bool:
    """Whether pydantic puts the kind of a problem source behind this part of a location."""
    return isinstance(part, int) or part in ("train", "evaluation", "problems")


def _valid_keys(location: Sequence[Any]) -> list[str]:
    """The valid keys at a location of the configuration."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if not fields:  # a key of a mapping, such as the name of a reward part
            continue
        models = [section for field in fields for section in _sections(field.annotation)]
    return sorted({key for model in models for key in model.model_fields})


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _sections(a)]
