"""Numbers in YAML files that mean something else than they look like.

YAML 1.1 reads 1:30:00 as 5400 (base 60) and 010 as 8 (base 8). As in YAML 1.2, 1:30:00 is a text here,
which the field of a time limit understands. 010 is a mistake, whose message has the spelling that is
meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

_BASE_8 = re.compile(r"[-+]?0[0-9_]+")
_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def refuse_other_bases(loader_class: type[yaml.SafeLoader]) -> None:
    """Let a loader read numbers with colons as text, and refuse whole numbers that begin with 0."""
    for tag in _TAGS:
        construct: Callable[[Any, Any], Any] = loader_class.yaml_constructors[tag]

        def checked(loader: Any, node: yaml.ScalarNode, construct: Callable[[Any, Any], Any] = construct) -> Any:
            if ":" in node.value:
                return node.value
            if _BASE_8.fullmatch(node.value):
                shown = node.value[:40]
                problem = (
                    f"{shown} is a number to the base 8 for YAML. Write it without the leading 0, "
                    f'or as a text: "{shown}"'
                )
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            return construct(loader, node)

        loader_class.add_constructor(tag, checked)
