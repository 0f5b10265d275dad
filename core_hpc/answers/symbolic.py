r"""Equality of two LaTeX answers by algebra, in worker processes that `verifier.py` controls.

In: two cleaned LaTeX texts. Out: True or False. The result depends only on the two texts, not on
the process or on earlier comparisons. A comparison may need unlimited time or memory; the kernel
then ends the process at the limits that this module sets. Importing this module loads nothing
heavy. Calling it loads sympy and math-verify, never torch.
"""

from __future__ import annotations

import logging
import re
import resource
import signal
from collections.abc import Sequence
from typing import Any

PROBE_DIGITS = 50
_DIFFERENT = 1e-30
_FIRST_PROBE, _PROBE_STEP = 1.37, 0.61
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])\s?")
_LAST_LETTER = re.compile(r"(?<![A-Za-z\\])[a-z]\s*\Z")
"""A variable at the end, which math-verify may take for a unit; not the end of a word or command."""
_PRODUCT = re.compile(r"(?<![\w{^\\])(\d+)\s?(?=(?:\\left\s?)?\(\s?\\[dt]?frac)")
"""A number before a fraction in parentheses, which math-verify takes for a mixed number."""
_WRAPPED = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\{[^{}]{1,64}\}"
_LETTER = re.compile(rf"{_WRAPPED}|\\[A-Za-z]+|([A-Za-z])")
# The left side of an assignment ("x", "a_{10}", "f(3)", "\\text{Total}", "\\angle ABC", "(x,y)"); not "2x".
_GREEK = r"\\(?:alpha|beta|gamma|delta|theta|phi|lambda|mu|sigma|rho|omega|Delta|ell|tau|varphi)"
_ELEMENT = rf"\s?(?:[A-Za-z]|{_GREEK})(?:_\w|_\{{\w{{1,8}}\}})?\s?"
NAME = re.compile(
    rf"(?:{_WRAPPED}|\({_ELEMENT}(?:,{_ELEMENT}){{1,7}}\)|\\vec\s?(?:[A-Za-z]|\{{[A-Za-z]{{1,2}}\}})|m?\\angle\s?[A-Z]{{1,3}}|\|?\\overline\{{[A-Z]{{1,3}}\}}\|?|\|[A-Z]{{1,3}}\||[A-Z]{{2,4}}|[a-z]!"
    rf"|{_GREEK}"
    r"|[A-Za-z](?:_\w|_\{\w{1,8}\})?(?:\^\{-1\})?(?:'|\([^()=]{1,16}\))?)(?:_\w|_\{\w{1,8}\})?"
)


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
    if _PLUS_MINUS.search(answer + gold):
        answer, gold = _both_signs(answer, named=gold), _both_signs(gold, named=answer)
    answer, gold = (_PRODUCT.sub(r"\1\\cdot ", text) for text in _with_distinct_cases(answer, gold))
    try:
        wanted, given = _parse(gold, units=not _LAST_LETTER.search(gold)), _parse(answer, units=_has_unit(answer, gold))
        if not wanted or not given or _is_computation(answer, given[0], wanted[0]):
            return False
        related = _same_relation(wanted[0], given[0])
        if related is not None:
            return related
        return bool(verify(wanted, given, timeout_seconds=None) and not _certainly_differ(wanted[0], given[0]))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - hostile input raises any error in three libraries; it equals nothing
        return False


def _both_signs(text: str, *, named: str) -> str:
    r"""The two values of a formula with one `\pm` as a list; without "x =" if the other side `named` has no name.

    >>> _both_signs(r"x=3\pm i", named="3+i,3-i"), _both_signs(r"\{3\pm i\}", named="")
    ('3+i,3-i', '\\{3\\pm i\\}')
    """
    name, equals, value = text.partition("=")
    if equals and "=" not in named and NAME.fullmatch(name.strip()):
        text = value
    if "," in text or r"\{" in text or "=" in text or len(_PLUS_MINUS.findall(text)) != 1:
        return text
    return ",".join(_PLUS_MINUS.sub(sign, text) for sign in "+-")


def _letters(text: str) -> str:
    r"""The letters of a formula that are variables.

    >>> _letters(r"\frac{R}{2\pi r} \text{ cm}")
    'Rr'
    """
    return "".join(match[1] or "" for match in _LETTER.finditer(text))


def _has_unit(answer: str, gold: str) -> bool:
    """Whether the end of an answer may be a unit: no variable of the gold answer, and no one beside others.

    >>> [_has_unit(*pair) for pair in (("5 m", "5"), ("5 cm", "5"), ("2t", "3+2t"), ("2s+3t", "2s+3"))]
    [True, True, False, False]
    """
    last = _LAST_LETTER.search(answer)
    return last is None or (last[0].strip() not in _letters(gold) and not _letters(answer[: last.start()]))


def _with_distinct_cases(*texts: str) -> tuple[str, ...]:
    r"""The formulas, with another name for a capital letter that one of them also has as a small one.

    math-verify reads capital letters as small ones, so R - r would be 0. N is n where that is all.

    >>> _with_distinct_cases("r-R", "R-r"), _with_distinct_cases("N+1", "1+n")
    (('r-R_{u}', 'R_{u}-r'), ('N+1', '1+n'))
    """
    used = [_letters(text) for text in texts]
    both = {letter for own in used for letter in own if letter.isupper() and letter.lower() in own}

    def renamed(match: re.Match[str]) -> str:
        return f"{match[0]}_{{u}}" if match[1] in both and not match.string.startswith("_", match.end()) else match[0]

    return tuple(_LETTER.sub(renamed, text) for text in texts)


def _parse(text: str, *, units: bool) -> list[Any]:
    """The expressions of a formula. With `units`, a unit at its end is left out."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # The content of the box is parsed as a whole; a number somewhere in it does not count.
    normalization = NormalizationConfig(
        basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    settings = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization)]
    parsed: list[Any] = parse(
        rf"\boxed{{{text}}}", settings, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
    )
    # The parser gives the same letter different assumptions in "9i" and "9 i". A free i is the
    # imaginary unit.
    return [_with_plain_symbols(e) if hasattr(e, "free_symbols") else e for e in parsed]


def _with_plain_symbols(expression: Any) -> Any:
    from sympy import I, Symbol

    plain = {s: I if s.name == "i" else Symbol(s.name, real=True) for s in expression.free_symbols}
    return expression.xreplace({old: new for old, new in plain.items() if old != new})


def _is_computation(answer: str, given: Any, wanted: Any) -> bool:
    """Whether the answer is an equation such as 2x = 14, while a value such as 14 is wanted.

    An assignment to a name is not a computation, and an identity such as 3 + 4 = 7 states a value.
    """
    from sympy import Eq, simplify
    from sympy.core.relational import Relational

    if "=" not in answer or not isinstance(given, Eq) or isinstance(wanted, Relational):
        return False
    sides = answer.split("=")
    if NAME.fullmatch(sides[0].strip()) or NAME.fullmatch(sides[-1].strip()):
        return False
    return bool(simplify(given.lhs - given.rhs) != 0)


def _same_relation(left: Any, right: Any) -> bool | None:
    """Whether two equations or inequalities differ only by a factor or by their arrangement.

    None if another comparison must decide.
    """
    from sympy import Eq, Ge, Gt, Le, Lt, cancel

    def difference(relation: Any) -> Any:
        swapped = isinstance(relation, (Lt, Le))
        return _exact(relation.rhs - relation.lhs if swapped else relation.lhs - relation.rhs)

    for types in ((Eq,), (Gt, Lt), (Ge, Le)):
        if isinstance(left, types) and isinstance(right, types):
            wanted, given = difference(left), difference(right)
            if not wanted.free_symbols or given == 0:
                return None
            ratio = cancel(given / wanted)
            if ratio.is_number:
                return bool(ratio != 0 and (types == (Eq,) or ratio.is_positive))
            return None if types == (Eq,) else False
    return None


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


def _exact(expression: Any) -> Any:
    from sympy import Float, Rational

    return expression.xreplace({f: Rational(str(f)) for f in expression.atoms(Float)})


def _value(expression: Any, values: dict[Any, float]) -> Any:
    """The value as an mpmath number with `PROBE_DIGITS` digits; decimals are exact fractions."""
    from mpmath import mp
    from sympy import Rational

    exact = _exact(expression).xreplace({symbol: Rational(str(value)) for symbol, value in values.items()})
    mp.dps = PROBE_DIGITS
    return mp.mpmathify(exact.evalf(PROBE_DIGITS))
