"""The phases that sample completions: cold, rescue and evaluate (METHOD.md section 1).

A task has one model and one part of the problems. In: frozen problems, the adapter that samples in
the iteration (`Graph.sampler`), and hints for rescue. Out: one shard of schema.ROLLOUTS. The hint
phase chooses the hints, and the score phase computes the rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from core_hpc.answers.extract import extract_answer, verify_many
from core_hpc.common.errors import CoreHpcError
from core_hpc.common.seeds import stable_seed
from core_hpc.config.evaluation import SamplingSection
from core_hpc.engines.base import Completion, GenerationRequest, SamplingSettings
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.context import TaskContext
from core_hpc.problems.sets import by_set
from core_hpc.runs.contents import problems_of_part
from core_hpc.runs.graph import sampler_of
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, CORRECT, EVALUATE, HINT, HINTS, NO_ANSWER, RESCUE, ROLLOUTS, TIMEOUT


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """One completion to sample, and the values of its row that are known before sampling."""

    problem: dict[str, Any]
    sample_index: int
    prompt: tuple[int, ...]
    hint_given: bool = False
    cold_failed: bool | None = None
    teacher_model: str | None = None
    teacher_sample_index: int | None = None


def run_cold(context: TaskContext) -> None:
    """Sample each problem K times without help (METHOD.md section 1)."""
    builder = context.prompt_builder(context.model)
    problems = problems_of_part(context.run, context.key)
    wanted = _without_hints(builder, problems, context.run.config.protocol.cold_samples)
    _sample_and_publish(context, builder, COLD, wanted)


def run_rescue(context: TaskContext) -> None:
    """Sample again the problems that the hint phase selected (METHOD.md section 1).

    Each completion gets the hint or not, as the hint phase drew it. With `protocol.even_budget`
    problems without a hint are sampled again, too. Their rows have no teacher, so they are not used
    as a control of the hinted completions.
    """
    builder = context.prompt_builder(context.model)
    hints = shards.read_task(context.run.root, TaskKey(context.key.iteration, HINT, TEAM, context.key.part), HINTS)
    problems = {p["problem_id"]: p for p in problems_of_part(context.run, context.key).to_dicts()}
    sampled_again = hints.filter(pl.col("model") == context.key.model, pl.col("hint_draws").list.len() > 0)
    wanted = []
    for row in sampled_again.iter_rows(named=True):
        problem, hint = problems[row["problem_id"]], row["hint"]
        prompts = {
            shown: builder.build(problem["question"], hint if shown else None) for shown in set(row["hint_draws"])
        }
        wanted += [
            _Wanted(
                problem=problem,
                sample_index=k,
                prompt=prompts[shown],
                hint_given=shown,
                cold_failed=row["cold_failed"],
                teacher_model=row["teacher_model"] if hint is not None else None,
                teacher_sample_index=row["teacher_sample_index"] if hint is not None else None,
            )
            for k, shown in enumerate(row["hint_draws"])
        ]
    _sample_and_publish(context, builder, RESCUE, wanted)


def run_evaluate(context: TaskContext) -> None:
    """Sample the held-out problems with the adapter that this iteration trained.

    Each set of the evaluation (`evaluation.sets`) has its own prompts, samples and sampling.
    """
    config, iteration = context.run.config, context.key.iteration
    problems = problems_of_part(context.run, context.key)
    frames: list[pl.DataFrame] = []
    for _, own, own_problems in by_set(config, problems):
        of_set = replace(context, run=replace(context.run, config=own))
        builder = of_set.prompt_builder(of_set.model)
        wanted = _without_hints(builder, own_problems, own.evaluation.samples)
        if wanted or not frames:
            frames.append(_sample(of_set, builder, EVALUATE, wanted, adapter_iteration=iteration))
    _publish(context, pl.concat(frames))


def _without_hints(builder: PromptBuilder, problems: pl.DataFrame, num_samples: int) -> list[_Wanted]:
    """The completions of problems, each sampled equally often from its plain prompt."""
    wanted = []
    for problem in problems.to_dicts():
        prompt = builder.build(problem["question"])
        wanted += [_Wanted(problem=problem, sample_index=k, prompt=prompt) for k in range(num_samples)]
    return wanted


def _sample_and_publish(context: TaskContext, builder: PromptBuilder, phase: str, wanted: Sequence[_Wanted]) -> None:
    sampler = sampler_of(context.key.iteration, context.run.config.protocol.staleness)
    _publish(context, _sample(context, builder, phase, wanted, adapter_iteration=sampler))


def _sample(
    context: TaskContext, builder: PromptBuilder, phase: str, wanted: Sequence[_Wanted], *, adapter_iteration: int
) -> pl.DataFrame:
    """The rows of the wanted completions. `builder` has made their prompts."""
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
        stops = context.stop_strings(context.model)
        stop_ids = builder.stop_token_ids(stops)
        completions = engine.generate(
            [GenerationRequest(w.prompt, seed) for w, seed in zip(wanted, seeds, strict=True)],
            SamplingSettings(sampling.temperature, sampling.top_p, sampling.max_new_tokens, stops, stop_ids),
            adapter=context.adapter(adapter_iteration),
            on_progress=lambda done, tokens: context.progress(done, len(wanted), tokens),
        )
        context.stopwatch.lap("generate")
    sampled = list(zip(wanted, seeds, completions, strict=True))
    frame = _rows(context, builder, phase, sampled, sampling, adapter_iteration=adapter_iteration)
    context.stopwatch.lap("verify")
    return frame


def _publish(context: TaskContext, frame: pl.DataFrame) -> None:
    shards.publish_frame(
        context.paths.task_folder(context.key),
        context.paths.task_name(context.key),
        frame,
        ROLLOUTS,
        stats=context.stats(
            num_completions=frame.height,
            num_prompt_tokens=frame["num_prompt_tokens"].sum(),
            num_completion_tokens=frame["num_completion_tokens"].sum(),
            num_timeouts=int((frame["verdict"] == TIMEOUT).sum()),
            num_truncated=int((frame["finish_reason"] == "length").sum()),
            num_no_answer=int((frame["verdict"] == NO_ANSWER).sum()),
            engine=context.model.engine,
        ),
    )


def _rows(
    context: TaskContext,
    builder: PromptBuilder,
    phase: str,
    sampled: Sequence[tuple[_Wanted, int, Completion]],
    sampling: SamplingSection,
    *,
    adapter_iteration: int,
) -> pl.DataFrame:
    """Rows of ROLLOUTS for (wanted, seed, completion). Answers are extracted and verified here."""
    stops = context.stop_strings(context.model)
    texts = [builder.completion_text(completion.token_ids, stops) for _, _, completion in sampled]
    kinds = [w.problem["answer_kind"] for w, _, _ in sampled]
    answers = [extract_answer(text, kind) for text, kind in zip(texts, kinds, strict=True)]
    golds = [w.problem["gold"] for w, _, _ in sampled]
    verdicts = verify_many(list(zip(answers, golds, kinds, strict=True)))
    rows = []
    for w, _, completion in sampled:
        if not all(map(math.isfinite, completion.logprobs)):
            raise CoreHpcError(
                f"{context.key}: the engine returned log-probabilities that are not finite, for sample "
                f"{w.sample_index} of problem {w.problem['problem_id']}. Its logits overflow: another dtype (bfloat16 "
                "or float32, not float16) usually helps. Nothing was published"
            )
    for (w, seed, completion), text, answer, verdict in zip(sampled, texts, answers, verdicts, strict=True):
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
