"""The extension points: for each, the signature of its function, and what its result becomes.

In: a configuration, or what a function returned. Out: the functions that a configuration names, or
the result as plain data. A result of another kind is a TypeError or ValueError whose message is
meant for the author of the function.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from core_hpc.config.base import Section
from core_hpc.config.extensions import EXTENSION

MAX_ANSWER_CHARS = 256
ROLES = ("system", "user", "assistant")
"""Roles of the messages that a prompt builder returns."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One place where a function of the user can stand."""

    title: str
    parameters: tuple[str, ...]
    """Positional arguments. Options follow as keyword arguments."""
    returns: str
    convert: Callable[[Any, Sequence[Any]], Any]
    """(result, positional arguments) -> the result as plain data."""

    @property
    def signature(self) -> str:
        """The head of such a function."""
        return f"def NAME({', '.join(self.parameters)}, *, OPTION=...) -> {self.returns}"


@dataclass(frozen=True)
class Use:
    """A function that a configuration names."""

    path: str
    """Dotted path of the field."""
    name: str
    """Name of the extension point."""
    reference: str
    options: Mapping[str, Any]

    @property
    def point(self) -> Point:
        """The extension point."""
        return POINTS[self.name]


def _floats(result: Any, arguments: Sequence[Any]) -> list[float]:
    """One finite number per element of the last positional argument."""
    wanted = len(arguments[-1])
    if isinstance(result, (Mapping, Set, str, bytes)):  # their elements are keys or characters, or have no order
        raise TypeError(f"returned {_shown(result)}, not a list of numbers in the order of the completions")
    try:
        values = [float(value) for value in result]
    except (TypeError, ValueError) as e:
        raise TypeError(f"returned {_shown(result)}, not a list of numbers") from e
    if len(values) != wanted:
        raise ValueError(f"returned {len(values)} numbers for {wanted} completions")
    bad = [i for i, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise ValueError(f"returned {values[bad[0]]} for completion {bad[0]}, which is not a finite number")
    return values


def _any_text_or_none(result: Any, arguments: Sequence[Any]) -> str | None:
    del arguments
    if result is not None and not isinstance(result, str):
        raise TypeError(f"returned {_shown(result)}, not text or None")
    return result


def _text_or_none(result: Any, arguments: Sequence[Any]) -> str | None:
    """Text of at most `MAX_ANSWER_CHARS` characters, or None."""
    text = _any_text_or_none(result, arguments)
    return text.strip()[:MAX_ANSWER_CHARS] or None if text is not None else None


def _prompt(result: Any, arguments: Sequence[Any]) -> str | list[dict[str, str]]:
    """Text, or in the style chat also messages."""
    style = arguments[4]
    if isinstance(result, str) and result.strip():
        return result
    if style != "chat" or not isinstance(result, (list, tuple)) or not result:
        allowed = "text or a list of messages" if style == "chat" else "text, because the style is plain"
        raise TypeError(f"returned {_shown(result)}, not {allowed}")
    messages = []
    for number, message in enumerate(result):
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            wanted = f"a mapping with role ({', '.join(ROLES)}) and content"
            raise TypeError(f"returned {_shown(message)} as message {number}, not {wanted}")
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _truth(result: Any, arguments: Sequence[Any]) -> bool:
    del arguments
    if type(result).__name__ not in ("bool", "bool_"):  # of Python or NumPy
        raise TypeError(f"returned {_shown(result)}, not True or False")
    return bool(result)


def _rows(result: Any, arguments: Sequence[Any]) -> list[dict[str, Any]]:
    """At most as many rows as were asked for, as JSON has them."""
    rows = list(islice(iter(result), arguments[0]))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise TypeError(f"returned {_shown(row)} as row {number}, not a mapping with question and answer")
    return [dict(row) for row in json.loads(json.dumps(rows, default=str))]


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:60]}"


POINTS: dict[str, Point] = {
    "reward_part": Point(
        title="reward part", parameters=("problem", "completions"), returns="list[float]", convert=_floats
    ),
    "problem_source": Point(
        title="problem source", parameters=("count", "seed", "split"), returns="list[dict]", convert=_rows
    ),
    "answer_normalize": Point(
        title="function normalize of an answer kind", parameters=("text",), returns="str | None", convert=_text_or_none
    ),
    "answer_extract": Point(
        title="function extract of an answer kind", parameters=("text",), returns="str | None", convert=_text_or_none
    ),
    "answer_verify": Point(
        title="function verify of an answer kind", parameters=("answer", "gold"), returns="bool", convert=_truth
    ),
    "hint_maker": Point(
        title="hint maker", parameters=("problem", "text"), returns="str | None", convert=_any_text_or_none
    ),
    "prompt_builder": Point(
        title="prompt builder",
        parameters=("question", "hint", "examples", "instruction", "style"),
        returns="str | list[dict]",
        convert=_prompt,
    ),
    "explore_rule": Point(
        title="explore rule", parameters=("distances", "quality"), returns="list[float]", convert=_floats
    ),
    "advantage": Point(
        title="advantage", parameters=("completions", "rewards"), returns="list[float]", convert=_floats
    ),
    "loss": Point(
        title="loss",
        parameters=("ratio", "advantage", "log_prob", "rescue"),
        returns="Tensor",
        convert=lambda result, arguments: result,  # `training/own_loss.py` runs it beside the model
    ),
}
"""Name -> point. The name stands in the declaration of a field (`config.extensions.function_of`)."""


def uses(section: Section, prefix: str = "") -> Iterator[Use]:
    """All functions that a configuration names, with the path of each field."""
    for name, field in type(section).model_fields.items():
        value, extra, path = getattr(section, name), field.json_schema_extra, f"{prefix}{name}"
        if isinstance(extra, dict) and EXTENSION in extra:
            if value is not None:
                options = getattr(section, "options", {}) if name == "function" else {}
                yield Use(path, str(extra[EXTENSION]), value, options)
            continue
        for key, member in _members(value):
            yield from uses(member, f"{path}{key}.")


def _members(value: Any) -> Iterator[tuple[str, Section]]:
    if isinstance(value, Section):
        yield "", value
    elif isinstance(value, (list, tuple)):
        yield from ((f".{i}", member) for i, member in enumerate(value) if isinstance(member, Section))
    elif isinstance(value, dict):
        yield from ((f".{key}", member) for key, member in value.items() if isinstance(member, Section))
