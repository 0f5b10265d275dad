"""Parse YAML safely and within limits: a hostile or broken file ends with an error, and soon.

In: the text of a sweep file, a profile or a value of `--set`. Out: plain data, or a
`yaml.YAMLError` with the place of the mistake. Duplicate keys are mistakes. The limits are far above
what a sweep of a thousand runs needs. What the data means is checked in `runs/sweep.py`. `dump_yaml`
writes what `parse_yaml` reads.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from core_hpc.config.yaml_numbers import refuse_other_bases

MAX_BYTES = 500_000
"""Size of a file."""
MAX_DEPTH = 40
"""Mappings and lists inside each other."""
MAX_VALUES = 200_000
"""Values in all. An alias (*NAME) counts as everything that it stands for."""
MAX_DIGITS = 40
"""Characters of a whole number. Python refuses to print numbers of more than 4300 digits."""


_EXPONENT = re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_FLOAT_TAG, _FLOAT_STARTS = "tag:yaml.org,2002:float", list("-+0123456789.")


class _Loader(yaml.SafeLoader):
    """A safe YAML loader with limits. Like YAML 1.2, it reads 1e-5 as a number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[int] = []
        """Number of values inside each node that is being composed."""
        self._sizes: dict[int, int] = {}
        """Number of values of each complete node, by its id."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if len(self._open) >= MAX_DEPTH:
            raise _error(f"more than {MAX_DEPTH} mappings or lists inside each other", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        self._open.append(0)
        node = super().compose_node(parent, index)
        inside = self._open.pop()
        if node is None:
            return None
        if is_alias and id(node) not in self._sizes:
            raise _error("an alias stands for something that contains it", mark)
        size = self._sizes[id(node)] if is_alias else 1 + inside
        self._sizes[id(node)] = size
        if self._open:
            self._open[-1] += size
        if size > MAX_VALUES:
            raise _error(f"more than {MAX_VALUES:,} values, counting aliases (*NAME) as what they stand for", mark)
        return node


def _error(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error("a key must be a word or a number, not a list or a mapping", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise _error(f"key {key!r} occurs twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if len(node.value) > MAX_DIGITS:
        raise _error(f"a whole number of {len(node.value):,} characters (at most {MAX_DIGITS})", node.start_mark)
    return yaml.SafeLoader.construct_yaml_int(loader, node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, _FLOAT_STARTS)
refuse_other_bases(_Loader)


class _Dumper(yaml.SafeDumper):
    """Puts a text such as 1e5 in quotes, because `_Loader` reads it as a number."""


_Dumper.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, _FLOAT_STARTS)


def parse_yaml(text: str) -> Any:
    """Parse YAML safely.

    Raises:
        yaml.YAMLError: The text has a mistake, or exceeds a limit.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as e:
        # For example a date in month 13, whose constructor raises an ordinary ValueError.
        raise yaml.YAMLError(f"a value cannot be read: {e}") from e


def dump_yaml(data: Any, **options: Any) -> str:
    """Write plain data as YAML, which `parse_yaml` reads as the same data.

    Args:
        data: mappings, lists, texts, numbers, booleans and None.
        options: further arguments of `yaml.dump`.

    >>> dump_yaml({"name": "1e5", "rate": 1e-5}).splitlines()
    ["name: '1e5'", 'rate: 1.0e-05']
    """
    text: str = yaml.dump(data, Dumper=_Dumper, **options)
    return text


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        yaml.YAMLError: It is not an ordinary file, or too large.
    """
    if path.exists() and not path.is_file():
        raise yaml.YAMLError("not an ordinary file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise yaml.YAMLError(f"{size:,} bytes, more than the limit of {MAX_BYTES:,} for a sweep file")
    return path.read_text(encoding="utf-8")
