"""Numbers in YAML files that mean something else than they look like.

YAML 1.1 reads 1:30:00 as 5400 (base 60) and 010 as 8 (base 8). A time limit of 1:30:00 would become
5,400 minutes. Such numbers are mistakes here; the message has the spelling that is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

_BASE_8 = re.compile(r"[-+]?0[0-9_]+")
_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def refuse_other_bases(loader_class: type[yaml.SafeLoader]) -> None:
    """Let a loader refuse numbers with colons, and whole numbers that begin with 0."""
    for tag in _TAGS:
        construct: Callable[[Any, Any], Any] = loader_class.yaml_constructors[tag]

        def checked(loader: Any, node: yaml.ScalarNode, construct: Callable[[Any, Any], Any] = construct) -> Any:
            problem = _problem(node.value)
            if problem is not None:
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            return construct(loader, node)

        loader_class.add_constructor(tag, checked)


def _problem(text: str) -> str | None:
    shown = text[:40]
    if ":" in text:
        parts = text.split(":")
        minutes = ""
        if len(parts) == 3 and all(part.isdecimal() and len(part) < 9 for part in parts):
            minutes = f", here {int(parts[0]) * 60 + int(parts[1]) + (int(parts[2]) > 0)}"
        return (
            f"{shown} is a number to the base 60 for YAML. Write a time limit in minutes{minutes}; "
            f'write a text in quotes: "{shown}"'
        )
    if _BASE_8.fullmatch(text):
        return f'{shown} is a number to the base 8 for YAML. Write it without the leading 0, or as a text: "{shown}"'
    return None
