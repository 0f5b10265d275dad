"""Hints: the source, the removal of answers, the cut; no hint ever states the answer."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.answers import extract_answer, verify
from core_hpc.protocol.hints import cut_to_tokens, make_hint, remove_answers
from core_hpc.schema import CORRECT


class WordTokenizer:
    """Tokens are words with the space before them; counts the characters it was given."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.num_chars = 0

    def tokenize(self, text: str) -> list[int]:
        self.num_chars += len(text)
        ids = []
        for word in re.findall(r"\s*\S+|\s+$", text):
            if word not in self.words:
                self.words.append(word)
            ids.append(self.words.index(word))
        return ids

    def detokenize(self, ids) -> str:
        return "".join(self.words[i] for i in ids)


def hint(text, gold="8", max_tokens=1536):
    tokenizer = WordTokenizer()
    return make_hint(text, gold, "number", tokenizer.tokenize, tokenizer.detokenize, max_tokens)


REMOVED = {
    "Add. <final_answer>8</final_answer>": "Add.",
    "Add. <answer>8": "Add.",
    "Add. <OUTCOME>8</OUTCOME> Then stop.": "Add.   Then stop.",
    "Add.\n8</answer>\nStop.": "Add.\n\nStop.",
    "Add. <strategy_2_outcome>8</strategy_2_outcome>": "Add.",
    "Add. <result>\n8\n</result>": "Add.",
    "Add: \\boxed{8}": "Add:",
    "Add: \\boxed{\\frac{8}{\\text{1}}} ok": "Add:   ok",
    "Add: \\boxed{8": "Add:",
    "Add: \\boxed 8 ok": "Add:   ok",
    "Add: \\\\boxed{8} ok": "Add:   ok",
    "4 + 7 = 11. 11 - 3 = 8. #### 8": "4 + 7 = 11. 11 - 3 = 8.",
    "Add.\n####\n8\nEnd.": "Add.\n\nEnd.",
    "Add.\n**Final Answer**\n\n8\n": "Add.",
    "Add.\nThe final answer is 8.\nGood.": "Add.\n\nGood.",
    "Add.\nAnswer: 8": "Add.",
    "Add.\n**Answer:** 8": "Add.",
    "Add.\nFinal result = 8": "Add.",
    "Add.\nOutcome: 8": "Add.",
    "Add.\nThe answer to the question is 8": "Add.",
    "Add.\nThe answer should be 8": "Add.",
    "Add.\nanswer\nis 8": "Add.",
    "<think>Add 4.</think>Then 3.": "Add 4. Then 3.",
}


@pytest.mark.parametrize(("text", "expected"), REMOVED.items())
def test_answer_payloads_are_removed(text, expected):
    assert re.sub(r"\s+", " ", remove_answers(text)) == re.sub(r"\s+", " ", expected)


def test_the_computation_stays():
    text = "First 4 + 7 = 11.\nThen 11 - 3 = 8.\n#### 8"
    assert hint(text) == "First 4 + 7 = 11.\nThen 11 - 3 = 8."


NO_HINTS = [
    "", " \n", "8", "**8.**", "$8", "<answer>8</answer>", "8.0", "#### 8", "\\boxed{8}", "The answer is 8.", "---\n#### 8",
    "<answer>\n 8\n<answer>8",
]


@pytest.mark.parametrize("text", NO_HINTS)
def test_an_empty_hint_or_the_gold_answer_itself_is_no_hint(text):
    assert hint(text) is None


def test_only_a_strategy_whose_own_outcome_verifies_is_a_hint():
    wrong = "<strategy id=1>Guess. <outcome>9</outcome></strategy>"
    right = '<strategy id="2">Add both. <strategy_2_outcome>8</strategy_2_outcome></strategy>'
    behind = "<strategy id=3>Count up.</strategy>\n<strategy_3_outcome>8</strategy_3_outcome>"
    silent = "<strategy id=4>Think.</strategy>"
    final = "<final_answer>8</final_answer>"
    assert hint(wrong + right + final) == "Add both."
    assert hint(wrong + behind + final) == "Count up."
    assert hint(behind + right + final) == "Count up."
    assert hint(wrong + silent + final) is None
    assert hint("<strategy id=1>Cut off. " + final) is None
    assert hint("Add both. " + final) == "Add both."


def test_a_hint_is_cut_to_the_tokens_of_the_student():
    text = " ".join(f"step{i}" for i in range(100)) + "\n#### 8"
    assert hint(text, max_tokens=3) == "step0 step1 step2"
    assert hint(text, max_tokens=100).endswith("step99")


def test_the_answer_is_removed_before_the_cut_and_the_rest_checked_after_it():
    assert hint("\\boxed{8} add both numbers", max_tokens=2) == "add both"
    assert hint("8 eggs and more", max_tokens=1) is None


def test_only_a_bounded_beginning_of_a_long_text_is_tokenised():
    tokenizer = WordTokenizer()
    cut = cut_to_tokens("word " * 1_000_000, tokenizer.tokenize, tokenizer.detokenize, 100)
    assert cut.split() == ["word"] * 100
    assert tokenizer.num_chars < 20_000


def test_long_tokens_do_not_cut_a_hint_short():
    tokenizer = WordTokenizer()
    text = " ".join(f"{i}" * 400 for i in range(1, 60))
    assert len(cut_to_tokens(text, tokenizer.tokenize, tokenizer.detokenize, 50).split()) == 50


def test_bytes_as_tokens_and_a_cut_inside_a_character():
    cut = cut_to_tokens("aé" * 50, lambda t: list(t.encode()), lambda ids: bytes(ids).decode(errors="replace"), 8)
    assert cut == "aéaéa"


@given(st.text(max_size=60), st.integers(1, 30))
def test_a_cut_text_fits_when_it_is_tokenised_again(text, max_tokens):
    def tokenize(t):  # pairs of bytes: where a pair begins depends on everything before it
        data = t.encode()
        return [int.from_bytes(b"\1" + data[i : i + 2], "big") for i in range(0, len(data), 2)]

    def detokenize(ids):
        return b"".join(i.to_bytes(3, "big").lstrip(b"\0")[1:] for i in ids).decode(errors="replace")

    cut = cut_to_tokens(text, tokenize, detokenize, max_tokens)
    assert len(tokenize(cut)) <= max_tokens


FRAGMENTS = st.sampled_from([
    "8", " 8 ", "<answer>", "</answer>", "<final_answer>", "\\boxed{", "}", "{", "#### ", "the answer is ", "ans", "wer: ", "Answer:",
    "\n", "word ",
    "is ", "=", "**", "4 + 4 = 8", "<strategy id=1>", "</strategy>", "<outcome>", "</outcome>", "final ", "####", "#", "<", ">", "\\",
    "$", "</think>",
])


@given(st.lists(FRAGMENTS, max_size=25).map("".join))
def test_no_hint_states_the_answer(text):
    result = hint(text)
    if result is not None:
        assert result.strip()
        assert verify(extract_answer(result, "number"), "8", "number") != CORRECT
        assert not any(marker in result for marker in ("boxed{", "<answer>", "<final_answer>"))


@given(st.lists(FRAGMENTS, max_size=25).map("".join))
def test_removal_leaves_no_marked_payload(text):
    rest = remove_answers(text)
    assert not re.search(r"<(final_)?answer>\s*8|boxed\{[^}]*8|####\s*8|answer is\s+8", rest)


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{", "}", "{", "<answer>", "</answer>", "<answer>8</answer>", "####", "# ", "answer ", "answer is ", "answer:\n", "the ",
        "9", " ", "\n", " \n", "*", "\\", "<", "<strategy>", "</strategy>", "<strategy>8</strategy>", "<strategy_1_outcome>",
        "result = ", "a", "the final answer\n", "\t",
    ],
)
@pytest.mark.parametrize("ends", [("", "x"), ("x ", "\n\\boxed{8}")])
def test_a_megabyte_of_anything_takes_linear_time(piece, ends):
    text = ends[0] + piece * (1_000_000 // len(piece)) + ends[1]
    start = time.process_time()
    make_hint(text, "8", "number", lambda t: list(t.encode()), lambda ids: bytes(ids).decode(errors="replace"), 100)
    assert time.process_time() - start < 10
