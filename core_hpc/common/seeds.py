"""Seeds that depend only on what they are used for, never on the order in which work is done.

In: the run's seed and the parts that name a draw (iteration, phase, model, problem, sample index).
Out: an integer seed or a uniform number, which is the same on every machine, in every process and
with every version of Python. This module keeps no state and uses no global random generator.
"""

from __future__ import annotations

import hashlib

_UNIFORM_BITS = 53


def _encode(part: str | int) -> bytes:
    """Encode one part with its type and length: different lists of parts have different bytes."""
    if isinstance(part, str):
        kind, data = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, int) and not isinstance(part, bool):
        kind, data = b"i", str(part).encode("ascii")
    else:
        raise TypeError(f"a part of a seed must be a str or an int, not {part!r} ({type(part).__name__})")
    return kind + len(data).to_bytes(8, "big") + data


def stable_seed(run_seed: int, *parts: str | int) -> int:
    """Return a seed in [0, 2**63): BLAKE2b over the run's seed and the encoded parts.

    Args:
        run_seed: The field `seed` of the configuration.
        parts: What the seed is used for. 1 and "1" give different seeds.

    Raises:
        TypeError: A part is neither str nor int (bool, float and numpy scalars are refused).

    >>> stable_seed(42, "cold", 1) == stable_seed(42, "cold", 1)
    True
    >>> stable_seed(42, "cold", 1) == stable_seed(42, "cold", "1")
    False
    """
    # The person string is part of every seed of every run, so it stays if this module moves.
    digest = hashlib.blake2b(digest_size=8, person=b"core_hpc.seeds")
    for part in (run_seed, *parts):
        digest.update(_encode(part))
    return int.from_bytes(digest.digest(), "big") >> 1


def stable_uniform(run_seed: int, *parts: str | int) -> float:
    """Return a uniform number in [0, 1), made of the highest 53 bits of `stable_seed`.

    >>> 0 <= stable_uniform(42, "hint", 7) < 1
    True
    """
    return (stable_seed(run_seed, *parts) >> (63 - _UNIFORM_BITS)) * 2.0**-_UNIFORM_BITS
