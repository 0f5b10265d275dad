"""Examples of a warm-up as token ids. tests/unit/controller/test_prepare.py has those that are too long."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.warmup_examples import encode_example
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
