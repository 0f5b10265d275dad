r"""Model outputs that are made to hang, crash or deceive the verification.

A case is (kind, gold, text, expected answer, expected verdict); `ANY` means that the text of the
answer does not matter. Each case has a time limit, and so has the whole list.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from core_hpc.answers import verifier as verify_module
from core_hpc.answers.extract import extract_answer, token_f1
from core_hpc.answers.latex import MAX_LATEX_CHARS
from core_hpc.answers.verifier import Verifier
from core_hpc.common.errors import CoreHpcError
from core_hpc.config.evaluation import SamplingSection
from core_hpc.engines.base import Completion
from core_hpc.phases import generate
from core_hpc.protocol.distance import operation_signature
from core_hpc.protocol.hints import make_hint
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, CORRECT, NO_ANSWER, ROLLOUTS, TIMEOUT, WRONG, check_frame

ANY: Any = object()
MEGABYTE = 1_000_000
LONG = 200_000
CPU_LIMIT_S = 1.0
EXTRACTION_S = 3.0
WHOLE_LIST_S = 120.0

Case = tuple[str, str, str, Any, str]


def box(content: str) -> str:
    return rf"So it is \boxed{{{content}}}."


NUMBERS: dict[str, Case] = {
    # Size.
    "a megabyte of digits": ("number", "7", "9" * MEGABYTE, None, NO_ANSWER),
    "very many digits in a box": ("number", "7", box("9" * LONG), None, NO_ANSWER),
    "a box of 4000 digits": ("number", "7", box("9" * 4000), "9" * 256, WRONG),
    "the gold number, then digits": ("number", "42", box("42" + "0" * 300), ANY, WRONG),
    "a megabyte before the answer": ("number", "42", "so " * (MEGABYTE // 3) + box("42"), "42", CORRECT),
    "a lot after the answer": ("number", "42", box("42") + " so" * (LONG // 3), "42", CORRECT),
    "30,000 answers": ("number", "42", box("41") * 30_000 + box("42"), "42", CORRECT),
    "30,000 empty boxes": ("number", "42", box("42") + r"\boxed{}" * 30_000, None, NO_ANSWER),
    # Depth.
    "30,000 open braces": ("number", "42", r"\boxed{" + "{" * 30_000 + "42", None, NO_ANSWER),
    "1,000 nested boxes": ("number", "42", r"\boxed{" * 1000 + "42" + "}" * 1000, "42", CORRECT),
    "30,000 nested boxes": ("number", "42", r"\boxed{" * 30_000 + "42" + "}" * 30_000, "42", CORRECT),
    "30,000 open tags": ("number", "42", "<answer>" * 30_000 + "42", "42", CORRECT),
    "30,000 nested fractions": (
        "number",
        "42",
        r"\boxed{" + r"\frac{1}{" * 30_000 + "42" + "}" * 30_001,
        None,
        NO_ANSWER,
    ),
    # Huge and unusual values.
    "an exponent of a billion": ("number", "1", box("1e999999999"), "1e999999999", WRONG),
    "an exponent just above what is read": ("number", "1", box("1e129"), "1e129", WRONG),
    "a denominator of zero": ("number", "0", box("0/0"), "0/0", WRONG),
    "a power tower": ("number", "1", box("9^9^9^9"), "9^9^9^9", WRONG),
    "infinity": ("number", "1", box("inf"), "inf", WRONG),
    "not a number": ("number", "1", box("nan"), "nan", WRONG),
    "underscores as Python reads them": ("number", "1000", box("1_000"), "1_000", WRONG),
    "hexadecimal": ("number", "16", box("0x10"), "0x10", WRONG),
    "code": ("number", "4", box("__import__('os').getpid()"), "__import__('os').getpid()", WRONG),
    # Other scripts and unusual characters.
    "Arabic digits": ("number", "42", box("٤٢"), "٤٢", WRONG),
    "full-width digits": ("number", "42", box("４２"), "４２", WRONG),
    "a superscript": ("number", "42", box("4²"), ANY, WRONG),
    "a null byte in the number": ("number", "42", box("4\x002"), "4\x002", WRONG),
    "a null byte around the answer": ("number", "42", f"\x00{box('42')}\x00", "42", CORRECT),
    "a lone surrogate in the number": ("number", "42", box("4\ud8002"), "4\ud8002", WRONG),
    "lone surrogates around the answer": ("number", "42", f"\udfff{box('42')}\ud800", "42", CORRECT),
    "reversed text direction": ("number", "42", box("\u202e24\u202c"), ANY, WRONG),
    "a zero-width space in the number": ("number", "42", box("4\u200b2"), ANY, WRONG),
    "30,000 combining marks": ("number", "42", "e" + "\u0301" * 30_000 + box("42"), "42", CORRECT),
    # Tags and markers.
    "an unclosed tag": ("number", "42", "<final_answer>42", "42", CORRECT),
    "an unclosed tag with more text after it": ("number", "42", "<answer>42\nor perhaps 43", "42", CORRECT),
    "a tag closed by another": ("number", "42", "<answer>42</final_answer> 43", "42", CORRECT),
    "a tag with very many attributes": ("number", "42", f"<answer {'x' * LONG}>42</answer>", None, NO_ANSWER),
    "the question's injected answer, quoted": (
        "number",
        "7",
        "It states <final_answer>42</final_answer>. I get <final_answer>7</final_answer>",
        "7",
        CORRECT,
    ),
    "an injected answer in the thoughts": (
        "number",
        "42",
        "<think><final_answer>42</final_answer></think>I do not know.",
        None,
        NO_ANSWER,
    ),
    "thoughts that never end": ("number", "42", "<think>" * 50_000 + "the answer is", None, NO_ANSWER),
    "50,000 ends of thought": ("number", "42", "</think>" * 50_000 + "42", "42", CORRECT),
    "several answers in one box": ("number", "42", box("41, 42, 43"), "41, 42, 43", WRONG),
    "the gold number in prose": ("number", "42", "Some say 42, some say 43.", None, NO_ANSWER),
    "an answer taken back": (
        "number",
        "42",
        "The answer is 42. Sorry, the answer is not 42, the answer is 43.",
        "43",
        WRONG,
    ),
    # Texts on which regular expressions could backtrack.
    "spaces after a label": ("number", "42", "answer" + " " * LONG + ": 42", None, NO_ANSWER),
    "commas of thousands": ("number", "42", box("1" + ",000" * 60 + "x"), ANY, WRONG),
    "slashes": ("number", "42", "answer: " + "1/" * 30_000, ANY, NO_ANSWER),
    "stars and words": ("number", "42", "**answer" * 30_000, None, NO_ANSWER),
    "hashes": ("number", "42", "#" * LONG + "\n#### 42", "42", CORRECT),
    "backslashes before a brace": ("number", "42", "\\boxed{42" + "\\" * 29_999 + "}", None, NO_ANSWER),
}
OTHERS: dict[str, Case] = {
    "a huge integer": ("integer", "42", box("9" * 5000), None, NO_ANSWER),
    "an integer above 999": ("integer", "42", box("1042"), "1042", WRONG),
    "an integer with a thousand leading zeros": ("integer", "7", box("0" * 1000 + "7"), ANY, WRONG),
    "an integer as an exponent": ("integer", "100", box("1e2"), "100", CORRECT),
    "an integer in Devanagari": ("integer", "42", box("४२"), "४२", WRONG),
    "every letter": ("letter", "B", box("A, B, C, D"), "A, B, C, D", WRONG),
    "two letters": ("letter", "B", "The answer is A or B", None, NO_ANSWER),
    "a letter hidden behind spaces": ("letter", "B", box("B" + " " * 3000 + "and C"), ANY, WRONG),
    "a Cyrillic letter that looks like B": ("letter", "B", box("\u0412"), "\u0412", WRONG),
    "a full-width letter": ("letter", "B", box("\uff22"), "\uff22", WRONG),
    "the letter of the question's options": ("letter", "B", "A) 1\nB) 2\nC) 3\nD) 4\nI cannot tell.", None, NO_ANSWER),
    "very many letters": ("letter", "B", "B" * LONG, None, NO_ANSWER),
    "a megabyte of lines with single letters": ("letter", "B", "A\n" * 500_000 + "B", "B", CORRECT),
    "a letter in ten thousand boxes": ("letter", "B", (r"\boxed{A}" * 10_000) + r"\boxed{B}", "B", CORRECT),
    "text that begins as the gold text": ("text", "Paris", box("Paris " + "or London " * 100), ANY, WRONG),
    "text with a null byte": ("text", "Paris", box("Par\x00is"), "Par\x00is", WRONG),
    "text with half a character": ("text", "Paris", box("Paris\ud800"), "Paris\ud800", WRONG),
    "text in another composition": ("text", "caf\u00e9", box("cafe\u0301"), "cafe\u0301", CORRECT),
    "text whose case folds to more letters": ("text", "strasse", box("stra\u00dfe"), "stra\u00dfe", CORRECT),
    "much text in a tag": ("text", "Paris", "<answer>" + "Paris " * LONG, ANY, WRONG),
    "only decoration": ("text", "Paris", box("***...***"), "***...***", WRONG),
}
LATEX: dict[str, Case] = {
    "a megabyte of LaTeX": ("latex", "2", box("x+" * (MEGABYTE // 2)), None, NO_ANSWER),
    "more LaTeX than is compared": ("latex", "42", box("42+" + "0+" * 500 + "7"), ANY, WRONG),
    "macros that double": (
        "latex",
        "2",
        box(r"\newcommand{\a}{\b\b}\newcommand{\b}{\c\c}\newcommand{\c}{lol}\a"),
        ANY,
        WRONG,
    ),
    "a macro that calls itself": ("latex", "2", box(r"\def\a{\a}\a"), ANY, WRONG),
    "a command that writes files": ("latex", "2", box(r"\immediate\write18{touch /tmp/x}"), ANY, WRONG),
    "a file to include": ("latex", "2", box(r"\input{/etc/passwd}"), ANY, WRONG),
    "Python in the formula": ("latex", "2", box(r"__import__('os').system('true')"), ANY, WRONG),
    "a loop in Python": ("latex", "2", box(r"[1 for x in iter(int, 1)]"), ANY, WRONG),
    "braces that do not match": ("latex", "42", "<answer>42} {</answer>", "42} {", WRONG),
    "the gold formula, then garbage": ("latex", r"\frac{1}{2}", box(r"\frac{1}{2} garbage 7"), ANY, WRONG),
    "garbage, then the gold number": ("latex", "42", box("garbage 42"), ANY, WRONG),
    "the gold number among others": ("latex", "42", box("41, 42"), ANY, WRONG),
    "tiny numbers": ("latex", r"\frac{1}{2004!}", box(r"\frac{1}{2006!}"), ANY, WRONG),
    "a decimal near the fraction": ("latex", r"\frac{1}{3}", box("0.333333"), ANY, WRONG),
    "letters of the gold word": ("latex", r"\text{listen}", box(r"\text{silent}"), ANY, WRONG),
    "not a number at all": ("latex", "1", box(r"\frac{0}{0}"), ANY, WRONG),
    "infinity minus infinity": ("latex", "0", box(r"\infty-\infty"), ANY, WRONG),
    "200 minus signs": ("latex", "1", box("-" * 201 + "1"), ANY, WRONG),
    "100 roots": ("latex", "2", box(r"\sqrt{" * 40 + "2" + "}" * 40), ANY, WRONG),
    "nothing but carets": ("latex", "2", box("^" * 200), ANY, WRONG),
    "a null byte in LaTeX": ("latex", "42", box("4\x002"), ANY, WRONG),
    "half a character in LaTeX": ("latex", "42", box("4\ud8002"), ANY, WRONG),
    "a formula equal to the gold one": ("latex", "x^2+2x+1", box("(1+x)^2"), ANY, CORRECT),
}
HANGING: dict[str, Case] = {
    "a tower of powers": ("latex", "2", box("9^{9^{9^{9}}}"), ANY, TIMEOUT),
    "a tower of factorials": ("latex", "2", box("((9!)!)!"), ANY, TIMEOUT),
    "a product of a hundred million": ("latex", "2", box(r"\prod_{n=1}^{10^{8}} n"), ANY, TIMEOUT),
    "200 parentheses": ("latex", "2", box("(" * 200 + "1" + ")" * 200), ANY, TIMEOUT),
    "200 braces": ("latex", "2", box("{" * 200 + "1" + "}" * 200), ANY, TIMEOUT),
    "60 subscripts of subscripts": ("latex", "x^2+1", box("x_{" * 60 + "1" + "}" * 60), ANY, TIMEOUT),
    "a polynomial to the thousandth": ("latex", "2", box("(x+1)^{1000}"), ANY, TIMEOUT),
}
CASES = {**NUMBERS, **OTHERS, **LATEX, **HANGING}


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    made = Verifier(num_workers=2, cpu_limit_s=CPU_LIMIT_S)
    made.verify_many([("x+y", "y+x", "latex")])
    yield made
    made.close()


def test_there_are_many_cases_of_every_kind() -> None:
    assert len(CASES) == len(NUMBERS) + len(OTHERS) + len(LATEX) + len(HANGING) >= 60
    assert {case[0] for case in CASES.values()} == {"number", "integer", "latex", "letter", "text"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", CASES)
def test_extraction_gives_the_expected_answer_in_bounded_time(name: str) -> None:
    kind, gold, text, expected, _ = CASES[name]
    start = time.process_time()
    answer = extract_answer(text, kind)
    partial = token_f1(answer, gold)
    operation_signature(text)
    hint = make_hint(text, gold, kind, lambda t: [ord(c) for c in t], lambda ids: "".join(map(chr, ids)), 64)
    assert time.process_time() - start < EXTRACTION_S
    assert expected is ANY or answer == expected
    assert answer is None or len(answer) <= MAX_LATEX_CHARS
    assert 0 <= partial <= 1
    assert hint is None or len(hint) <= 64


@pytest.mark.timeout(WHOLE_LIST_S)
def test_every_verdict_is_as_expected_and_nothing_hangs(verifier: Verifier) -> None:
    claims = [(extract_answer(text, kind), gold, kind) for kind, gold, text, _, _ in CASES.values()]
    start = time.monotonic()
    verdicts = dict(zip(CASES, verifier.verify_many(claims), strict=True))
    assert time.monotonic() - start < WHOLE_LIST_S / 2
    assert verdicts == {name: case[-1] for name, case in CASES.items()}


@pytest.mark.timeout(WHOLE_LIST_S)
def test_a_phase_makes_a_row_of_every_output(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The questions contain answer tags.

    Lone surrogates are left out, because no tokenizer produces them.
    """
    monkeypatch.setattr(verify_module, "_shared", lambda: verifier)
    cases = {name: case for name, case in CASES.items() if case[2].encode("utf-8", "ignore").decode() == case[2]}
    texts = [text for _, _, text, _, _ in cases.values()]
    problems = [
        {"problem_id": name, "question": f"<final_answer>{gold}</final_answer>", "gold": gold, "answer_kind": kind}
        for name, (kind, gold, _, _, _) in cases.items()
    ]
    sampled = [
        (generate._Wanted(problem=problem, sample_index=0, prompt=(1,)), 0, Completion((i,), (0.0,), "stop"))
        for i, problem in enumerate(problems)
    ]
    context: Any = SimpleNamespace(
        stop_strings=lambda model: (),
        model=SimpleNamespace(name="m"),
        run=SimpleNamespace(run_id="r"),
        key=TaskKey(1, COLD, "m", 0),
    )
    builder: Any = SimpleNamespace(completion_text=lambda ids, stops: texts[ids[0]])
    frame = generate._rows(context, builder, COLD, sampled, SamplingSection(), adapter_iteration=0)
    check_frame(frame, ROLLOUTS, source="rows")
    assert len(cases) > len(CASES) - 5
    assert dict(frame.select("problem_id", "verdict").rows()) == {name: case[-1] for name, case in cases.items()}
    assert frame.filter(correct=True).height == sum(case[-1] == CORRECT for case in cases.values())


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
def test_a_log_probability_that_is_not_finite_stops_the_task(logprob: float) -> None:
    """NaN also marks tokens that the model has not sampled, so the update would take it for those."""
    problem = {"problem_id": "p3", "question": "?", "gold": "1", "answer_kind": "number"}
    wanted = generate._Wanted(problem=problem, sample_index=2, prompt=(1,))
    context: Any = SimpleNamespace(stop_strings=lambda model: (), model=None, key=TaskKey(1, COLD, "m", 0))
    builder: Any = SimpleNamespace(completion_text=lambda ids, stops: "#### 1")
    sampled = [(wanted, 0, Completion((1, 2), (0.0, logprob), "stop"))]
    with pytest.raises(CoreHpcError, match="not finite, for sample 2 of problem p3"):
        generate._rows(context, builder, COLD, sampled, SamplingSection(), adapter_iteration=0)


@pytest.mark.timeout(60)
def test_a_claim_that_hangs_takes_no_longer_than_its_limit(verifier: Verifier) -> None:
    start = time.process_time(), time.monotonic()
    assert verifier.verify_many([("9^{9^{9^{9}}}", "3", "latex")]) == [TIMEOUT]
    assert time.process_time() - start[0] < 0.5  # this process only waits
    assert time.monotonic() - start[1] < 20 * CPU_LIMIT_S
