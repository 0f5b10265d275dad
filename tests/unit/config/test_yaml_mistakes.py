"""The message for a file that is not valid YAML names the line and the likely cause."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import yaml
from core_hpc.common.errors import ConfigError
from core_hpc.config.yaml_mistakes import explain_yaml
from core_hpc.config.yaml_text import parse_yaml
from core_hpc.runs.sweep import load_sweep

GOOD = """\
name: x
iterations: 1
team:
  - {name: a, model: "tiny:a"}
problems:
  train: {source: generated, count: 8}
  evaluation: {source: generated, count: 8}
"""
MISTAKES = {
    "tab": ("  - {name", "\t- {name", 4, "a tab"),
    "tab after a colon": ("name: x", "name:\tx", 1, "a tab"),
    "no space after the colon": ("iterations: 1", "iterations:1", 2, "write `iterations: 1`"),
    "no space after the last colon": ("iterations: 1", "iterations: 1\nseed:3", 3, "write `seed: 3`"),
    "no space before a mapping": ("train: {", "train:{", 6, "write `train: {source: generated, count: 8}`"),
    "quote of a model": ('"tiny:a"', '"tiny:a', 4, 'the quote " is not closed'),
    "quote of a name": ("name: x", "name: 'x", 1, "the quote ' is not closed"),
    "quote that a later line closes": ("iterations: 1", 'output: "here\niterations: 1', 2, 'the quote " is not closed'),
    "brace": ('"tiny:a"}', '"tiny:a"', 4, "the { is not closed"),
    "bracket": ("iterations: 1", "grid: {seed: [1, 2}\niterations: 1", 2, "the [ is not closed"),
    "comma": ("name: a, model", "name: a model", 4, "a comma is missing, or a text that contains `: ` needs quotes"),
    "deeper": ("  evaluation", "   evaluation", 7, "indented by 3 spaces"),
    "deeper than a value": ("iterations: 1", "iterations: 1\n    seed: 3", 3, "indented by 4 spaces"),
    "less deep": ("  evaluation", " evaluation", 7, "indented by 1 space"),
    "colon in a text": ("name: x", "name: x: y", 1, "a text that contains `: ` needs quotes"),
    "at": ("name: x", "name: @x", 1, "cannot begin with @; put it in quotes"),
    "percent": ("name: x", "name: %x", 1, "cannot begin with %; put it in quotes"),
    "star": ("name: x", "name: *x", 1, "`*x`"),
    "exclamation mark": ("name: x", "name: !x y", 1, "`!x`"),
    "backslash": ("name: x", r'name: "\d"', 1, "single quotes"),
    "after a quote": ("name: x", 'name: "x" y', 1, "after the quote"),
    "nul": ("name: x", "name: x\0", 1, "the character U+0000"),
    "merge": ("name: x", "<<: {seed: 3}\nname: x", 1, "the key << is not supported"),
    "second document": ("iterations: 1", "---\niterations: 1", 2, "a second document begins here"),
    "twice": ("iterations: 1", "iterations: 1\nname: y", 3, "key 'name' occurs twice"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_message_names_the_line_and_the_likely_cause(mistake: str, tmp_path: Path) -> None:
    old, new, line, cause = MISTAKES[mistake]
    assert old in GOOD
    path = tmp_path / "sweep.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    (message,) = caught.value.mistakes
    assert message.startswith(f"not valid YAML: line {line}: "), message
    assert cause in message
    for words in ("<unicode string>", "scalar", "simple key", "token", "block mapping", "expected <"):
        assert words not in message
    assert str(path) in str(caught.value)


def test_a_message_shows_the_line_but_never_a_long_one() -> None:
    text = "name: " + "[" + "x" * 5000
    with pytest.raises(yaml.YAMLError) as caught:
        parse_yaml(text)
    message = explain_yaml(caught.value, text)
    assert "`name: [xxx" in message
    assert len(message) < 400


@given(st.text(alphabet="ab:-{}[]\"'#&*!|>%@,?\t\n \\0", max_size=60))
def test_every_error_of_yaml_has_a_message(text: str) -> None:
    try:
        parse_yaml(text)
    except yaml.YAMLError as e:
        message = explain_yaml(e, text)
        assert message
        assert "<unicode string>" not in message
