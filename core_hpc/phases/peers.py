"""What an update reads of the other models and of the problems, shared by the options that need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from core_hpc.models.prompts import PromptBuilder
from core_hpc.problems.splits import TRAIN
from core_hpc.runs.folder import Run
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import ROLLOUTS, ROW_KEY
from core_hpc.training.batching import Row


def peers_of(run: Run, model: str) -> list[str]:
    """The names of the other models of the team."""
    return [m.name for m in run.config.team if m.name != model]


def peer_tasks(run: Run, key: TaskKey, phase: str) -> list[TaskKey]:
    """The tasks of the other models in a phase, in the iteration of an update task."""
    parts = range(run.graph().num_parts)
    return [TaskKey(key.iteration, phase, peer, part) for peer in peers_of(run, key.model) for part in parts]


def questions_of(run: Run) -> dict[str, str]:
    """The question of each training problem, by its id."""
    return dict(run.split(TRAIN).select("problem_id", "question").rows())


def with_texts(run: Run, key: TaskKey, phase: str, found: pl.DataFrame) -> pl.DataFrame:
    """Completions of the peers in a phase, with their texts and questions, in the order of `found`.

    Args:
        key: an update task.
        phase: the phase of all completions.
        found: columns of ROW_KEY, and others that are kept.
    """
    texts = shards.read_tasks(run.root, peer_tasks(run, key, phase), ROLLOUTS, columns=(*ROW_KEY, "text"))
    question = pl.col("problem_id").replace_strict(questions_of(run), return_dtype=pl.String)
    return found.join(texts, on=ROW_KEY, how="inner", maintain_order="left").with_columns(question=question)


def row_of_peer(
    found: Mapping[str, Any],
    builder: PromptBuilder,
    stops: Sequence[str],
    *,
    ends: bool = True,
    max_tokens: int | None = None,
    **fields: Any,
) -> Row | None:
    """A peer's completion as a row of the builder's model: its plain prompt, its own token ids.

    The model has not sampled it, so the row has no behaviour log-probabilities. None: the model could
    not sample all of it, because it would have ended inside the text, or before its last token.

    Args:
        found: columns of ROW_KEY, text, question.
        builder: prompts of the model that learns.
        stops: strings that end a text of this model.
        ends: False for a completion that was cut at the token limit. It stays without an end.
        max_tokens: most tokens of a completion of this model; None: any number.
        fields: the other fields of the row.
    """
    if builder.early_end(found["text"], stops) is not None:
        return None
    completion = builder.completion_ids(found["text"], stops, ends=ends)
    if max_tokens is not None and len(completion) > max_tokens:
        return None
    return Row(
        key=(found["problem_id"], found["phase"], found["sample_index"], found["model"]),
        problem_id=found["problem_id"],
        prompt_token_ids=builder.build(found["question"]),
        completion_token_ids=completion,
        behaviour_logprobs=None,
        **fields,
    )
