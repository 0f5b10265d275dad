"""Examples of a warm-up as token ids. tests/unit/controller/test_prepare.py has those that are too long."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from core_hpc.common.errors import InputError
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.warmup_examples import LONGEST_CHECKED, check_examples, encode_example
from tests.support.tiny import byte_tokenizer

BUILDER = PromptBuilder(byte_tokenizer(), "plain", "Think.")


@pytest.mark.parametrize(
    ("metadata", "hint", "lacks_hint"),
    [
        ({"solution": "3 plus 4 is a sum. #### 7"}, None, False),
        ({"solution": "3 plus 4 is a sum. #### 7", "hinted": True}, "3 plus 4 is a sum.", False),
        ({"solution": "#### 7", "hinted": True}, None, True),
    ],
)
def test_a_hinted_example_shows_its_solution_or_is_counted(
    metadata: dict[str, Any], hint: str | None, lacks_hint: bool
) -> None:
    problem = {
        "problem_id": "p",
        "question": "3 + 4?",
        "gold": "7",
        "answer_kind": "number",
        "metadata": json.dumps(metadata),
    }
    example = encode_example(problem, BUILDER, ("\nQuestion:",), limit_tokens=1000)
    assert example.prompt_token_ids == BUILDER.build("3 + 4?", hint)
    assert BUILDER.tokenizer.decode(list(example.completion_token_ids)) == f" {metadata['solution']}\nQuestion:"
    assert example.lacks_hint == lacks_hint


@pytest.mark.parametrize("hinted", [False, True])
def test_a_solution_in_which_the_model_would_end_is_refused(hinted: bool) -> None:
    """A start checks all examples for this, and not only the longest ones."""
    solutions = ["3 + 4 = 7.\n#### 7", *["It is more than that. " * 9] * LONGEST_CHECKED]
    problems = pl.DataFrame(
        {
            "problem_id": f"p{k}",
            "question": "3 + 4?",
            "gold": "7",
            "answer_kind": "number",
            "metadata": json.dumps({"solution": solution, "hinted": hinted}),
        }
        for k, solution in enumerate(solutions)
    )
    source = "hinted" if hinted else "problems"
    message = rf"warmup.{source}: the solution of the problem p0 contains '\\n', at which .* stop_strings"
    with pytest.raises(InputError, match=message):
        check_examples(problems, BUILDER, ("\n",), limit_tokens=1000)
    with pytest.raises(InputError, match=message):
        encode_example(problems.row(0, named=True), BUILDER, ("\n",), limit_tokens=1000)
    check_examples(problems, BUILDER, ("\nQuestion:",), limit_tokens=1000)
