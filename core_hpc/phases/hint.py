"""The hint phase: chooses students, their teachers and their hints (METHOD.md section 1).

In: the cold rollouts of all models for one part of the problems. Out: one shard of schema.HINTS
with a row per problem and student, and the embeddings of the cold texts for the score phase
(`text_embeddings.py`). This phase samples no completions. It makes the random draws of
`hint_probability`, so the rescue phase has nothing to decide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.common.seeds import stable_uniform
from core_hpc.phases.context import TaskContext
from core_hpc.phases.score import score_rollouts
from core_hpc.phases.text_embeddings import FILE, embed_texts, write_embeddings
from core_hpc.problems.splits import TRAIN
from core_hpc.protocol.failures import failed_models
from core_hpc.protocol.hints import make_hint, treat_leak
from core_hpc.protocol.leaks import leak_of
from core_hpc.protocol.teacher import choose_teacher
from core_hpc.runs.contents import read_rollouts
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, HINTS


def run(context: TaskContext) -> None:
    """Choose teachers and hints for one part and publish them."""
    config, key = context.run.config, context.key
    order = [m.name for m in config.team]
    cold = read_rollouts(context.run, [TaskKey(key.iteration, COLD, m, key.part) for m in order])
    context.stopwatch.lap("read")
    texts = cold["text"].to_list()
    vectors = embed_texts(context, texts)
    part = "reward" if config.protocol.teacher_score == "total" else "exploit"
    cold = cold.with_columns(score_rollouts(context, cold, embeddings=vectors)[part].alias("score"))
    context.stopwatch.lap("score")
    kinds: dict[str, str] = dict(context.run.split(TRAIN).select("problem_id", "answer_kind").rows())
    num_problems = cold["problem_id"].n_unique()
    rows: list[dict[str, Any]] = []
    for done, (_, group) in enumerate(cold.group_by("problem_id", maintain_order=True), start=1):
        rows += _hint_rows(context, group, order, kinds[group["problem_id"][0]])
        context.progress(done, num_problems, 0)
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


def _hint_rows(context: TaskContext, group: pl.DataFrame, order: list[str], answer_kind: str) -> list[dict[str, Any]]:
    """The rows of all students for one problem. `group`: its cold completions with their scores."""
    failed = failed_models(group["model"], group["phase"], group["correct"])
    return [
        _hint_row(context, group, order, answer_kind, student=student, cold_failed=student in failed)
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
    }
    if protocol.scope == "failed" and not cold_failed:
        return {**row, "reason": "solved"}
    index = choose_teacher(
        model_order=order,
        models=group["model"].to_list(),
        sample_indices=group["sample_index"].to_list(),
        correct=group["correct"].to_list(),
        scores=group["score"].to_list(),
        student=student,
    )
    if index is None:
        return {**row, "reason": "no_teacher"}
    teacher = group.row(index, named=True)
    row |= {"teacher_model": teacher["model"], "teacher_sample_index": teacher["sample_index"]}
    tokenizer = context.tokenizer(context.run.config.model(student))
    gold = teacher["gold"]
    hint = make_hint(
        teacher["text"],
        gold,
        answer_kind,
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        detokenize=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        max_tokens=protocol.hint_tokens,
        style=protocol.hint_style,
    )
    if hint is None:
        return {**row, "reason": "no_hint"}
    hint = treat_leak(hint, gold, answer_kind, protocol.hint_leak)
    if hint is None:
        return {**row, "reason": "leak"}
    draws = [
        stable_uniform(context.run.config.seed, "hint", context.key.iteration, student, teacher["problem_id"], k)
        < protocol.hint_probability
        for k in range(protocol.rescue_samples)
    ]
    num_tokens = len(tokenizer(hint, add_special_tokens=False)["input_ids"])
    leak = leak_of(hint, gold, answer_kind)
    return {**row, "hint": hint, "num_hint_tokens": num_tokens, "reason": "rescue", "hint_draws": draws, "leak": leak}
