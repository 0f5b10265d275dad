"""The examples of a warm-up as token ids: the prompt of the run, and the worked solution.

In: frozen problems of a warm-up, and the prompts of its model. Out: token ids, or the message about
an example that is too long, or in which the model would end. A start checks them
(`controller/prepare.py`), and the phase encodes them (`warmup.py`). Nothing heavy is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from core_hpc.common.errors import InputError
from core_hpc.models.prompts import PromptBuilder
from core_hpc.problems.splits import HINTED
from core_hpc.protocol.hints import make_hint

HINT_TOKENS = 1536
LONGEST_CHECKED = 200
"""Examples whose length a start checks: the longest ones, by characters."""


@dataclass(frozen=True)
class Example:
    """An example of a warm-up. `lacks_hint`: it is of a source `hinted`, but its solution gives no hint."""

    problem_id: str
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    lacks_hint: bool


def encode_example(
    problem: Mapping[str, Any], builder: PromptBuilder, stops: Sequence[str], *, limit_tokens: int
) -> Example:
    """Encode a row of `schema.PROBLEMS`. `limit_tokens` is the context of the model.

    Raises:
        InputError: the example is longer, or the model would end inside the solution.
    """
    source, solution = _checked_solution(problem, builder, stops)
    is_hinted = source == HINTED
    hint = _hint(problem, solution, builder.tokenizer) if is_hinted else None
    prompt = builder.build(problem["question"], hint)
    completion = builder.completion_ids(solution, stops)
    needed = len(prompt) + len(completion)
    if needed > limit_tokens:
        raise InputError(
            f"warmup.{source}: the problem {problem['problem_id']} needs {needed} "
            f"tokens with its solution, but the model has {limit_tokens} tokens of context; leave it out"
        )
    return Example(problem["problem_id"], prompt, completion, lacks_hint=is_hinted and hint is None)


def check_examples(problems: pl.DataFrame, builder: PromptBuilder, stops: Sequence[str], *, limit_tokens: int) -> None:
    """Check that the model would end inside no solution, and that the longest examples fit into its context.

    Raises:
        InputError: the first problem for which this is not so.
    """
    for problem in problems.iter_rows(named=True):
        _checked_solution(problem, builder, stops)
    characters = pl.col("question").str.len_chars() + pl.col("metadata").str.len_chars()
    for problem in problems.sort(characters, descending=True).head(LONGEST_CHECKED).iter_rows(named=True):
        encode_example(problem, builder, stops, limit_tokens=limit_tokens)


def _checked_solution(problem: Mapping[str, Any], builder: PromptBuilder, stops: Sequence[str]) -> tuple[str, str]:
    """The field of the warm-up that a problem is from, and its solution.

    Raises:
        InputError: the model would end inside the solution.
    """
    metadata = json.loads(problem["metadata"])
    source, solution = HINTED if metadata.get(HINTED) else "problems", metadata["solution"]
    if (end := builder.early_end(solution, stops)) is not None:
        raise InputError(
            f"warmup.{source}: the solution of the problem {problem['problem_id']} contains {end!r}, at which the "
            "model ends its texts; leave the problem out, or set other stop_strings for the model"
        )
    return source, solution


def _hint(problem: Mapping[str, Any], solution: str, tokenizer: Any) -> str | None:
    """The solution as a hint, made as in the hint phase."""
    return make_hint(
        solution,
        problem["gold"],
        problem["answer_kind"],
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        detokenize=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        max_tokens=HINT_TOKENS,
        style="full",
    )
