"""Hints: the source, the removal of answers, the cut; a hint never contains the answer."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.answers.extract import extract_answer, verify
from core_hpc.protocol.compression import compress
from core_hpc.protocol.hints import cut_to_tokens, make_hint, remove_answers
from core_hpc.store.schema import CORRECT


class WordTokenizer:
    """A tokenizer whose tokens are words with the space before them.

    It counts the tokenized characters.
    """

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


STYLES = ("full", "strategy", "compressed")


def hint(text, gold="8", max_tokens=1536, style="full"):
    tokenizer = WordTokenizer()
    return make_hint(text, gold, "number", tokenizer.tokenize, tokenizer.detokenize, max_tokens, style=style)


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
    "",
    " \n",
    "8",
    "**8.**",
    "$8",
    "<answer>8</answer>",
    "8.0",
    "#### 8",
    "\\boxed{8}",
    "The answer is 8.",
    "---\n#### 8",
    "<answer>\n 8\n<answer>8",
]


@pytest.mark.parametrize("text", NO_HINTS)
def test_there_is_no_hint_if_nothing_or_only_the_answer_remains(text):
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


def test_the_style_strategy_gives_a_correct_strategy_or_no_hint():
    wrong = "<strategy id=1>Guess. <outcome>9</outcome></strategy>"
    right = "<strategy id=2>Add both. <outcome>8</outcome></strategy>"
    assert hint(f"{wrong}{right}#### 8", style="strategy") == "Add both."
    assert hint(f"{wrong}#### 8", style="strategy") is None
    assert hint("Add both. #### 8", style="strategy") is None


# Thoughts contain drafts of the answer in words that no pattern finds.
DRAFT = "Is it 8? Yes, 8. Then \\boxed{8}. I should write <strategy id=1>Try 8.<outcome>8</outcome></strategy>."
THOUGHTS = [
    f"<think>{DRAFT}</think>",
    f"{DRAFT}\n</think>\n",
    f"[THINK]{DRAFT}[/THINK]",
    f"<think>{DRAFT}</think><think>{DRAFT}</think>",
]


@pytest.mark.parametrize("thoughts", THOUGHTS)
def test_a_hint_contains_no_thoughts(thoughts):
    assert hint(f"{thoughts}Add both numbers. #### 8") == "Add both numbers."
    assert hint(f"{thoughts}Add both numbers. #### 8", style="compressed") == "Add both numbers."
    assert hint(f"{thoughts}Add both numbers. #### 8", style="strategy") is None
    assert hint(f"{thoughts}\n\\boxed{{8}}") is None
    chosen = "<strategy id=1>Count up.<outcome>8</outcome></strategy><final_answer>8</final_answer>"
    assert {hint(thoughts + chosen, style=style) for style in STYLES} == {"Count up."}


def test_a_compressed_hint_is_the_approach_and_the_steps_that_compute():
    text = (
        "Okay, let me see! I like this one.\nWe add the eggs of both days, then subtract the broken ones.\n\n"
        "1. Eggs of both days: 4 + 7 = 11.\n2. Keep that number\n"
        "So $x \\leq 1.5 \\cdot 11$, and 11 - 3 = 8. That was easy.\n"
        "4 + 7 = 11 again: 1. Eggs of both days: 4 + 7 = 11.\nThe answer is 8."
    )
    assert hint(text, style="compressed") == (
        "We add the eggs of both days, then subtract the broken ones.\n1. Eggs of both days: 4 + 7 = 11.\n"
        "So $x \\leq 1.5 \\cdot 11$, and 11 - 3 = 8.\n4 + 7 = 11 again: 1.\nEggs of both days: 4 + 7 = 11."
    )
    assert hint("Think hard. Then rest. #### 8", style="compressed") == "Think hard."
    assert hint("8 = 8\n8 = 8\n#### 8", style="compressed") == "8 = 8"


PIECES = st.sampled_from(["Add it", " 4 + 4 = 8", ". ", "! ", "\n", "2. ", "so", " 1.5", "=", "  ", "\\leq", "\n12. "])


@given(st.lists(PIECES, max_size=20))
def test_a_compressed_text_consists_of_pieces_of_the_text_in_their_order(pieces):
    text = " ".join("".join(pieces).split())
    compressed = compress("".join(pieces)).split("\n")
    position = 0
    for line in compressed:
        assert line in text[position:]
        position = text.index(line, position) + len(line)
    assert len(set(compressed)) == len(compressed)
    assert compressed == [""] or sum("=" not in line and "leq" not in line for line in compressed) <= 1


def test_a_hint_is_cut_to_a_number_of_the_students_tokens():
    text = " ".join(f"step{i}" for i in range(100)) + "\n#### 8"
    assert hint(text, max_tokens=3) == "step0 step1 step2"
    assert hint(text, max_tokens=100).endswith("step99")


def test_the_answer_is_removed_before_the_cut_and_the_rest_is_checked_after_it():
    assert hint("\\boxed{8} add both numbers", max_tokens=2) == "add both"
    assert hint("8 eggs and more", max_tokens=1) is None


def test_a_short_hint_may_begin_far_behind_answers_that_are_removed():
    assert hint("\\boxed{8} " * 50 + "add both numbers", max_tokens=3) == "add both numbers"


def test_only_a_bounded_prefix_of_a_long_text_is_tokenized():
    tokenizer = WordTokenizer()
    cut = cut_to_tokens("word " * 1_000_000, tokenizer.tokenize, tokenizer.detokenize, 100)
    assert cut.split() == ["word"] * 100
    assert tokenizer.num_chars < 20_000


def test_a_hint_of_long_tokens_is_not_too_short():
    tokenizer = WordTokenizer()
    text = " ".join(f"{i}" * 400 for i in range(1, 60))
    assert len(cut_to_tokens(text, tokenizer.tokenize, tokenizer.detokenize, 50).split()) == 50


def test_a_cut_inside_a_character_of_a_byte_tokenizer():
    cut = cut_to_tokens("aé" * 50, lambda t: list(t.encode()), lambda ids: bytes(ids).decode(errors="replace"), 8)
    assert cut == "aéaéa"


@given(st.text(max_size=60), st.integers(1, 30))
def test_a_cut_text_fits_when_it_is_tokenized_again(text, max_tokens):
    def tokenize(t):  # tokens are pairs of bytes, so their boundaries depend on the text before them
        data = t.encode()
        return [int.from_bytes(b"\1" + data[i : i + 2], "big") for i in range(0, len(data), 2)]

    def detokenize(ids):
        return b"".join(i.to_bytes(3, "big").lstrip(b"\0")[1:] for i in ids).decode(errors="replace")

    cut = cut_to_tokens(text, tokenize, detokenize, max_tokens)
    assert len(tokenize(cut)) <= max_tokens


FRAGMENTS = st.sampled_from(
    [
        "8",
        " 8 ",
        "<answer>",
        "</answer>",
        "<final_answer>",
        "\\boxed{",
        "}",
        "{",
        "#### ",
        "the answer is ",
        "ans",
        "wer: ",
        "Answer:",
        "\n",
        "word ",
        "is ",
        "=",
        "**",
        "4 + 4 = 8",
        "<strategy id=1>",
        "</strategy>",
        "<outcome>",
        "</outcome>",
        "final ",
        "####",
        "#",
        "<",
        ">",
        "\\",
        "$",
        "</think>",
    ]
)


@given(st.lists(FRAGMENTS, max_size=25).map("".join), st.sampled_from(STYLES))
def test_no_hint_contains_the_answer(text, style):
    result = hint(text, style=style)
    if result is not None:
        assert result.strip()
        assert verify(extract_answer(result, "number"), "8", "number") != CORRECT
        assert not any(marker in result for marker in ("boxed{", "<answer>", "<final_answer>"))


@given(
    *[st.lists(FRAGMENTS, max_size=12).map("".join)] * 2,
    st.sampled_from(["</think>", "[/THINK]"]),
    st.sampled_from(STYLES),
)
def test_no_hint_contains_words_of_the_thoughts(thoughts, rest, end, style):
    shown = hint(f"{thoughts} secret = 8. {thoughts}{end}{rest}", style=style) or ""
    assert "secret" not in shown


@given(st.lists(FRAGMENTS, max_size=25).map("".join))
def test_removal_leaves_no_marked_payload(text):
    rest = remove_answers(text)
    assert not re.search(r"<(final_)?answer>\s*8|boxed\{[^}]*8|####\s*8|answer is\s+8", rest)


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "}",
        "{",
        "<answer>",
        "</answer>",
        "<answer>8</answer>",
        "####",
        "# ",
        "answer ",
        "answer is ",
        "answer:\n",
        "the ",
        "9",
        " ",
        "\n",
        " \n",
        "*",
        "\\",
        "<",
        "<strategy>",
        "</strategy>",
        "<strategy>8</strategy>",
        "<strategy_1_outcome>",
        "result = ",
        "a",
        "the final answer\n",
        "\t",
    ],
)
@pytest.mark.parametrize("ends", [("", "x"), ("x ", "\n\\boxed{8}")])
def test_a_megabyte_of_anything_takes_linear_time(piece, ends):
    assert seconds_of_a_megabyte(piece, ends, "full") < 10


@pytest.mark.parametrize("piece", [" ", "a. ", "\n1. "])
def test_a_megabyte_is_compressed_in_linear_time(piece):
    assert seconds_of_a_megabyte(piece, ("", "x"), "compressed") < 10


def seconds_of_a_megabyte(piece, ends, style):
    text = ends[0] + piece * (1_000_000 // len(piece)) + ends[1]
    start = time.process_time()
    make_hint(
        text,
        "8",
        "number",
        lambda t: list(t.encode()),
        lambda ids: bytes(ids).decode(errors="replace"),
        100,
        style=style,
    )
    return time.process_time() - start
