"""Fields that name a function in a Python file of the user, the same way for all extension points.

In: text such as `my_rewards.py:brevity`. Out: the same text with a digest of the file behind it, for
example `my_rewards.py:brevity@0f3a5c7d9e1b2a48`, which `runs/sweep.py` adds. The folder of the file is not
part of it, so the identity of a run depends on the source and not on where it lies. This module reads
no files. The signatures of the functions are in `extensions/points.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue

from core_hpc.config.base import Section, operational

EXTENSION = "extension"
"""Key in the `json_schema_extra` of a field: the extension point (`extensions.points.POINTS`)."""
FUNCTION_KEYS = ("function", "extract", "normalize", "verify")
"""Names of all fields that name a function."""
OWN_NAME_PATTERN = r"^[a-z][a-z0-9_]{0,30}$"
"""Name that the user gives to a kind of answers or a reward part."""
REFERENCE = re.compile(r"(?P<file>[^\n:@]+\.py):(?P<function>[A-Za-z_]\w*)(?:@(?P<digest>[0-9a-f]{16}))?")


def _checked(text: str) -> str:
    if REFERENCE.fullmatch(text) is None:
        raise ValueError("must be FILE.py:FUNCTION, for example my_rewards.py:brevity")
    return text


FunctionReference = Annotated[str, AfterValidator(_checked)]


def function_of(point: str, default: Any = ..., **kwargs: Any) -> Any:
    """Declare a field that names a function for an extension point."""
    return Field(default, json_schema_extra={EXTENSION: point}, **kwargs)


FUNCTION = "FILE.py:FUNCTION, relative to this sweep file (core_hpc/README.md, Extension points)"
OPTIONS = "keyword arguments of the function"


class OwnFunction(Section):
    """A function of the user and its options. Subclasses declare `function`."""

    options: dict[str, JsonValue] = Field({}, description=OPTIONS)


class HintFunction(OwnFunction):
    """The text of a teacher that becomes the hint."""

    function: FunctionReference = function_of("hint_maker", description=FUNCTION)


class PromptFunction(OwnFunction):
    """The prompt of a problem, with the hint if there is one."""

    function: FunctionReference = function_of("prompt_builder", description=FUNCTION)


class ExploreFunction(OwnFunction):
    """The explore reward of the completions of a problem."""

    function: FunctionReference = function_of("explore_rule", description=FUNCTION)


class AdvantageFunction(OwnFunction):
    """The advantages of completions that are compared."""

    function: FunctionReference = function_of("advantage", description=FUNCTION)


class LossFunction(OwnFunction):
    """The gain of each token."""

    function: FunctionReference = function_of("loss", description=FUNCTION)


class ExtensionsSection(Section):
    """Functions of the user (core_hpc/README.md, Extension points)."""

    time_limit_s: float = operational(
        60, gt=0, le=86_400, description="seconds after which a call of a function is stopped, and its task has failed"
    )
