"""Gold answers in the computation of a hint: how they occur, and where the hint is cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.protocol.hints import treat_leak
from core_hpc.protocol.leaks import cut_before_result, leak_of
from core_hpc.store.schema import LEAKS

NUMBERS = [
    ("4 + 7 = 11. We continue with 3.", "11", "result"),
    ("There are 11 of them, and 3 more.", "11", "anywhere"),
    ("The sum is 11, and 3 more come.", "11", "result"),
    ("It equals $11.00 for 3 days.", "11", "result"),
    ("He makes **11** from 3.", "11", "result"),
    ("We take 3 and come to 11.", "11", "result"),
    ("The sum comes to 11, from 7 + 4.", "11", "result"),
    ("We take 3, leaving 11 eggs for 3 days.", "11", "result"),
    ("Total: 11 apples, from 3 baskets.", "11", "result"),
    ("He adds up to 3 of 11 and 4.", "11", "anywhere"),
    ("We take 11 and add 3.", "11", "anywhere"),
    ("x = 11 + 3", "11", "anywhere"),
    ("x = 11 x 3", "11", "anywhere"),
    ("x = 1,100 per 3", "1100", "result"),
    ("x = 0.50 and y is 3", "1/2", "result"),
    ("x = 1/2 and y is 3", "0.5", "result"),
    ("x = \\frac{1}{2} and y is 3", "0.5", "result"),
    ("22/2 = 3", "11", "none"),
    ("x = 111 and 3", "11", "none"),
    ("x = 1.1 and 11.5 and 3", "11", "none"),
    ("x = -11 and 3", "11", "none"),
    ("x = -11 and 3", "-11", "result"),
    ("x = 14 - 11 and 3", "-11", "none"),
    ("14-11=3 and 4", "11", "anywhere"),
    ("x = 11y and 3", "11", "none"),
    ("a11 and 3", "11", "none"),
    ("11.5x and 3", "11", "none"),
    ("It is 18km and 3", "18", "result"),
    ("4 + 7 = <<4+7=11>>11 eggs for 3", "11", "result"),
    ("so \\(x = \\text{11}\\) and 3", "11", "result"),
    ("No number at all.", "11", "none"),
    ("", "11", "none"),
]


@pytest.mark.parametrize("kind", ["number", "latex"])
@pytest.mark.parametrize(("hint", "gold", "expected"), NUMBERS)
def test_numbers_are_compared_by_value(hint: str, gold: str, expected: str, kind: str) -> None:
    assert leak_of(hint, gold, kind) == expected


@pytest.mark.parametrize("kind", ["number", "latex"])
@pytest.mark.parametrize("gold", ["3/2", "1.5"])
@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("So we get 1 1/2.", "result"),
        ("The total is 1 1/2 cups. Add the 5 cups.", "result"),
        (r"It is $1\frac{1}{2}$. Then take 4.", "result"),
        (r"It is 1 \dfrac12 of 4.", "result"),
        ("It is 1½. Then take 4.", "result"),
        ("Take 1 1/2 cups. Add 5.", "anywhere"),
        ("It is 1 1/2 + 2 = 7/2", "anywhere"),
        ("It is 1 2/2.", "none"),
        ("It is -1 1/2.", "none"),
        ("It is 11 1/2.", "none"),
        ("There is 1 1/20.", "none"),
        ("Take 1\n1/2 of it.", "none"),
    ],
)
def test_mixed_numbers_have_their_value(hint: str, gold: str, kind: str, expected: str) -> None:
    assert leak_of(hint, gold, kind) == expected


def test_a_mixed_number_is_also_its_two_numbers() -> None:
    assert leak_of("Take 1 1/2 cups. Add 5.", "1/2", "number") == "anywhere"
    assert leak_of("Take 1 1/2 cups. Add 5.", "1", "number") == "anywhere"
    assert leak_of("That's 42. Add 5.", "42", "number") == "result"
    assert leak_of("It is -1 1/2.", "-3/2", "number") == "result"
    assert cut_before_result("Add both. It is 1½. So take 1½ cups.", "3/2", "number") == "Add both."


@pytest.mark.parametrize(
    ("hint", "gold", "kind", "expected"),
    [
        ("So $x = \\dfrac{17}{23 y}$, and 3.", "\\frac{17}{23y}", "latex", "result"),
        ("So $x \\to \\left( 3, \\frac{1}{2} \\right)$ holds with 3", "(3,\\frac{1}{2})", "latex", "result"),
        ("With $x^2 + 1$ and 3.", "x^{2}+1", "latex", "anywhere"),
        ("We reach $2\\sqrt3$.", "2\\sqrt{3}", "latex", "result"),
        ("With $12\\sqrt3$ and 3.", "2\\sqrt{3}", "latex", "none"),
        ("So f is even. We continue with 3.", "\\text{even}", "latex", "result"),
        ("So $f$ is \\text{ Even } for 3.", "\\text{even}", "latex", "result"),
        ("An even number of 3 terms.", "\\text{even}", "latex", "anywhere"),
        ("So f is even. We continue with 3.", "even", "latex", "result"),
        ("There is no solution with 3.", "\\text{No solution}", "latex", "anywhere"),
        ("So it is B. We continue with 3.", "\\text{(B)}", "latex", "result"),
        ("Let b be 3.", "\\text{(B)}", "latex", "none"),
        ("Thus x is 3. We continue with 5.", "x=3", "latex", "result"),
        ("We take 3 and add 5.", "x=3", "latex", "anywhere"),
        ("The line is $2x + 1$, not 5.", "y=2x+1", "latex", "result"),
        ("We look at y and x.", "y=x", "latex", "none"),
        ("The line is $y = x$, not 5.", "y=x", "latex", "result"),
        ("The capital is Kuala  Lumpur, in the south.", "kuala lumpur", "text", "result"),
        ("Kuala Lumpur lies in the south.", "Kuala Lumpur", "text", "anywhere"),
        ("In the south lies Kuala Lumpur.", "Kuala Lumpur", "text", "result"),
        ("Lumpur and Kuala.", "Kuala Lumpur", "text", "none"),
        ("We know more.", "no", "text", "none"),
        ("Look at B and C.", "C", "letter", "none"),
    ],
)
def test_formulas_and_words_are_compared_by_notation(hint: str, gold: str, kind: str, expected: str) -> None:
    assert leak_of(hint, gold, kind) == expected


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("So we get option B. Stop.", "result"),
        ("Therefore B. Option C is next.", "result"),
        ("Add both. So (B). Then option C.", "result"),
        ("Option B matches it. Option C is next.", "result"),
        ("So it is B. Option C is next.", "result"),
        ("So it's B. Option C is next.", "result"),
        ("We are left with B. Option C is next.", "result"),
        ("We look at A, and then B fits, not option C.", "result"),
        ("Option B is large. Option C is small.", "anywhere"),
        ("Option C is small. Option B is large.", "result"),
        ("The energy (B) is large, and (C) is small.", "anywhere"),
        ("A) 1 eV\nB) 5 eV\nWe add both.", "none"),
        ("A) 1 eV\nB) 5 eV \u2713\nWe add both.", "result"),
        ("f(B) is C-B, B = 5 and vitamin B.", "none"),
        ("Option A is wrong.", "none"),
    ],
)
def test_letters_count_where_they_name_an_option(hint: str, expected: str) -> None:
    assert leak_of(hint, "B", "letter") == expected
    assert leak_of(hint, "D", "letter") == "none"


def test_treatments_of_a_hint_with_the_letter() -> None:
    hint = "Add both. This looks like option (B). Stop."
    assert treat_leak(hint, "B", "letter", "cut") == "Add both."
    assert treat_leak(hint, "B", "letter", "reject") is None
    assert treat_leak(hint, "C", "letter", "reject") == hint


CUTS = [
    ("Add both. 4 + 7 = 11. So she has 11 eggs.", "Add both."),
    ("Add both.\n4 + 7 = 11 eggs\nThen 3 more.", "Add both."),
    ("She has 11 hens. She sells 3. She buys 3, so 8 + 3 = 11.", "She has 11 hens. She sells 3."),
    ("We see 11. And 11 again. 5 + 6 = 11", ""),
    ("4 + 7 = 11", ""),
    ("We add:\n$$\n4 + 7 = 11\n$$\nDone.", "We add:"),
    (
        "We add:\n\\[\n\\begin{aligned}\nx &= 4 + 7 \\\\\n&= 11\n\\end{aligned}\n\\]",
        "We add:\n\\[\n\\begin{aligned}\nx &= 4 + 7 \\\\",
    ),
    ("1. Take 4.\n2. Add 7: 4 + 7 = 11.\n3. Stop.", "1. Take 4."),
    ("Nothing of it.", "Nothing of it."),
    ("11 hens and 3 cows.", "11 hens and 3 cows."),
]


@pytest.mark.parametrize(("hint", "expected"), CUTS)
def test_a_hint_is_cut_before_the_step_with_the_result(hint: str, expected: str) -> None:
    assert cut_before_result(hint, "11", "number") == expected


def test_treatments() -> None:
    hint = "Add both. 4 + 7 = 11. Stop."
    assert treat_leak(hint, "11", "number", "keep") == hint
    assert treat_leak(hint, "11", "number", "cut") == "Add both."
    assert treat_leak(hint, "11", "number", "reject") is None
    assert treat_leak("4 + 7 = 11.", "11", "number", "cut") is None
    mentioned = "Take 11 and add 3."
    assert {treat_leak(mentioned, "11", "number", treatment) for treatment in ("keep", "cut", "reject")} == {mentioned}


PIECES = st.sampled_from(
    ["11", " = ", "11.", " is ", "\n", ". ", "3", "$$", "-", "/", " + ", "word", "1. ", "\\frac{11}{1}"]
)


@given(st.lists(PIECES, max_size=25).map("".join))
def test_a_cut_hint_is_a_beginning_without_the_result(hint: str) -> None:
    kept = cut_before_result(hint, "11", "number")
    assert hint.startswith(kept)
    assert leak_of(kept, "11", "number") != "result"
    assert leak_of(hint, "11", "number") in LEAKS


@pytest.mark.parametrize(
    "piece",
    [
        "11 ",
        "= 11\n",
        "11/",
        "1,111",
        "-",
        "\\frac{11}",
        "is ",
        "$$\n",
        " ",
        "a b ",
        "x\n$$\n",
        "$$\n= 11\n",
        "B) ",
        "so (B) ",
    ],
)
@pytest.mark.parametrize(
    ("gold", "kind"), [("11", "number"), ("\\frac{11}{x}", "latex"), ("a b", "text"), ("B", "letter")]
)
def test_long_hints_take_linear_time(piece: str, gold: str, kind: str) -> None:
    start = time.process_time()
    cut_before_result(piece * (100_000 // len(piece)) + "x", gold, kind)
    assert time.process_time() - start < 2.5
