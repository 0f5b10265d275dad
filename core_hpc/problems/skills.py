"""Problem families with complementary skills: digit-by-digit operators, two of them invented.

In: a random stream, the number of the problem, and the shares of the families. Out: a problem with
a worked solution, whose `subject` is its family and whose `level` is `single` or `composite`.

An operator works on two digits and keeps the remainder of a small computation, divided by `base`,
which is 10 unless another one is given. On numbers it works digit by digit, from left to right,
without carries. With base 10 it keeps the last digit:

    plus   a + b                           4 plus 7:  4+7=11, keep 1.
    times  a * b                           4 times 7: 4*7=28, keep 8.
    zib    a + a + b                       4 zib 7:   4+4+7=15, keep 5.
    minus  a - b, base is added below 0    4 minus 7: 14-7=7, keep 7.
    gap    the larger minus the smaller    4 gap 7:   7-4=3, keep 3.
    gorp   the gap of base - 1 - a and b   4 gorp 7:  9-4=5, 7-5=2, keep 2.

All digits of a problem are below `base`, so a smaller base has fewer pairs of digits to learn:
25 per operator with base 5, and 100 with base 10.

`zib` and `gorp` are invented here, so no pre-trained model knows them, and questions do not explain
them. `plus`, `times` and `zib` need no subtraction; `minus`, `gap` and `gorp` need nothing else. A
family is one operator, or two operators one after the other (`zib_then_gorp`), which needs the
skill of both. An answer has as many digits as the numbers, so guessing finds one of
10^num_digits.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from core_hpc.problems.files import Item


def _kept(computation: str, value: int, base: int) -> tuple[str, int]:
    return f"{computation}={value}, keep {value % base}.", value % base


def _plus(a: int, b: int, base: int) -> tuple[str, int]:
    return _kept(f"{a}+{b}", a + b, base)


def _times(a: int, b: int, base: int) -> tuple[str, int]:
    return _kept(f"{a}*{b}", a * b, base)


def _zib(a: int, b: int, base: int) -> tuple[str, int]:
    return _kept(f"{a}+{a}+{b}", 2 * a + b, base)


def _minus(a: int, b: int, base: int) -> tuple[str, int]:
    start = a if a >= b else a + base
    return _kept(f"{start}-{b}", start - b, base)


def _gap(a: int, b: int, base: int) -> tuple[str, int]:
    larger, smaller = max(a, b), min(a, b)
    return _kept(f"{larger}-{smaller}", larger - smaller, base)


def _gorp(a: int, b: int, base: int) -> tuple[str, int]:
    first = base - 1 - a
    text, value = _gap(first, b, base)
    return f"{base - 1}-{a}={first}, {text}", value


OPERATORS: dict[str, Callable[[int, int, int], tuple[str, int]]] = {
    "plus": _plus,
    "times": _times,
    "zib": _zib,
    "minus": _minus,
    "gap": _gap,
    "gorp": _gorp,
}
"""Name -> function of two digits and the base that returns the text of the step and the digit that is kept."""

_THEN = "_then_"
FAMILIES: dict[str, tuple[str, ...]] = {name: (name,) for name in OPERATORS} | {
    f"{first}{_THEN}{second}": (first, second) for first in OPERATORS for second in OPERATORS if first != second
}
"""Family -> its operators, in the order in which they are applied."""

SKILL_OPTIONS: dict[str, tuple[int, int]] = {"num_digits": (1, 9), "base": (2, 10)} | dict.fromkeys(FAMILIES, (1, 1000))
"""Options of the generator: {option: (smallest, largest value)}."""

WORDS = ("Digit", "by", "digit", "keep", *OPERATORS)
"""Words of questions and solutions, for tokenizers."""


def skill_problem(rng: random.Random, number: int, *, num_digits: int = 2, base: int = 10, **shares: int) -> Item:
    """A problem of one of the families.

    Args:
        rng: source of the numbers.
        number: 0-based number of the problem in its split; it selects the family.
        num_digits: digits of every number.
        base: all digits are below it.
        shares: {family: share}. Of as many problems as the sum of the shares, each family gets its
            share. Without any, the families of one operator have equal shares.
    """
    deck = [family for family, share in (shares or dict.fromkeys(OPERATORS, 1)).items() for _ in range(share)]
    family = deck[number % len(deck)]
    value = _number(rng, num_digits, base)
    expression, steps = value, []
    for place, name in enumerate(FAMILIES[family]):
        operand = _number(rng, num_digits, base)
        expression = f"({expression}) {name} {operand}" if place else f"{value} {name} {operand}"
        step, value = _apply(name, value, operand, base)
        steps.append(step)
    metadata = {
        "solution": f"{' '.join(steps)} #### {value}",
        "subject": family,
        "level": "composite" if len(FAMILIES[family]) > 1 else "single",
    }
    return Item("", f"Digit by digit: {expression} = ?", str(int(value)), metadata)


def _number(rng: random.Random, num_digits: int, base: int) -> str:
    """Digits of a number that does not begin with 0."""
    return str(rng.randint(1, base - 1)) + "".join(str(rng.randint(0, base - 1)) for _ in range(num_digits - 1))


def _apply(name: str, left: str, right: str, base: int) -> tuple[str, str]:
    """The worked step of an operator on two numbers, and the digits of its result."""
    steps = [OPERATORS[name](int(a), int(b), base) for a, b in zip(left, right, strict=True)]
    text = " ".join(step for step, _ in steps)
    return f"{left} {name} {right}: {text}", "".join(str(digit) for _, digit in steps)
