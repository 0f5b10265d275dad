"""Building blocks of the configuration: the base class of all sections, and kinds of fields.

A field is scientific, or operational if it is declared with `operational(...)`. Scientific fields
change the result of a run and make up its identity. Operational fields do not. The sections are in
`run.py`, `problems.py`, `update.py` and `cluster.py` of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticUseDefault

OPERATIONAL: dict[str, Any] = {"operational": True}
DEFAULT_BY = "default_by"
"""Key in the `json_schema_extra` of a field: the fields on which its default depends."""

PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A frozen part of the configuration. An unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def operational(default: Any = ..., **kwargs: Any) -> Any:
    """Declare a field that does not change what the run computes."""
    return Field(default, json_schema_extra=OPERATIONAL, **kwargs)


def with_default_by(field: str, default: Callable[[Any], Any], **kwargs: Any) -> Any:
    """Declare a scientific field whose default depends on an earlier field of the same section.

    The resolved configuration holds the value itself. A written default and an omitted one are
    therefore the same run.

    Args:
        field: Name of the earlier field.
        default: The default as a function of the value of that field.
        kwargs: Passed to `pydantic.Field`.
    """
    return Field(default_factory=lambda data: default(data[field]), json_schema_extra={DEFAULT_BY: field}, **kwargs)


def null_means_default(value: Any) -> Any:
    """Body of a `before` validator: null in a file stands for the default of the field."""
    if value is None:
        raise PydanticUseDefault
    return value
