r"""What a verification worker does: are two LaTeX answers equal by algebra? Runs in processes that verify.py starts and ends.

In: two cleaned LaTeX texts. Out: True or False, the same for the same two texts in every process and every order. It may
take for ever or all memory: the kernel ends the process at the limits that are set here.
Importing this module loads nothing heavy; calling it loads sympy and math-verify, never torch.
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
    """Limits of a worker process; called once in it."""
    num_bytes = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The kernel's own action: no Python code has to run for the process to end.
    for number in (signal.SIGTERM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)


def equal_within(answer: str, gold: str, cpu_limit_s: float) -> bool:
    """`equal`, after `cpu_limit_s` seconds of processor time (not of waiting) the kernel ends this process."""
    signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
    try:
        return equal(answer, gold)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def equal(answer: str, gold: str) -> bool:
    r"""Whether two LaTeX answers are equal: math-verify, with its known false equalities taken back.

    What cannot be read is equal to nothing. Raises MemoryError where that reaches this function.

    >>> equal(r"(x+1)^{2}", r"x^{2}+2x+1"), equal(r"\frac{1}{2004!}", r"\frac{1}{2006!}"), equal("0.333333", r"\frac{1}{3}")
    (True, False, False)
    """
    from math_verify import verify
    from sympy.core import random as sympy_random
    from sympy.core.cache import clear_cache

    # The outcome must not depend on what this process was asked before.
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
    except Exception:  # noqa: BLE001 - hostile input reaches every corner of three libraries; what they cannot compare is not equal
        return False


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # In a box, and only the box is read: never a number somewhere in it.
    settings = [LatexExtractionConfig(boxed_match_priority=0)]
    return parse(
        rf"\boxed{{{text}}}", settings, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
    )


def _certainly_differ(left: Any, right: Any) -> bool:
    """Do two expressions that passed for equal differ when their values are taken exactly (decimals as fractions)?

    Looks at numbers, at formulas of the same variables (which get positive values), and at such things in sets, tuples,
    matrices, intervals and equations; of anything else it says no.
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
    except (TypeError, ValueError):  # f(2), a truth value: nothing that has a value
        return False
    return any(abs(a - b) > _DIFFERENT * max(abs(a), abs(b)) for a, b in zip(*numbers, strict=True))


def _leaves(expression: Any) -> Sequence[Any]:
    """The formulas in an expression whose values can be taken; empty when there is anything else in it."""
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
        percent = isinstance(expression, Expr) and expression.has(UnevaluatedExpr)  # 50 % passes for 50 and for 0.5
        return (expression,) if isinstance(expression, Expr) and not percent else ()
    found = [_leaves(part) for part in parts]
    return [leaf for leaves in found for leaf in leaves] if all(found) else ()


def _value(expression: Any, values: dict[Any, float]) -> Any:
    """Value as an mpmath number of `PROBE_DIGITS` digits; decimals stand for exact fractions."""
    from mpmath import mp
    from sympy import Float, Rational

    exact = expression.xreplace({f: Rational(str(f)) for f in expression.atoms(Float)})
    exact = exact.xreplace({symbol: Rational(str(value)) for symbol, value in values.items()})
    mp.dps = PROBE_DIGITS
    return mp.mpmathify(exact.evalf(PROBE_DIGITS))
