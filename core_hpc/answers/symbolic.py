r"""Equality of two LaTeX answers by algebra, in worker processes that `verifier.py` controls.

In: two cleaned LaTeX texts. Out: True or False. The result depends only on the two texts, not on
the process or on earlier comparisons. A comparison may need unlimited time or memory; the kernel
then ends the process at the limits that this module sets. Importing this module loads nothing
heavy. Calling it loads sympy and math-verify, never torch.
"""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Sequence
from typing import Any

PROBE_DIGITS = 50
_DIFFERENT = 1e-30
_FIRST_PROBE, _PROBE_STEP = 1.37, 0.61


def initialise_worker(memory_gb: float) -> None:
    """Set the limits of this worker process. It is called once per process."""
    num_bytes = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # With the default action the kernel ends the process, even if Python code cannot run.
    for number in (signal.SIGTERM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)


def equal_within(answer: str, gold: str, cpu_limit_s: float) -> bool:
    """`equal`, but the kernel ends this process after `cpu_limit_s` seconds of CPU time."""
    signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
    try:
        return equal(answer, gold)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def equal(answer: str, gold: str) -> bool:
    r"""Whether two LaTeX answers are equal for math-verify, except for its known false equalities.

    A text that cannot be parsed equals nothing.

    Raises:
        MemoryError: the comparison needs too much memory.

    >>> equal(r"(x+1)^{2}", r"x^{2}+2x+1"), equal(r"\frac{1}{2004!}", r"\frac{1}{2006!}")
    (True, False)
    >>> equal("0.333333", r"\frac{1}{3}")
    False
    """
    from math_verify import verify
    from sympy.core import random as sympy_random
    from sympy.core.cache import clear_cache

    # The result must not depend on earlier comparisons in this process.
    clear_cache()
    sympy_random.seed(0)
    try:
        wanted, given = _parse(gold), _parse(answer)
        return bool(
            wanted
            and given
            and verify(wanted, given, timeout_seconds=None)
            and not _certainly_differ(wanted[0], given[0])
        )
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - hostile input raises any error in three libraries; it equals nothing
        return False


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # The content of the box is parsed as a whole; a number somewhere in it does not count.
    settings = [LatexExtractionConfig(boxed_match_priority=0)]
    parsed: list[Any] = parse(
        rf"\boxed{{{text}}}", settings, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
    )
    return parsed


def _certainly_differ(left: Any, right: Any) -> bool:
    """Whether two expressions that math-verify calls equal have different exact values.

    Decimals are exact fractions here. The function evaluates numbers and formulas with the same
    variables (which get positive values), also inside sets, tuples, matrices, intervals and
    equations. For anything else the result is False.
    """
    lefts, rights = _leaves(left), _leaves(right)
    if not lefts or len(lefts) != len(rights):
        return False
    symbols = {s for e in lefts for s in e.free_symbols}
    if symbols != {s for e in rights for s in e.free_symbols}:
        return False
    values = {s: _FIRST_PROBE + _PROBE_STEP * i for i, s in enumerate(sorted(symbols, key=str))}
    try:
        numbers = [
            sorted((_value(e, values) for e in side), key=lambda z: (z.real, z.imag)) for side in (lefts, rights)
        ]
    except (TypeError, ValueError):  # f(2) or a truth value has no numeric value
        return False
    return any(abs(a - b) > _DIFFERENT * max(abs(a), abs(b)) for a, b in zip(*numbers, strict=True))


def _leaves(expression: Any) -> Sequence[Any]:
    """The formulas in an expression that can be evaluated; empty if it contains anything else."""
    from latex2sympy2_extended.sets import FiniteSet
    from sympy import Eq, Expr, Interval, MatrixBase, Tuple
    from sympy import FiniteSet as SympyFiniteSet
    from sympy.core.expr import UnevaluatedExpr

    if isinstance(expression, (FiniteSet, SympyFiniteSet, Tuple)):
        parts: Sequence[Any] = expression.args
    elif isinstance(expression, Interval):
        parts = (expression.start, expression.end)
    elif isinstance(expression, MatrixBase):
        parts = expression.flat()
    elif isinstance(expression, Eq):
        parts = (expression.rhs,)
    else:
        # math-verify accepts 50 % both as 50 and as 0.5, so it has no single value.
        percent = isinstance(expression, Expr) and expression.has(UnevaluatedExpr)
        return (expression,) if isinstance(expression, Expr) and not percent else ()
    found = [_leaves(part) for part in parts]
    return [leaf for leaves in found for leaf in leaves] if all(found) else ()


def _value(expression: Any, values: dict[Any, float]) -> Any:
    """The value as an mpmath number with `PROBE_DIGITS` digits; decimals are exact fractions."""
    from mpmath import mp
    from sympy import Float, Rational

    exact = expression.xreplace({f: Rational(str(f)) for f in expression.atoms(Float)})
    exact = exact.xreplace({symbol: Rational(str(value)) for symbol, value in values.items()})
    mp.dps = PROBE_DIGITS
    return mp.mpmathify(exact.evalf(PROBE_DIGITS))
