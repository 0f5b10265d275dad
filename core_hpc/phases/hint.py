"""The hint phase: chooses students, their teachers and their hints (METHOD.md section 1).

In: the cold rollouts of all models for one part of the problems. Out: one shard of schema.HINTS
with a row per problem and student, and the embeddings of the cold texts for the score phase
(`text_embeddings.py`). This phase samples no completions. It makes the random draws of
`hint_probability`, so the rescue phase has nothing to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.common.seeds import stable_uniform
from core_hpc.phases.context import TaskContext
from core_hpc.phases.own_functions import own_hint_text
from core_hpc.phases.score import COMPARED_COLUMNS, reward_rollouts
from core_hpc.phases.text_embeddings import FILE, embed_texts, write_embeddings
from core_hpc.problems.splits import TRAIN
from core_hpc.protocol.failures import failed_models
from core_hpc.protocol.hints import make_hint, treat_leak
from core_hpc.protocol.leaks import leak_of
from core_hpc.protocol.teacher import best_own, choose_teacher, rotated
from core_hpc.runs.contents import read_rollouts
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, HINTS


def run(context: TaskContext) -> None:
    """Choose teachers and hints for one part and publish them."""
    config, key = context.run.config, context.key
    order = [m.name for m in config.team]
    tasks = [TaskKey(key.iteration, COLD, m, key.part) for m in order]
    cold = read_rollouts(context.run, tasks, columns=COMPARED_COLUMNS)
    context.stopwatch.lap("read")
    texts = cold["text"].to_list()
    vectors = embed_texts(context, texts)
    part = "reward" if config.protocol.teacher_score == "total" else "exploit"
    cold = cold.with_columns(reward_rollouts(context, cold, vectors)[part].alias("score"))
    context.stopwatch.lap("score")
    kinds: dict[str, str] = dict(context.run.split(TRAIN).select("problem_id", "answer_kind").rows())
    rows: list[dict[str, Any]] = []
    groups = [group for _, group in cold.group_by("problem_id", maintain_order=True)]
    others = _sources(groups, order, kinds) if config.protocol.hint_source == "shuffled" else {}
    for done, group in enumerate(groups, start=1):
        rows += _hint_rows(context, group, order, kinds[group["problem_id"][0]], others)
        context.progress(done, len(groups), 0)
    frame = pl.DataFrame(rows, schema=HINTS.schema)
    context.stopwatch.lap("hint")

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        write_embeddings(folder / FILE, config.reward.distance.embedder, texts, vectors)
        return {"hints.parquet": shards.write_frame(folder / "hints.parquet", frame, HINTS)}

    manifests.publish(
        context.paths.task_folder(key),
        context.paths.task_name(key),
        fill,
        as_folder=True,
        stats=context.stats(num_cases=frame.height, num_rescues=int((frame["reason"] == "rescue").sum())),
    )


@dataclass(frozen=True)
class _Source:
    """The completion of which a hint is made."""

    problem_id: str
    model: str
    sample_index: int
    text: str
    gold: str
    answer_kind: str


_Sources = dict[str, dict[str, _Source]]
"""For each student and problem, the completion of the teacher."""


def _sources(groups: Sequence[pl.DataFrame], order: list[str], kinds: dict[str, str]) -> _Sources:
    """The teachers of all students, for the problems where they have one."""
    found: _Sources = {student: {} for student in order}
    for group in groups:
        for student in order:
            problem = group["problem_id"][0]
            if (teacher := _teacher(group, order, kinds[problem], student)) is not None:
                found[student][problem] = teacher
    return found


def _teacher(group: pl.DataFrame, order: list[str], answer_kind: str, student: str) -> _Source | None:
    """The best correct completion of the student's peers."""
    index = choose_teacher(
        model_order=order,
        models=group["model"].to_list(),
        sample_indices=group["sample_index"].to_list(),
        correct=group["correct"].to_list(),
        scores=group["score"].to_list(),
        student=student,
    )
    return None if index is None else _source_at(group, index, answer_kind)


def _source_at(group: pl.DataFrame, index: int, answer_kind: str) -> _Source:
    row = group.row(index, named=True)
    return _Source(row["problem_id"], row["model"], row["sample_index"], row["text"], row["gold"], answer_kind)


def _hint_rows(
    context: TaskContext, group: pl.DataFrame, order: list[str], answer_kind: str, others: _Sources | None = None
) -> list[dict[str, Any]]:
    """The rows of all students for one problem.

    Args:
        context: the task.
        group: the cold completions of the problem with their scores.
        order: the models of the team.
        answer_kind: kind of the problem's answer.
        others: the teachers of all problems of the part, for shuffled hints.
    """
    failed = failed_models(group["model"], group["phase"], group["correct"])
    return [
        _hint_row(
            context,
            group,
            order,
            answer_kind,
            student=student,
            cold_failed=student in failed,
            others=(others or {}).get(student, {}),
        )
        for student in order
    ]


def _hint_row(
    context: TaskContext,
    group: pl.DataFrame,
    order: list[str],
    answer_kind: str,
    *,
    student: str,
    cold_failed: bool,
    others: dict[str, _Source],
) -> dict[str, Any]:
    """The row of one student for one problem."""
    protocol = context.run.config.protocol
    row: dict[str, Any] = {
        "run_id": context.run.run_id,
        "iteration": context.key.iteration,
        "model": student,
        "problem_id": group["problem_id"][0],
        "cold_failed": cold_failed,
        "teacher_model": None,
        "teacher_sample_index": None,
        "hint": None,
        "num_hint_tokens": 0,
        "hint_draws": [False] * protocol.rescue_samples if protocol.even_budget else [],
        "leak": None,
        "hint_problem_id": None,
    }
    if protocol.scope == "failed" and not cold_failed:
        return {**row, "reason": "solved"}
    teacher = _teacher(group, order, answer_kind, student)
    if teacher is None:
        return {**row, "reason": "no_teacher"}
    source, hint, reason = _chosen_hint(context, group, student, teacher, others)
    row |= {"teacher_model": source.model, "teacher_sample_index": source.sample_index}
    if hint is None:
        return {**row, "reason": reason}
    problem = group["problem_id"][0]
    draws = [
        stable_uniform(context.run.config.seed, "hint", context.key.iteration, student, problem, k)
        < protocol.hint_probability
        for k in range(protocol.rescue_samples)
    ]
    tokenizer = context.tokenizer(context.run.config.model(student))
    num_tokens = len(tokenizer(hint, add_special_tokens=False)["input_ids"])
    return {
        **row,
        "hint": hint,
        "num_hint_tokens": num_tokens,
        "reason": "rescue",
        "hint_draws": draws,
        "leak": leak_of(hint, group["gold"][0], answer_kind),
        "hint_problem_id": source.problem_id,
    }


def _chosen_hint(
    context: TaskContext, group: pl.DataFrame, student: str, teacher: _Source, others: dict[str, _Source]
) -> tuple[_Source, str | None, str]:
    """(source, hint, reason) by `protocol.hint_source`; the hint is None if there is none."""
    hint_source = context.run.config.protocol.hint_source
    # The controls have hints in the same cases, so the teacher's hint is made for them, too.
    hint, reason = _hint_text(context, student, teacher)
    if hint is None or hint_source == "peer":
        return teacher, hint, reason
    if hint_source == "own":
        own = _own_source(group, teacher.answer_kind, student)
        return own, *_hint_text(context, student, own)
    source, hint = _shuffled(context, student, teacher, others)
    return source, hint, "no_hint" if hint is None else "rescue"


def _own_source(group: pl.DataFrame, answer_kind: str, student: str) -> _Source:
    index = best_own(
        models=group["model"].to_list(),
        sample_indices=group["sample_index"].to_list(),
        scores=group["score"].to_list(),
        student=student,
    )
    return _source_at(group, index, answer_kind)


def _shuffled(
    context: TaskContext, student: str, teacher: _Source, others: dict[str, _Source]
) -> tuple[_Source, str | None]:
    """The first hint of another problem, beginning at a drawn one; no hint if there is none."""
    run, key = context.run, context.key
    draw = stable_uniform(run.config.seed, "shuffled_hint", key.iteration, student, teacher.problem_id)
    for problem in rotated([problem for problem in others if problem != teacher.problem_id], draw):
        hint, _ = _hint_text(context, student, others[problem])
        if hint is not None:
            return others[problem], hint
    return teacher, None


def _hint_text(context: TaskContext, student: str, source: _Source) -> tuple[str | None, str]:
    """(hint, rescue), or None and the reason why there is none."""
    protocol, tokenizer = context.run.config.protocol, context.tokenizer(context.run.config.model(student))
    text = own_hint_text(context.run, source.problem_id, source.text)
    if text is None:
        return None, "no_hint"
    hint = make_hint(
        text,
        source.gold,
        source.answer_kind,
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        detokenize=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        max_tokens=protocol.hint_tokens,
        style=protocol.hint_style,
    )
    if hint is None:
        return None, "no_hint"
    hint = treat_leak(hint, source.gold, source.answer_kind, protocol.hint_leak)
    return hint, "leak" if hint is None else "rescue"
