"""What an update reads of the other models and of the problems, shared by the options that need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core_hpc.models.prompts import PromptBuilder
from core_hpc.problems.splits import TRAIN
from core_hpc.runs.folder import Run
from core_hpc.store.paths import TaskKey
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


def row_of_peer(
    found: Mapping[str, Any], builder: PromptBuilder, stops: Sequence[str], *, ends: bool = True, **fields: Any
) -> Row | None:
    """A peer's completion as a row of the builder's model: its plain prompt, its own token ids.

    The model has not sampled it, so the row has no behaviour log-probabilities. None: the model would
    have ended inside the text, so it could not sample all of it.

    Args:
        found: columns of ROW_KEY, text, question.
        builder: prompts of the model that learns.
        stops: strings that end a text of this model.
        ends: False for a completion that was cut at the token limit. It stays without an end.
        fields: the other fields of the row.
    """
    if builder.early_end(found["text"], stops) is not None:
        return None
    return Row(
        key=(found["problem_id"], found["phase"], found["sample_index"], found["model"]),
        problem_id=found["problem_id"],
        prompt_token_ids=builder.build(found["question"]),
        completion_token_ids=builder.completion_ids(found["text"], stops, ends=ends),
        behaviour_logprobs=None,
        **fields,
    )
