"""Whatever a sweep file contains: a sweep, or a ConfigError with the mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core_hpc.common.errors import ConfigError
from core_hpc.common.shipped import shipped_folder
from core_hpc.config.yaml_text import dump_yaml, parse_yaml
from core_hpc.runs.sweep import load_sweep

SHIPPED = (shipped_folder("yaml") / "quickstart.yaml").read_text()
SCALARS = [
    "1:30:00", "010", "-1", "1e400", ".inf", ".nan", "9" * 30, "2001-13-41", "2026-11-28", "null", "~", "yes", "''",
    "[]", "{}", "[[[[1]]]]", "&a [*a]", "*nobody", "!!binary x", "!!set {a}", "!!omap [1]", "!!int x", "!!float ''",
    "!!timestamp x", "!!python/name:os.system", "<<", "\"\\0\"", "'a\\nb'", "{? [1] : 2}", "|\n", "%x", "@", "\ufeff",
]  # fmt: skip
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


def outcome(folder: Path, text: str) -> list[str]:
    """The mistakes of a sweep file with this text. Any exception but a ConfigError fails the test."""
    path = folder / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        return [] if load_sweep(path).runs else ["a sweep without runs"]
    except ConfigError as e:
        return e.mistakes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    line=st.integers(0, SHIPPED.count("\n")),
    value=st.one_of(st.sampled_from(SCALARS), TEXT),
    keeps_key=st.booleans(),
)
def test_a_shipped_sweep_with_another_value(folder: Path, line: int, value: str, keeps_key: bool) -> None:
    lines = SHIPPED.split("\n")
    key, colon, _ = lines[line].partition(":")
    lines[line] = f"{key}: {value}" if colon and keeps_key else value
    assert "a sweep without runs" not in outcome(folder, "\n".join(lines))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(TEXT, st.lists(st.sampled_from([*SCALARS, "a:", "- ", "\n", " ", "base:", "grid:"])).map("".join)))
@example("? [a]\n: 1")
@example("a: " + "[" * 5000)
@example("a: " + "{a: " * 3000)
def test_a_file_with_any_text(folder: Path, text: str) -> None:
    assert outcome(folder, text)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(PLAIN)
@example({"0E0": "1e5"})
@example(["1:30:00", "010", "1_0", 1e-5, 1e22])
def test_what_is_written_is_read_as_it_was(value: Any) -> None:
    """Numbers in scientific notation, and the refusal of numbers to other bases, change no text and no number."""
    assert parse_yaml(dump_yaml(value)) == value
