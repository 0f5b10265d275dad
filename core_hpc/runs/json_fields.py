"""Dataclasses as JSON: the fields that are not empty, and back with a check of their types.

Files of earlier versions are accepted: missing fields take their defaults, and unknown ones are
ignored. Anything else is an error, which `read_record` of `store/manifests.py` turns into a message
that names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")
Json = dict[str, Any]
LATEST_S = 1e11
"""Every point in time is earlier: this is the year 5138."""


def filled_fields(item: Any, *without: str) -> Json:
    """The fields of a dataclass that are not empty."""
    return {f.name: value for f in fields(item) if f.name not in without and (value := getattr(item, f.name))}


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def from_fields(cls: type[T], data: Mapping[str, Any]) -> T:
    """Make a dataclass from those entries that are its fields. ValueError if a value has another type."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{data!r} is no JSON object")
    kind: Any = cls
    record: T = _adapter(kind).validate_python({f.name: data[f.name] for f in fields(kind) if f.name in data})
    for name, value in vars(record).items():
        if isinstance(value, float) and not abs(value) < LATEST_S:
            raise ValueError(f"{name} is not a point in time")
    return record
