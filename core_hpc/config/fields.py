"""All fields of the configuration as a list, for the reference page and the schema of sweep files.

In: the types of the configuration. Out: one `ConfigField` per place where a value can stand, with
the JSON Schema of the value. A section that is used in several places gives several entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core_hpc.config.base import DEFAULT_BY
from core_hpc.config.run import RunConfig

Schema = dict[str, Any]
"""A JSON Schema, or a part of one."""

ANY = "NAME"
"""Part of a path that is free: the name or index of a team member, or a key of a mapping."""

REQUIRED = object()
"""Default of a field that has none."""


@dataclass(frozen=True, kw_only=True)
class ConfigField:
    """One field of the configuration at one place."""

    path: tuple[str, ...]
    section: str
    """Name of its section in `$defs` of the schema; "" for the top level."""
    schema: Schema
    default: Any
    operational: bool

    @property
    def default_by(self) -> str | None:
        """The fields on which the default depends, or None."""
        return self.schema.get(DEFAULT_BY)

    @property
    def is_mapping(self) -> bool:
        """Whether the keys of the value are free, as in `options`."""
        return any(
            {"additionalProperties", "patternProperties"} & option.keys() for option in alternatives(self.schema)
        )

    @property
    def holds_sections(self) -> bool:
        """Whether the field holds sections, whose fields are listed themselves."""
        return bool(sections_of(self.schema) or member_sections(self.schema))


def run_config_schema() -> Schema:
    """The JSON Schema of `RunConfig`, as pydantic writes it."""
    return RunConfig.model_json_schema()


def config_fields(schema: Schema) -> list[ConfigField]:
    """All fields of the configuration, in its order.

    A field that holds a section is listed itself only if its value may be null or a list.
    """
    return list(_walk(schema, section="", path=(), defaults={}, operational=False))


def _walk(
    schema: Schema, *, section: str, path: tuple[str, ...], defaults: dict[str, Any], operational: bool
) -> Iterator[ConfigField]:
    """The fields of a section at a place. `defaults` are those of the place, if it has its own."""
    properties = schema["$defs"][section]["properties"] if section else schema["properties"]
    for name, field in properties.items():
        place = (*path, name)
        is_operational = operational or bool(field.get("operational"))
        default = defaults.get(name, field.get("default", REQUIRED))
        sections, members = sections_of(field), member_sections(field)
        if not sections or len(alternatives(field)) > len(sections):
            yield ConfigField(path=place, section=section, schema=field, default=default, operational=is_operational)
        own = default if isinstance(default, dict) else {}
        for inner in sections:
            yield from _walk(schema, section=inner, path=place, defaults=own, operational=is_operational)
        for member in members:
            yield from _walk(schema, section=member, path=(*place, ANY), defaults={}, operational=is_operational)


def alternatives(field: Schema) -> list[Schema]:
    """The schemas of which a value must satisfy one."""
    options: list[Schema] = field.get("anyOf") or field.get("oneOf") or [field]
    return options


def member_sections(field: Schema) -> list[str]:
    """Names of the sections that a list or a mapping may hold."""
    values = field.get("additionalProperties", {})
    patterns = field.get("patternProperties", {}).values()
    schemas = [field.get("items", {}), values if isinstance(values, dict) else {}, *patterns]
    return [name for schema in schemas for name in sections_of(schema)]


def sections_of(field: Schema) -> list[str]:
    """Names of the sections that a field may hold. Empty for a plain value or a list."""
    references = [option["$ref"].rpartition("/")[2] for option in alternatives(field) if "$ref" in option]
    return [name for name in references if name != "JsonValue"]
