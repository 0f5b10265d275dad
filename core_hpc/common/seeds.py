"""Seeds which are a stable function of what they are for, never of the order in which work is done.

In: the run's seed and the parts that name a draw (iteration, phase, model, problem, sample index). Out: an
integer seed or a uniform number; the same on every machine, process and Python version. This module keeps no
state and draws nothing from global generators.
"""

from __future__ import annotations

import hashlib

_UNIFORM_BITS = 53


def _encode(part: str | int) -> bytes:
    """One part, with its type and its length, so that no two lists of parts have the same bytes."""
    if isinstance(part, str):
        kind, data = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, int) and not isinstance(part, bool):
        kind, data = b"i", str(part).encode("ascii")
    else:
        raise TypeError(f"a part of a seed is a str or an int, not {part!r} ({type(part).__name__})")
    return kind + len(data).to_bytes(8, "big") + data


def stable_seed(run_seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**63): BLAKE2b over the run's seed and the typed, length-prefixed parts.

    Raises TypeError for a part that is neither str nor int (bool, float, numpy scalars).

    >>> stable_seed(42, "cold", 1) == stable_seed(42, "cold", 1)
    True
    >>> stable_seed(42, "cold", 1) == stable_seed(42, "cold", "1")
    False
    """
    digest = hashlib.blake2b(digest_size=8, person=b"core_hpc.seeds")
    for part in (run_seed, *parts):
        digest.update(_encode(part))
    return int.from_bytes(digest.digest(), "big") >> 1


def stable_uniform(run_seed: int, *parts: str | int) -> float:
    """A uniform number in [0, 1), from the highest 53 bits of `stable_seed`.

    >>> 0 <= stable_uniform(42, "hint", 7) < 1
    True
    """
    return (stable_seed(run_seed, *parts) >> (63 - _UNIFORM_BITS)) * 2.0**-_UNIFORM_BITS
