"""Seeds are the same in every process, unambiguous and uniform."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.common.seeds import stable_seed, stable_uniform

PARTS = st.lists(st.one_of(st.text(max_size=8), st.integers()), max_size=4).map(tuple)


@given(st.integers(), PARTS, st.integers(), PARTS)
def test_different_keys_have_different_seeds(seed_a: int, parts_a: Any, seed_b: int, parts_b: Any) -> None:
    same_key = (seed_a, *parts_a) == (seed_b, *parts_b)
    assert (stable_seed(seed_a, *parts_a) == stable_seed(seed_b, *parts_b)) == same_key


def test_the_type_of_a_part_matters_and_seeds_fit_into_63_bits() -> None:
    keys: list[tuple[str | int, ...]] = [("1", "2"), ("12",), (1, 2), (12,), ("1", 2)]
    assert len({stable_seed(0, *key) for key in keys}) == len(keys)
    assert all(0 <= stable_seed(0, i) < 2**63 for i in range(1000))
    assert isinstance(stable_seed(0, "\ud800"), int)


@pytest.mark.parametrize("part", [True, 1.0, None, b"x"])
def test_other_types_are_refused(part: Any) -> None:
    with pytest.raises(TypeError, match="str or an int"):
        stable_seed(0, part)


def test_the_encoding_is_as_documented() -> None:
    blob = b"i" + (2).to_bytes(8, "big") + b"42" + b"s" + (4).to_bytes(8, "big") + b"cold"
    digest = hashlib.blake2b(blob, digest_size=8, person=b"core_hpc.seeds").digest()
    assert stable_seed(42, "cold") == int.from_bytes(digest, "big") // 2


def test_another_process_gives_the_same_seed() -> None:
    code = "from core_hpc.common.seeds import stable_seed; print(stable_seed(42, 3, 'cold', 'problem', 0))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}, cwd="."
    )
    assert int(out.stdout) == stable_seed(42, 3, "cold", "problem", 0)


def test_uniform_numbers_are_uniform() -> None:
    draws = [stable_uniform(1, "hint", i) for i in range(4000)]
    assert all(0 <= u < 1 for u in draws)
    share = sum(u < 0.75 for u in draws) / len(draws)
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / len(draws)) ** 0.5
