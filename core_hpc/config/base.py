"""Building blocks of the configuration: the base class of all sections, and kinds of fields.

A field is scientific, or operational if it is declared with `operational(...)`. Scientific fields
change the result of a run and make up its identity. Operational fields do not. The sections are in
`run.py`, `problems.py`, `update.py` and `cluster.py` of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticUseDefault

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters and line breaks."""
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""What a name of a sweep, a model or a problem set looks like."""
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
        # pydantic would read true as the number 1, and yes is true in YAML. As a text it is a mistake of the field
        # (`runs/explain.py`). A validator of every field would be refused for the discriminators of unions.
        texts = {
            name: str(data[name]).lower()
            for name, field in cls.model_fields.items()
            if isinstance(data.get(name), bool) and _is_number(field.annotation)
        }
        return {**data, **merged, **texts}


def _is_number(annotation: Any) -> bool:
    """Whether a field of this type takes numbers, but neither true nor false."""
    types = {annotation, *get_args(annotation)}
    types |= {inner for t in types for inner in get_args(t)}  # of an `Annotated` beside None
    return bool({int, float} & types) and bool not in types


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


def on_one_line(value: Any) -> Any:
    """Body of a validator: no text in a value may contain a line break or another control character.

    Such a value becomes part of one line of a batch script. After a line break, the rest would be a
    shell command of its own.

    Args:
        value: text, or a list or mapping; anything else is not checked.
    """
    if isinstance(value, str):
        texts = [value]
    elif isinstance(value, list):
        texts = [item for item in value if isinstance(item, str)]
    elif isinstance(value, dict):
        texts = [item for pair in value.items() for item in pair if isinstance(item, str)]
    else:
        texts = []
    for text in texts:
        if CONTROL.search(text):
            raise ValueError(
                f"{text[:60]!r} has a line break or another control character, which would add lines to batch scripts; "
                "write it on one line. Shell commands belong in setup"
            )
    return value


def null_means_default(value: Any) -> Any:
    """Body of a `before` validator: null in a file stands for the default of the field."""
    if value is None:
        raise PydanticUseDefault
    return value
