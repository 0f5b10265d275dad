"""Lessons: a model learns the successes of its peers where it failed itself (`update.teach`).

In: the scores of an iteration, the cold rollouts of the peers, and the model's own rows. Out: rows
for the model's own update (METHOD.md section 9.2): texts of peers in the model's own tokens, on its
own prompt without a hint, and own correct completions that are rehearsed beside them. The paper
does not have this option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from core_hpc.common.seeds import stable_uniform
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.context import TaskContext
from core_hpc.phases.peers import row_of_peer, with_texts
from core_hpc.phases.reliance import Rate
from core_hpc.protocol.lessons import choose_lessons, scheduled_weight
from core_hpc.store.schema import COLD, ROW_KEY
from core_hpc.training.batching import Row


def lesson_rows(context: TaskContext, scores: pl.DataFrame, own: Sequence[Row], rate: Rate | None) -> list[Row]:
    """The texts of peers that the model learns in this iteration, and then the rehearsed ones.

    Args:
        context: the update task of the student.
        scores: rows of SCORES of the iteration, of all models.
        own: the model's own rows.
        rate: only `teacher: likelihood` needs it.
    """
    run, key, teach = context.run, context.key, context.run.config.update.teach
    weight = scheduled_weight(teach.weight, teach.weight_end, teach.weight_iterations, key.iteration)
    if weight == 0:
        return []
    found = with_texts(run, key, COLD, successes(scores, key.model))
    max_tokens = run.config.sampling_of(context.model, COLD).max_new_tokens
    builder, stops = context.prompt_builder(context.model), context.stop_strings(context.model)
    candidates = candidate_rows(found, builder, stops, weight=weight, max_tokens=max_tokens)
    taught = [candidates[i] for i in _chosen(context, found, candidates, rate) if candidates[i] is not None]
    lessons = [replace(row, objective=teach.objective) for row in taught if row is not None]
    right = scores.filter(pl.col("model") == key.model, pl.col("correct"), ~pl.col("truncated"))
    right = right.select("problem_id", "phase", "sample_index")
    return lessons + _rehearsed(context, own, frozenset(right.iter_rows()), len(lessons), weight)


def successes(scores: pl.DataFrame, student: str) -> pl.DataFrame:
    """The correct cold completions of the peers where all cold completions of the student failed.

    They are sorted by problem, model and sample index, with their reward. A completion that was cut
    at the token limit is left out: without its end it would teach a model not to end.
    """
    cold = scores.filter(pl.col("phase") == COLD)
    own = cold.filter(pl.col("model") == student).group_by("problem_id").agg(solved=pl.col("correct").any())
    failed = own.filter(~pl.col("solved"))["problem_id"].implode()
    right = pl.col("correct") & ~pl.col("truncated")
    wanted = (pl.col("model") != student) & right & pl.col("problem_id").is_in(failed)
    return cold.filter(wanted).select(*ROW_KEY, "reward").sort("problem_id", "model", "sample_index")


def candidate_rows(
    found: pl.DataFrame, builder: PromptBuilder, stops: tuple[str, ...], *, weight: float, max_tokens: int
) -> list[Row | None]:
    """Peers' completions as rows of the builder's model, in the order of `found`.

    None stands for a text in which the model would have ended, or that is longer than `max_tokens` in
    its tokens.

    Args:
        found: columns of ROW_KEY, text, question.
        stops: strings that end a text of the model.
        weight: weight in the loss.
        max_tokens: most tokens of a completion.
    """
    return [
        row_of_peer(r, builder, stops, max_tokens=max_tokens, advantage=1.0, weight=weight, lesson="taught")
        for r in found.iter_rows(named=True)
    ]


def _chosen(context: TaskContext, found: pl.DataFrame, candidates: list[Row | None], rate: Rate | None) -> list[int]:
    """Indices of the candidates that are learned, at most `max_per_problem` of each problem."""
    run, key, teach = context.run, context.key, context.run.config.update.teach
    usable = [i for i, row in enumerate(candidates) if row is not None]
    preference: dict[int, float]
    if teach.teacher == "score":
        preference = {i: found["reward"][i] for i in usable}
    elif teach.teacher == "random":
        draws = found.select("problem_id", "model", "sample_index").rows()
        preference = {i: stable_uniform(run.config.seed, "teach", key.iteration, key.model, *draws[i]) for i in usable}
    else:
        assert rate is not None
        rows = [row for row in candidates if row is not None]
        preference = dict(zip(usable, rate(rows) if rows else (), strict=True))
    order = {model.name: rank for rank, model in enumerate(run.config.team)}
    chosen = []
    for problem in dict.fromkeys(found["problem_id"]):
        members = [i for i in usable if found["problem_id"][i] == problem]
        picked = choose_lessons(
            [preference[i] for i in members],
            ranks=[order[found["model"][i]] for i in members],
            sample_indices=[found["sample_index"][i] for i in members],
            texts=[found["text"][i] for i in members],
            at_most=teach.max_per_problem,
        )
        chosen += [members[n] for n in picked]
    return chosen


def _rehearsed(
    context: TaskContext,
    own: Sequence[Row],
    right: frozenset[tuple[object, ...]],
    num_lessons: int,
    weight: float,
) -> list[Row]:
    """Own correct cold completions, drawn without replacement, in the order of the own rows."""
    run, key, teach = context.run, context.key, context.run.config.update.teach
    known = [row for row in own if not row.rescue and row.key in right]

    def draw(row: Row) -> float:
        *_, sample_index = row.key
        assert isinstance(sample_index, int)
        return stable_uniform(run.config.seed, "rehearse", key.iteration, key.model, row.problem_id, sample_index)

    wanted = {row.key for row in sorted(known, key=draw)[: math.floor(teach.rehearsal * num_lessons + 0.5)]}
    return [
        replace(
            row,
            key=(*row.key, "rehearsed"),
            behaviour_logprobs=None,
            advantage=1.0,
            weight=weight,
            objective=teach.objective,
            lesson="rehearsed",
        )
        for row in known
        if row.key in wanted
    ]
