"""Random alterations of the content of files, as hypothesis strategies: JSON with other values, and altered bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=True),
    st.text(max_size=12),
    st.sampled_from(["", "../../etc/passwd", "/", "cold/0001/a/000", "NaN", "9" * 5000]),
)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*at, name))


def replaced(value: Any, at: tuple[Any, ...], change: Callable[[Any, Any], None], new: Any) -> Any:
    """A JSON value with a change at a path: of the container and the name in it."""
    if not at:
        return new
    container = value
    for name in at[:-1]:
        container = container[name]
    change(container, at[-1])
    return value


@st.composite
def altered_json(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON with one value replaced, removed or renamed."""
    value = json.loads(content)
    at, new = draw(st.sampled_from(list(places(value)))), draw(JSON_VALUES)

    def set_new(container: Any, name: Any) -> None:
        container[name] = new

    def remove(container: Any, name: Any) -> None:
        del container[name]

    return json.dumps(replaced(value, at, draw(st.sampled_from([set_new, remove])), new)).encode()


@st.composite
def altered_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a flipped byte, a lost end, or an insertion."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "zeros"]))
    if kind == "flip" and content:
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "zeros":
        return content[:at] + bytes(len(content) - at)
    return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
