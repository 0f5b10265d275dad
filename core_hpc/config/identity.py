"""The identity of a run: its scientific fields, and their hash.

In: a configuration. Out: the fields that change what a run computes, as plain data, and eight hex
digits for them. A field is scientific unless it is declared with `base.operational`. Two runs of equal
scientific fields are the same run.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from core_hpc.config.base import Section


def is_operational(extra: Any) -> bool:
    """Whether the `json_schema_extra` of a field marks it as operational."""
    return isinstance(extra, dict) and bool(extra.get("operational"))


def scientific_fields(config: Section) -> dict[str, Any]:
    """All fields that change the result, as nested plain data.

    A value that equals the default of its field is given as the default is declared, for example
    32 instead of 32.0. A written default and an omitted one are therefore the same run. Fields that
    were added later (`base.added_later`) are left out at their default.
    """
    out: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if is_operational(field.json_schema_extra):
            continue
        value = getattr(config, name)
        default = field.get_default(call_default_factory=True, validated_data=vars(config))
        if value == default:
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("added_later"):
                continue
            value = value if isinstance(value, Section) else default
        if isinstance(value, Section):
            out[name] = scientific_fields(value)
        elif isinstance(value, (list, tuple)):
            out[name] = [scientific_fields(v) if isinstance(v, Section) else v for v in value]
        elif isinstance(value, dict):
            out[name] = {k: scientific_fields(v) if isinstance(v, Section) else v for k, v in value.items()}
        else:
            out[name] = value
    return out


def flatten(data: Any, prefix: str = "", *, lists: bool = True) -> dict[str, Any]:
    """Turn nested plain data into {dotted path: value}.

    A list of mappings is indexed, unless `lists` is False. Any other list is a value.

    >>> flatten({"seed": 1, "team": [{"name": "a"}], "reward": {"cross": {"weight": [0, 1]}}})
    {'seed': 1, 'team.0.name': 'a', 'reward.cross.weight': [0, 1]}
    """
    if isinstance(data, dict) and data:
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in data.items()]
    elif lists and isinstance(data, list) and data and all(isinstance(v, dict) for v in data):
        items = [(f"{prefix}.{i}", value) for i, value in enumerate(data)]
    else:
        return {prefix: data}
    return {path: leaf for name, value in items for path, leaf in flatten(value, name, lists=lists).items()}


def config_hash(fields: dict[str, Any]) -> str:
    """Eight hex digits that identify a set of scientific fields."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
