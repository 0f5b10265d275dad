"""Building blocks of the configuration: the base class of all sections, and kinds of fields.

A field is scientific, or operational if it is declared with `operational(...)`. Scientific fields
change the result of a run and make up its identity. Operational fields do not. The sections are in
`run.py`, `problems.py`, `update.py` and `cluster.py` of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticUseDefault

OPERATIONAL: dict[str, Any] = {"operational": True}
ADDED_LATER: dict[str, Any] = {"added_later": True}
DEFAULT_BY = "default_by"
"""Key in the `json_schema_extra` of a field: the fields on which its default depends."""

PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A frozen part of the configuration. An unknown key is a mistake.

    A section that is written in part keeps the defaults of its place for the other fields. These
    may differ from those of its class: sampling in evaluation has more tokens than in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_place(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        merged = {
            name: {**field.default.model_dump(exclude_unset=True), **data[name]}
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Section) and isinstance(data.get(name), dict)
        }
        return {**data, **merged}


def operational(default: Any = ..., **kwargs: Any) -> Any:
    """Declare a field that does not change what the run computes."""
    return Field(default, json_schema_extra=OPERATIONAL, **kwargs)


def added_later(default: Any, **kwargs: Any) -> Any:
    """Declare a scientific field that an earlier version does not have.

    At its default, the field is not part of the identity, so runs of earlier versions keep theirs.
    The default must be what those versions do, and must not change.
    """
    return Field(default, json_schema_extra=ADDED_LATER, **kwargs)


def with_default_by(field: str, default: Callable[[Any], Any], *, later: bool = False, **kwargs: Any) -> Any:
    """Declare a scientific field whose default depends on an earlier field of the same section.

    The resolved configuration holds the value itself. A written default and an omitted one are
    therefore the same run.

    Args:
        field: Name of the earlier field.
        default: The default as a function of the value of that field.
        later: Whether earlier versions do not have the field; see `added_later`.
        kwargs: Passed to `pydantic.Field`.
    """
    extra = {DEFAULT_BY: field, **(ADDED_LATER if later else {})}
    return Field(default_factory=lambda data: default(data[field]), json_schema_extra=extra, **kwargs)


def null_means_default(value: Any) -> Any:
    """Body of a `before` validator: null in a file stands for the default of the field."""
    if value is None:
        raise PydanticUseDefault
    return value
