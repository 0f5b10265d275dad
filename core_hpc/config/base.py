"""What every section of the configuration is made of: frozen, unknown keys forbidden, operational fields marked.

Fields marked `operational` do not change what a run computes, and do not enter its identity. The sections themselves
are in config.py and config_cluster.py.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

OPERATIONAL: dict[str, Any] = {"operational": True}

PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A frozen part of the configuration in which unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def operational(default: Any = ..., **kwargs: Any) -> Any:
    """A field which does not change what the run computes."""
    return Field(default, json_schema_extra=OPERATIONAL, **kwargs)
