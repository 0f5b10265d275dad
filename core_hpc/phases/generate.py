"""The phases that sample completions: cold, rescue, evaluate. One task = one model, one part of the problems.

In: frozen problems, the adapter of the iteration before, hints for rescue. Out: one shard of schema.ROLLOUTS.
Hints are chosen by the hint phase and rewards given by the score phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from core_hpc.answers.extract import extract_answer, verify_many
from core_hpc.common.seeds import stable_seed
from core_hpc.config.run import SamplingSection
from core_hpc.engines.base import Completion, GenerationRequest, SamplingSettings
from core_hpc.phases.context import TaskContext
from core_hpc.problems.splits import EVALUATION, TRAIN, problems_of_iteration
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, CORRECT, EVALUATE, HINT, HINTS, RESCUE, ROLLOUTS, TIMEOUT


@dataclass(frozen=True)
class _Wanted:
    """One completion to sample, with what its row says beside the sampled tokens."""

    problem: dict[str, Any]
    sample_index: int
    prompt: tuple[int, ...]
    hint_given: bool = False
    cold_failed: bool | None = None
    teacher_model: str | None = None
    teacher_sample_index: int | None = None


def training_rows(context: TaskContext) -> pl.DataFrame:
    """The training problems of this task's iteration and part, in the iteration's order."""
    run = context.run
    train = run.split(TRAIN)
    rows = problems_of_iteration(
        train.height, run.config.protocol.problems_per_iteration, context.key.iteration, run.config.seed
    )
    return train[context.part(rows)]


def run_cold(context: TaskContext) -> None:
    """Every model samples each problem K times, without help (METHOD 1.1)."""
    builder = context.prompt_builder(context.model)
    wanted = [
        _Wanted(problem, k, prompt)
        for problem in training_rows(context).to_dicts()
        for prompt in [builder.build(problem["question"])]
        for k in range(context.run.config.protocol.cold_samples)
    ]
    _sample_and_publish(context, COLD, wanted, adapter_iteration=context.key.iteration - 1)


def run_rescue(context: TaskContext) -> None:
    """The models that the hint phase names sample again, each completion with or without the hint (METHOD 1.4).

    Those for whom there was no hint (protocol.even_budget) have no teacher in their rows: they are no control of the others.
    """
    builder = context.prompt_builder(context.model)
    hints = shards.read_task(context.run.root, TaskKey(context.key.iteration, HINT, TEAM, context.key.part), HINTS)
    problems = {p["problem_id"]: p for p in training_rows(context).to_dicts()}
    wanted = []
    for row in hints.filter(pl.col("model") == context.key.model, pl.col("hint_draws").list.len() > 0).iter_rows(
        named=True
    ):
        problem = problems[row["problem_id"]]
        prompts = {
            shown: builder.build(problem["question"], row["hint"] if shown else None)
            for shown in set(row["hint_draws"])
        }
        teacher = (row["teacher_model"], row["teacher_sample_index"]) if row["hint"] is not None else (None, None)
        wanted += [
            _Wanted(problem, k, prompts[shown], shown, row["cold_failed"], *teacher)
            for k, shown in enumerate(row["hint_draws"])
        ]
    _sample_and_publish(context, RESCUE, wanted, adapter_iteration=context.key.iteration - 1)


def run_evaluate(context: TaskContext) -> None:
    """The held-out problems, sampled with the adapter after this iteration."""
    builder = context.prompt_builder(context.model)
    problems = context.run.split(EVALUATION)
    wanted = [
        _Wanted(problem, k, prompt)
        for problem in problems[context.part(range(problems.height))].to_dicts()
        for prompt in [builder.build(problem["question"])]
        for k in range(context.run.config.evaluation.samples)
    ]
    _sample_and_publish(context, EVALUATE, wanted, adapter_iteration=context.key.iteration)


def _sample_and_publish(context: TaskContext, phase: str, wanted: Sequence[_Wanted], *, adapter_iteration: int) -> None:
    run, key = context.run, context.key
    sampling = run.config.sampling_of(context.model, phase)
    seeds = [
        stable_seed(run.config.seed, phase, key.iteration, key.model, w.problem["problem_id"], w.sample_index)
        for w in wanted
    ]
    context.stopwatch.lap("prepare")
    completions: list[Completion] = []
    if wanted:
        engine = context.warm.engine(context.engine_spec(adapter_iteration))
        context.stopwatch.lap("load")
        context.stopwatch.split("load", "compile", context.warm.take_compile_s())
        context.progress(0, len(wanted), 0)
        completions = engine.generate(
            [GenerationRequest(w.prompt, seed) for w, seed in zip(wanted, seeds, strict=True)],
            SamplingSettings(
                sampling.temperature, sampling.top_p, sampling.max_new_tokens, context.stop_strings(context.model)
            ),
            adapter=context.adapter(adapter_iteration),
            on_progress=lambda done, tokens: context.progress(done, len(wanted), tokens),
        )
        context.stopwatch.lap("generate")
    frame = _rows(context, phase, wanted, seeds, completions, sampling, adapter_iteration)
    context.stopwatch.lap("verify")
    shards.publish_frame(
        context.paths.task_folder(key),
        context.paths.task_name(key),
        frame,
        ROLLOUTS,
        stats=context.stats(
            num_completions=frame.height,
            num_prompt_tokens=frame["num_prompt_tokens"].sum(),
            num_completion_tokens=frame["num_completion_tokens"].sum(),
            num_timeouts=int((frame["verdict"] == TIMEOUT).sum()),
            engine=context.model.engine,
        ),
    )


def _rows(
    context: TaskContext,
    phase: str,
    wanted: Sequence[_Wanted],
    seeds: Sequence[int],
    completions: Sequence[Completion],
    sampling: SamplingSection,
    adapter_iteration: int,
) -> pl.DataFrame:
    builder, stops = context.prompt_builder(context.model), context.stop_strings(context.model)
    texts = [builder.completion_text(completion.token_ids, stops) for completion in completions]
    answers = [extract_answer(text, w.problem["answer_kind"]) for w, text in zip(wanted, texts, strict=True)]
    verdicts = verify_many(
        [(answer, w.problem["gold"], w.problem["answer_kind"]) for w, answer in zip(wanted, answers, strict=True)]
    )
    rows = []
    for w, seed, completion, text, answer, verdict in zip(
        wanted, seeds, completions, texts, answers, verdicts, strict=True
    ):
        rows.append(
            {
                "run_id": context.run.run_id,
                "iteration": context.key.iteration,
                "phase": phase,
                "model": context.key.model,
                "problem_id": w.problem["problem_id"],
                "sample_index": w.sample_index,
                "adapter_iteration": adapter_iteration,
                "seed": seed,
                "prompt_token_ids": w.prompt,
                "completion_token_ids": completion.token_ids,
                "logprobs": completion.logprobs,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "num_prompt_tokens": len(w.prompt),
                "num_completion_tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "text": text,
                "answer": answer,
                "gold": w.problem["gold"],
                "verdict": verdict,
                "correct": verdict == CORRECT,
                "cold_failed": w.cold_failed,
                "hint_given": w.hint_given,
                "teacher_model": w.teacher_model,
                "teacher_sample_index": w.teacher_sample_index,
            }
        )
    return pl.DataFrame(rows, schema=ROLLOUTS.schema)
