"""Extraction of answers of each kind, and verdicts without algebra."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.answers import extract
from core_hpc.answers.extract import after_thinking, extract_answer, normalize_number, token_f1, verify
from core_hpc.answers.kinds import KINDS
from core_hpc.answers.latex import MAX_LATEX_CHARS, clean_latex, gold_latex
from core_hpc.answers.latex_comparison import compare_latex
from core_hpc.config.problems import AnswerKindName
from core_hpc.store.schema import CORRECT, NO_ANSWER, VERDICTS, WRONG

EXPLICIT = {
    "<final_answer>42</final_answer>": "42",
    "<answer> 42 apples </answer>": "42",
    "<ANSWER id='1'>42</ANSWER>": "42",
    "<strategy_1_outcome>42</strategy_1_outcome>": "42",
    "work <answer>42": "42",
    "<answer>42\nand more 7": "42",
    "so \\boxed{42}.": "42",
    "\\boxed{41} then \\boxed{\\text{42}}": "42",
    "\\boxed{\\boxed{42}}": "42",
    "\\boxed{42} and cut off \\boxed{43": "42",
    "\\boxed{\\frac{84}{2}}": "42",
    "\\boxed{x = 42}": "42",
    "<answer>\\boxed{42}</answer>": "42",
    "40 + 2 = 42\n#### 42": "42",
    "one line 40 + 2 = 42. #### 42": "42",
    "#### 42 apples\n#### Step 3: check": "42",
    "#### Final Answer\n\n42": "42",
    "#### 42 ####": "42",
    "#### 42####\n7 eggs": "42",
    "#### 42 #": "42",
    "#### Final Answer ####\n42": "42",
    "#### <42>": "42",
    "#### [$42]\n": "42",
    "#### 42 dollars. The total is 50.": "42",
    "**Final Answer**\n\n**42**\n": "42",
    "The answer is 42. Check: 40 + 2 works, 7 is odd.": "42",
    "The final answer is: $42.": "42",
    "The answer is \\boxed{42}.": "42",
    "**Answer:** 42": "42",
    "Answer:\n- 42": "42",
    "answer = 84 / 2 = 42 dollars": "42",
    '{"final_answer": "42"}': "42",
    "The answer is 42 clips (40 + 2).": "42",
    "Answer: 42, because 40 + 2 = 42": "42",
    "the answer is 41. No, the answer is 42.": "42",
    "the answer is 42. I hope the answer is clear.": "42",
    "  42.\n": "42",
    "$1,200.50": "1200.5",
    "<think>the answer is 7</think>The answer is 42": "42",
    "[THINK]\\boxed{7}[/THINK] \\boxed{42}": "42",
    "\\boxed{5 \\text{ cm}^2}": "5",
    "\\boxed{no idea}": "no idea",
}
NOT_EXPLICIT = [
    "",
    " ",
    "3 + 4 = 7",
    "I think it is 7.",
    "There are 12 eggs and 5 more",
    "#### Step 3: add",
    "#### 3. Add the eggs",
    "#### 42? No, it is 50.",
    "#### [40,200]",
    "#### Step 3 ####\n7 eggs",
    "the answer is not 42",
    "\\boxed{}",
    "\\boxed{42",
    "<answer></answer>",
    "<think>the answer is 42</think>",
    "the answer isn't 42",
    "answer is 10-5",
    "answer: 3*4",
    "answer: 5%3",
    "answer: 2x",
    "answers: 7 questions",
    "answer is 5^2",
    "answer: 5 apples and 3 pears",
]


@pytest.mark.parametrize(("text", "expected"), EXPLICIT.items())
def test_the_last_explicit_answer_is_found(text, expected):
    assert extract_answer(text, "number") == expected


@pytest.mark.parametrize("text", NOT_EXPLICIT)
def test_a_number_that_is_not_an_explicit_answer_is_none(text):
    assert extract_answer(text, "number") is None
    assert verify(extract_answer(text, "number"), "42", "number") == NO_ANSWER


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("1,200", "1200", CORRECT),
        ("$1200", "1200", CORRECT),
        ("1200.00", "1200", CORRECT),
        ("1200.", "1200", CORRECT),
        ("007", "7", CORRECT),
        ("50%", "50", CORRECT),
        ("50%", "0.5", WRONG),
        ("3/4", "0.75", CORRECT),
        ("6/8", "3/4", CORRECT),
        ("\u22125", "-5", CORRECT),
        ("- 5", "-5", CORRECT),
        ("1/3", "0.333333", WRONG),
        ("0.1", "1/10", CORRECT),
        ("1e3", "1000", CORRECT),
        ("-0", "0", CORRECT),
        ("1,2", "12", WRONG),
        ("1,20,000", "120000", WRONG),
        ("1 1/2", "1.5", CORRECT),
        ("1 1/2", "11/2", WRONG),
        ("1.5", "1 1/2", CORRECT),
        ("1 3/2", "2.5", WRONG),
        ("1*1/2", "1.5", WRONG),
        ("1 1/2/3", "1.5", WRONG),
        ("5 apples", "5", WRONG),
        ("1/0", "0", WRONG),
        ("1e999999999", "1", WRONG),
        ("nan", "5", WRONG),
        ("inf", "5", WRONG),
        ("٣", "3", WRONG),
        ("1_000", "1000", WRONG),
        ("", "5", NO_ANSWER),
        (None, "5", NO_ANSWER),
    ],
)
def test_numbers_are_compared_by_exact_value(answer, gold, verdict):
    assert verify(answer, gold, "number") == verdict
    assert verdict in VERDICTS


def test_a_bad_gold_or_kind_is_an_error_and_not_a_wrong_answer():
    with pytest.raises(ValueError, match="gold answer 'seven'"):
        verify(None, "seven", "number")
    with pytest.raises(ValueError, match="known: integer, latex, letter, number, text"):
        extract_answer("5", "colour")


def test_a_sweep_file_may_name_exactly_the_known_kinds():
    assert set(get_args(AnswerKindName)) == set(KINDS)


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}", " {} ", "${}", "{}%", "{}.", "**{}**"]))
def test_every_rational_survives_normalisation(value, pattern):
    text = normalize_number(pattern.format(value))
    assert text is not None
    assert Fraction(text) == value
    assert normalize_number(text) == text


@given(st.text(alphabet="0123456789.,/-+eE %$\\{}fracboxedx=#<>answr:is\n", max_size=60))
def test_a_number_from_any_text_is_canonical_and_equals_itself(text):
    answer = extract_answer(text, "number")
    if answer is not None and normalize_number(answer) is not None:
        assert normalize_number(answer) == answer
        assert verify(answer, answer, "number") == CORRECT


@given(st.text(max_size=30), st.integers(-(10**9), 10**9))
def test_text_before_the_explicit_answer_does_not_matter(before, value):
    assert extract_answer(f"{before}\n\\boxed{{{value}}}", "number") == str(value)


# --- integers, letters, text ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "gold", "verdict"),
    [
        ("\\boxed{042}", "42", "42", CORRECT),
        ("\\boxed{42}", "42", "042", CORRECT),
        ("#### 7", "7", "007", CORRECT),
        ("The answer is 000.", "0", "0", CORRECT),
        ("\\boxed{42.0}", "42", "42", CORRECT),
        ("\\boxed{1042}", "1042", "42", WRONG),
        ("\\boxed{-42}", "-42", "42", WRONG),
        ("\\boxed{42.5}", "42.5", "42", WRONG),
        ("\\boxed{m+n}", "m+n", "42", WRONG),
        ("m + n = 42", None, "42", NO_ANSWER),
        ("999", "999", "999", CORRECT),
        ("1000", None, "999", NO_ANSWER),
    ],
)
def test_integers(text, answer, gold, verdict):
    assert extract_answer(text, "integer") == answer
    assert verify(extract_answer(text, "integer"), gold, "integer") == verdict


@pytest.mark.parametrize("gold", ["1000", "-1", "2.5", "1e3", "x", ""])
def test_a_gold_integer_must_be_from_0_to_999(gold):
    with pytest.raises(ValueError, match="is not of the kind integer"):
        verify("1", gold, "integer")


LETTERS = {
    "\\boxed{B}": "B",
    "\\boxed{\\text{(B)}}": "B",
    "\\boxed{\\textbf{(B)}\\ 5}": "B",
    "<answer>b</answer>": "B",
    "<answer>B) 5 eV</answer>": "B",
    "<answer>B) Both A and C</answer>": "B",
    "The answer is (B).": "B",
    "Answer: B": "B",
    "**Answer: B**": "B",
    "The correct answer is option B.": "B",
    "answer is B, since A is wrong": "B",
    "Answer: A because": "A",
    "Answer: A with 5 eV": "A",
    "Answer: B by elimination": "B",
    "Answer: B - 5 eV": "B",
    "Answer: B 5 eV": "B",
    "Answer: B. The value fits.": "B",
    "Answer: B. it increases": "B",
    "Answer: B=5 eV": "B",
    "Answer: option B works": "B",
    "#### B": "B",
    "#### (b)": "B",
    "B": "B",
    "(b)": "B",
    "Reasons.\n\n**B**": "B",
    "C) 5 eV": "C",
    "(C) 5 eV": "C",
    "B is too small.\n\n**C) 5 eV**": "C",
    "**(C)** 5 eV\n": "C",
    "I compare (A) and (B).\nB) 5 eV": "B",
    "\\boxed{B} but the answer is C": "B",
    "\\boxed{A} no, \\boxed{B}": "B",
    "the answer is A. Wait, the answer is B.": "B",
    "<think>\\boxed{A}</think> The answer is B": "B",
    "[THINK]A[/THINK]B": "B",
    "\\boxed{5 eV}. The answer is B": "B",
    "\\boxed{$B$}": "B",
    "\\boxed{Z}": "Z",
    "\\boxed{A and B}": "A and B",
    "\\boxed{5 eV}": "5 eV",
    "\\boxed{B cells}": "B cells",
    "<answer>E. coli</answer>": "E. coli",
}
NO_LETTER = [
    "A proton is heavier than B.",
    "The answer is a proton",
    "The answer is A proton",
    "I think A or B",
    "",
    "answer is A and B",
    "Both A\nand B hold",
    "The answer is I think unclear",
    "Answer: B cells",
    "The answer is B cells.",
    "**Answer:** B-cell lymphoma",
    "Answer: C-peptide",
    "Answer: C=O stretch",
    "Answer: C. albicans",
    "The answer is E. coli.",
    "#### D-dimer",
    "Bee",
    "A) 1 eV\nB) 5 eV",
    "(A) 1 eV\n\n(B) 5 eV\n",
    "B) 5 eV or C) 6 eV",
    "B) 5 eV C) 6 eV",
    "B) is wrong",
    "B) " + "5 eV " * 20,
    "It is one of\n**A)** 1 eV\n**B)** 5 eV",
]


@pytest.mark.parametrize(("text", "expected"), LETTERS.items())
def test_letters(text, expected):
    assert extract_answer(text, "letter") == expected
    assert verify(expected, "B", "letter") == (CORRECT if expected == "B" else WRONG)


@pytest.mark.parametrize("text", NO_LETTER)
def test_a_letter_in_prose_is_no_answer(text):
    assert extract_answer(text, "letter") is None


@pytest.mark.parametrize(
    ("text", "answer", "verdict"),
    [
        ("<answer> New  York. </answer>", "New York.", CORRECT),
        ("\\boxed{\\text{new york}}", "\\text{new york}", CORRECT),
        ("The answer is New York. It is large.", "New York", CORRECT),
        ("#### New York", "New York", CORRECT),
        ("#### New York ####\nThis is a city.", "New York", CORRECT),
        ("#### C#", "C#", WRONG),
        ("new york", "new york", CORRECT),
        ("\\boxed{York} The answer is New York", "York", WRONG),
        ("<answer>New York</answer> \\boxed{York}", "York", WRONG),
        ("I do not know; perhaps it is New York, but I would have to look at a map.", None, NO_ANSWER),
        ("\\boxed{New Yorkk}", "New Yorkk", WRONG),
        ("<answer></answer>", None, NO_ANSWER),
    ],
)
def test_text(text, answer, verdict):
    assert extract_answer(text, "text") == answer
    assert verify(answer, "New York", "text") == verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: St. Louis", "St. Louis"),
        ("Answer: Paris. It is the capital of France.", "Paris"),
        ("Answer: J. K. Rowling. She wrote it in 1997.", "J. K. Rowling"),
        ("Answer: Paris. It's the capital of France.", "Paris"),
        ("Answer: No. Therefore, the claim is false.", "No"),
        ("Answer: Yes! All bloops are lazzies.", "Yes"),
        ("Answer: Yes; because Tom lies.", "Yes"),
        ("I'll give the answer in the form: yes or no.\n\nyes", None),
        ("**Final Answer**\n\nJ. K. Rowling.\n", "J. K. Rowling"),
        ("**Answer:** 10 a.m. Monday", "10 a.m. Monday"),
        ("answer = a < b", "a < b"),
        ("Answer: list<int>", "list<int>"),
        ("Answer：x = 1; y = 2", "x = 1; y = 2"),
        ("<p>Answer: St. Louis</p>", "St. Louis"),
        ("Answer: St. Louis<br>It is a city.", "St. Louis"),
        ("Answer: St. Louis\nIt is a city.", "St. Louis"),
        ('{"answer": "St. Louis", "state": "Missouri"}', "St. Louis"),
        ("The answer is Missouri. It is a state.", "Missouri"),
    ],
)
def test_a_text_after_a_label_is_the_whole_line(text, answer):
    assert extract_answer(text, "text") == answer


def test_a_decimal_without_a_zero_is_not_a_whole_number() -> None:
    assert verify(".5", "5", "text") == WRONG
    assert verify("**.5**", ".5", "text") == CORRECT
    assert verify("5.", "5", "text") == CORRECT


def test_a_text_that_is_too_long_is_not_compared_by_its_beginning():
    answer = extract_answer(f"<answer>New York{' ' * 300}</answer>", "text")
    assert verify(answer, "New York", "text") == CORRECT
    answer = extract_answer(f"<answer>New York {'or ' * 300}</answer>", "text")
    assert answer is not None
    assert len(answer) == extract.MAX_ANSWER_CHARS
    assert verify(answer, answer[:-1], "text") == WRONG


# --- LaTeX without algebra ------------------------------------------------------------------------

FORMULAS = {
    "so \\boxed{\\dfrac{1}{2}}.": "\\frac{1}{2}",
    "\\boxed{x = 5}": "x=5",
    "$\\boxed{(3, \\tfrac\\pi2)}$": "(3,\\tfrac\\pi2)",
    "\\boxed{1}. Then \\boxed{\\frac{\\sqrt{3}}{2}}": "\\frac{\\sqrt{3}}{2}",
    "\\boxed{1} and \\boxed{\\frac{\\sqrt{3}}{2}}": "1,\\frac{\\sqrt{3}}{2}",
    "<answer>$x^2$</answer>": "x^{2}",
    "<answer>It is $x^2$</answer>": "x^{2}",
    "The answer is $\\sqrt 2$.": "\\sqrt{2}",
    "The answer is \\(1.5\\). Done.": "1.5",
    "The final answer is:\n\\[\n  x^{2} + 1\n\\]\nDone.": "x^{2}+1",
    "Answer: 3/4": "3/4",
    "#### \\frac12": "\\frac{1}{2}",
    "Answer: $3$ or $-3$": "3, -3",
    "The answer is $18. She has $5 left.": "18",
    "\\boxed{\\text{Evelyn}}": "\\text{Evelyn}",
    "\\boxed{7}. I hope the answer is clear.": "7",
    "\\boxed{7}. The answer is in $[0, 9]$.": "7",
    "x < 5": "x<5",
    "$\\frac{1}{2}$": "\\frac{1}{2}",
    "<think>\\boxed{1}</think>\\boxed{2}": "2",
    "\\boxed{no idea}": "no idea",
    "\\boxed{\\begin{pmatrix} 1 \\\\[2pt] 2 \\end{pmatrix}}": "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    "\\boxed{√13}": "\\sqrt{13}",
}
NO_FORMULA = [
    "",
    "x in the set",
    "3 + 4 = 7",
    "I think it is 7.",
    "\\boxed{7",
    "the answer is clear",
    "Step 3: add\nand so on",
    "\\boxed{ }",
    "#### 3. Add",
]


@pytest.mark.parametrize(("text", "expected"), FORMULAS.items())
def test_formulas(text, expected):
    assert extract_answer(text, "latex") == expected


@pytest.mark.parametrize("text", NO_FORMULA)
def test_prose_is_no_formula(text):
    assert extract_answer(text, "latex") is None


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("\\dfrac12", "\\frac{1}{2}", CORRECT),
        ("0.5", "\\frac12", CORRECT),
        ("1/3", "0.333333", WRONG),
        ("10,\\!000", "10000", CORRECT),
        ("\\$18.90", "18.9", CORRECT),
        ("50\\%", "50", CORRECT),
        ("50\\%", "0.5", None),
        ("x=5", "5", CORRECT),
        ("x=5", "6", WRONG),
        ("5", "x=5", CORRECT),
        ("x=5 or x=6", "6", None),
        ("1011_2", "1011", WRONG),
        ("\\left( 1 , 2 \\right)", "(1,2)", CORRECT),
        ("(2,1)", "(1,2)", None),
        ("\\text{Evelyn}", "evelyn", CORRECT),
        ("neEvly", "\\text{Evelyn}", WRONG),
        ("\\text{(B)}", "\\textbf{B}", CORRECT),
        ("4 2", "42", None),
        ("1 \\quad 2", "12", None),
        ("\\text{no \\ solution}", "\\text{no solution}", CORRECT),
        ("1  2", "1\\ 2", CORRECT),
        ("1 1/2", "11/2", WRONG),
        ("7 \\cdot 10^4", "7 \\times 10^{4}", CORRECT),
        ("{1", "1", WRONG),
        ("1}{", "1", WRONG),
        ("", "1", WRONG),
        ("1" * 600, "1" * 500, WRONG),
        ("2^10", "2^{10}", CORRECT),
        ("2^{1}0", "2^{10}", None),
        ("\\begin{pmatrix} 1 \\\\[6pt] -2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}", CORRECT),
        ("\\begin{pmatrix} [1] \\\\ [2] \\end{pmatrix}", "\\begin{pmatrix} [1] \\\\ 2 \\end{pmatrix}", None),
        ("\\large\\bf x+5", "x+5", CORRECT),
        ("x+\\color{blue}{5}", "x+5", CORRECT),
        ("{\\color{red} 5}", "5", CORRECT),
        ("\\{1\\}", "1", None),
    ],
)
def test_comparison_by_notation(answer, gold, verdict):
    assert compare_latex(answer, gold_latex(gold) or "") == verdict


def test_a_formula_that_is_too_long_is_not_compared_in_part():
    answer = extract_answer(f"\\boxed{{42 + {'0 + ' * 200}7}}", "latex")
    assert answer is not None
    assert len(answer) == MAX_LATEX_CHARS
    assert compare_latex(answer, "42") == WRONG


@given(st.text(alphabet="0123456789.,/-+ %$\\\\{}()[]^_fracsqtexleigh \u00b2\u221a\u2212", max_size=40))
def test_cleaning_latex_twice_is_cleaning_it_once(text):
    once = clean_latex(text)
    assert clean_latex(once) == once


MEGABYTE = 1_000_000
ADVERSARIAL = {
    piece: (piece * (MEGABYTE // len(piece) + 1))[:MEGABYTE]
    for piece in [
        "\\boxed{",
        "}",
        "{",
        "<answer>",
        "</answer>",
        "<final_answer ",
        "####",
        "#",
        "# ",
        "answer ",
        "answer is ",
        "answer: ",
        "answer:\n",
        "the ",
        "9",
        "9,",
        "1e9",
        "1/",
        " ",
        "\n",
        "*",
        "\\",
        "\\\\",
        "\\frac{",
        "-",
        "<",
        "</think>",
        "<strategy_",
        "<strategy>",
        "answer*_` ",
        "final ",
        "result = ",
        "\u2212",
        "a",
        "9 ",
        ".",
        "$",
        "<strategy_1_outcome>",
        "(",
        "\r\n",
        "\\boxed{9}",
        "#### 9\n",
        "\t",
        "_",
        "é",
    ]
}


def plain_scan_seconds() -> float:
    """Seconds of one pass over a megabyte in Python; the unit for linear time on this machine."""
    text = "ab" * (MEGABYTE // 2)
    start = time.process_time()
    Counter(text)
    sum(1 for c in text if c == "a")
    return max(time.process_time() - start, 0.02)


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_long_texts_take_linear_time_for_every_kind(piece):
    text = ADVERSARIAL[piece][: MEGABYTE // 20]
    limit = 20 * plain_scan_seconds()
    start = time.process_time()
    for kind in sorted(set(KINDS) - {"number"}):
        answer = extract_answer(text, kind)
        KINDS[kind].normalize(text)
        KINDS[kind].gold(text)
        KINDS[kind].compare(text, "7")
        assert answer is None or len(answer) <= MAX_LATEX_CHARS
    assert time.process_time() - start < limit


@pytest.mark.parametrize("piece", ADVERSARIAL)
@pytest.mark.parametrize("tail", ["x", "\n\\boxed{42}"])
def test_a_megabyte_of_anything_takes_linear_time(piece, tail):
    text = ADVERSARIAL[piece] + tail
    limit = 40 * plain_scan_seconds()
    start = time.process_time()
    answer = extract_answer(text, "number")
    verify(answer, "42", "number")
    normalize_number(text)
    token_f1(text, "42")
    assert time.process_time() - start < limit
    assert answer is None or len(answer) <= extract.MAX_ANSWER_CHARS
    if tail.endswith("}"):
        assert answer == "42"


def reference_f1(a: list[str], b: list[str]) -> float:
    rest, shared = list(b), 0
    for token in a:
        if token in rest:
            rest.remove(token)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(a), shared / len(b)
    return 2 * precision * recall / (precision + recall)


TOKENS = st.lists(st.sampled_from(["red", "blue", "7", "0.5", "x"]), max_size=6)


@given(TOKENS, TOKENS)
def test_token_f1_is_the_multiset_f1(a, b):
    assert token_f1(" ".join(a), " ".join(b)) == pytest.approx(reference_f1(a, b))
    assert 0 <= token_f1(" ".join(a), " ".join(b)) <= 1


def test_token_f1_of_numbers_does_not_reward_shared_digits():
    assert token_f1("1,200.0", "1200") == 1
    assert token_f1("-5", "5") == 0
    assert token_f1("1201", "1200") == 0
    assert token_f1(None, "1200") == 0
    assert token_f1("", "1200") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a<think>b</think>c", "c"),
        ("<think>b", ""),
        ("<think>\nb</think>c<think>d", "c"),
        ("[THINK]b[/THINK]c", "c"),
        ("c [THINK]d", "c "),
        ("b</think>c", "c"),
        ("c", "c"),
        ("<think>a</think><think>b</think>", ""),
    ],
)
def test_only_the_text_after_the_thoughts_counts(text: str, expected: str) -> None:
    assert after_thinking(text) == expected
