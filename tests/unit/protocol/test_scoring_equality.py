"""Scoring equals its plainest form (`tests/support/plain_scoring.py`), bit by bit."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_hpc.protocol import rewards
from core_hpc.protocol.distance import _PATTERNS, _SOURCES, OPERATIONS, _folded, operation_signature
from tests.support import plain_scoring as plain

FOLDED = "iIİıkKKsSſ"
"""Letters that are equal to another one, if case is ignored, although one of them is not ASCII."""


def test_folding_a_character_is_what_ignoring_case_does() -> None:
    characters = "".join(map(chr, range(sys.maxunicode + 1)))
    folded = [_folded(c) for c in characters]
    assert all(len(c) == 1 for c in folded)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        equal = re.findall(letter, characters, re.IGNORECASE)
        assert equal == [c for c, f in zip(characters, folded, strict=True) if f == letter]
    for kind in (r"\w", r"\s", "[0-9]"):
        members = set(re.findall(kind, characters))
        assert all((c in members) == (f in members) for c, f in zip(characters, folded, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_a_pattern_finds_has_one_of_the_parts_it_needs(name: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(re.compile(_SOURCES[name], re.IGNORECASE)))
    needed, _ = _PATTERNS[name]
    assert any(part in _folded(text) for part in needed), text
    assert operation_signature(text) == plain.operation_signature(text)


WORDS = sorted(
    {part for needed, _ in _PATTERNS.values() for part in needed}
    | {"3", "42", "x", "(", ")", "$", "{", "}", "\\", "cases", "per", "equally", "for", " than", "times", "s", "ing"}
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, *FOLDED, *(w.upper() for w in WORDS), " ", "\n"]), max_size=30))
def test_signatures_of_texts_of_pieces(pieces: list[str]) -> None:
    for text in ("".join(pieces), " ".join(pieces)):
        assert operation_signature(text) == plain.operation_signature(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_signatures_of_any_text(text: str) -> None:
    assert operation_signature(text) == plain.operation_signature(text)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_rewards_are_equal_bit_by_bit(num_models: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = np.array([f"m{i}" for i in rng.integers(num_models, size=n)])
    phases = np.array(["cold", "rescue"])[rng.integers(2, size=n)]
    correct = rng.random(n) < 0.3
    answers = [None if i == 0 else f"{i} 1,00{i}" for i in rng.integers(5, size=n)]
    distances = rng.random((n, n))
    exploit = rewards.exploit_rewards(correct, answers, "1,002 2", partial_weight=0.3)
    assert np.array_equal(exploit, plain.exploit_rewards(correct, answers, "1,002 2", partial_weight=0.3))
    ours = rewards.cross_rewards(distances, models, phases, exploit, margin=0.15, gate=0.5)
    assert np.array_equal(ours, plain.cross_rewards(distances, models, phases, exploit, margin=0.15, gate=0.5))
    peers = rewards.peer_cold_correct(models, phases, correct)
    assert np.array_equal(peers, plain.peer_cold_correct(models, phases, correct))
