"""Calls of the user's functions in the phases: from rows of rollouts to their arguments.

In: a run and rollouts. Out: what the functions return. `extensions/workers.py` runs the functions in
processes with a time limit, and `extensions/points.py` has their signatures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.config.extensions import AdvantageFunction, HintFunction
from core_hpc.config.reward import OwnPartSection, weight_at
from core_hpc.config.run import RunConfig
from core_hpc.extensions.points import MAX_ANSWER_CHARS, Use, uses
from core_hpc.extensions.values import Completion, Problem
from core_hpc.extensions.workers import shared_workers
from core_hpc.problems.splits import TRAIN
from core_hpc.protocol.distance import FloatArray
from core_hpc.runs.folder import Run
from core_hpc.store import manifests, shards
from core_hpc.store.paths import MANIFEST_SUFFIX
from core_hpc.store.schema import COLD, PROBLEMS


@lru_cache(maxsize=2)
def training_problems(folder: Path) -> dict[str, Problem]:
    """The training problems as the user's functions see them, by id.

    Args:
        folder: `RunPaths.problems`. Its content is fixed since the first start.
    """
    manifest = manifests.read_manifest(folder / f"{TRAIN}{MANIFEST_SUFFIX}")
    frame = shards.read_manifest_table(manifest, PROBLEMS, checksum=True)
    return {row["problem_id"]: as_problem(row) for row in frame.to_dicts()}


def as_problem(row: dict[str, Any]) -> Problem:
    """A row of schema.PROBLEMS as the user's functions see it."""
    return Problem(
        id=row["problem_id"],
        question=row["question"],
        gold=row["gold"],
        answer_kind=row["answer_kind"],
        metadata=json.loads(row["metadata"]),
    )


def as_completions(rollouts: pl.DataFrame) -> list[Completion]:
    """Rows of schema.ROLLOUTS as the user's functions see them."""
    return [
        Completion(
            problem_id=row["problem_id"],
            model=row["model"],
            phase=row["phase"],
            sample_index=row["sample_index"],
            text=row["text"],
            answer=row["answer"],
            correct=row["correct"],
            hint_given=bool(row["hint_given"]),
            num_tokens=row["num_completion_tokens"],
            truncated=row["finish_reason"] == "length",
        )
        for row in rollouts.iter_rows(named=True)
    ]


def own_reward_parts(run: Run, groups: Sequence[pl.DataFrame], schedule_index: int) -> dict[str, list[FloatArray]]:
    """The values of the user's reward parts, by name: [n] for each group of n completions.

    A part whose weight is 0 now is not called.
    """
    config = run.config
    used = {name: part for name, part in config.reward.parts.items() if weight_at(part.weight, schedule_index)}
    if not used:
        return {}
    problems = training_problems(run.paths.problems)
    calls = [(problems[group["problem_id"][0]], as_completions(group)) for group in groups]
    return {
        name: [np.array(values) for values in _called(config, part, "reward_part", calls)]
        for name, part in used.items()
    }


def own_hint_text(run: Run, problem_id: str, text: str) -> str | None:
    """The teacher's text as the user's hint maker rewrites it; as it is if there is no hint maker."""
    maker = run.config.protocol.hint_function
    if maker is None:
        return text
    problem = training_problems(run.paths.problems)[problem_id]
    (hint,) = _called(run.config, maker, "hint_maker", [(problem, text)])
    return None if hint is None else str(hint)


def own_advantages(
    run: Run, rollouts: pl.DataFrame, rewards: FloatArray, groups: Sequence[Sequence[int]]
) -> FloatArray:
    """The advantages by the user's function, [n].

    Args:
        run: its `update.advantage_function` is given.
        rollouts: [n] rows of schema.ROLLOUTS.
        rewards: [n].
        groups: the rows of each group that is compared.
    """
    function = run.config.update.advantage_function
    assert function is not None
    completions = as_completions(rollouts)
    calls = [([completions[i] for i in rows], [float(rewards[i]) for i in rows]) for rows in groups]
    found = np.zeros(rollouts.height)
    results = _called(run.config, function, "advantage", calls)
    for rows, values in zip(groups, results, strict=True):
        found[list(rows)] = values
    return found


def _called(
    config: RunConfig,
    own: OwnPartSection | HintFunction | AdvantageFunction,
    point: str,
    calls: Sequence[tuple[Any, ...]],
) -> list[Any]:
    return _call_all(config, own.function, point, calls, own.options)


ODD_TEXTS = ("", " \n\t ", "I do not know.", "Größe ≈ 5 €, 数学, 🙂", "word " * 4000)
"""Texts of models as they occur in a run: empty, without an answer, with other alphabets, and very long."""


def try_functions(config: RunConfig, train: pl.DataFrame) -> None:
    """Call the user's functions with a training problem and odd texts, before any job is submitted.

    The completions of an attempt are a correct one, and one with an odd text. The first one is empty and was cut.

    Args:
        config: the run.
        train: its training problems.

    Raises:
        InputError: a function fails. The message names the field, the line of the user's file and the arguments.
    """
    golds = dict(train.select("answer_kind", "gold").rows())
    for use in uses(config):
        try:
            calls = _trial_calls(config, use, as_problem(train.row(0, named=True)), golds)
            _call_all(config, use.reference, use.name, calls, use.options)
        except CoreHpcError as e:
            raise InputError(f"{use.path}: {e}") from e


def _trial_calls(config: RunConfig, use: Use, problem: Problem, golds: dict[str, str]) -> list[tuple[Any, ...]]:
    """The positional arguments of each call of a function at the preparation."""
    completion = partial(Completion, problem_id=problem.id, model=config.team[0].name, phase=COLD, hint_given=False)
    right = completion(sample_index=0, text=problem.gold, answer=problem.gold, correct=True, num_tokens=1)
    pairs = [
        [right, completion(sample_index=1, text=t, answer=None, correct=False, num_tokens=len(t) // 4, truncated=not t)]
        for t in ODD_TEXTS
    ]
    if use.name == "reward_part":
        return [(problem, pair) for pair in pairs]
    if use.name == "advantage":
        return [(pairs[0], [1.0, 0.0]), (pairs[0], [0.0, 0.0])]
    if use.name == "explore_rule":
        distances = np.array([[0.0, 0.5], [0.5, 0.0]])
        return [(distances, np.array([1.0, 0.0])), (0 * distances, np.array([0.0, 0.0]))]
    if use.name == "hint_maker":  # the text of a teacher is correct, but that of the student itself may be any
        correct = [f"{text} The answer is {problem.gold}.".strip() for text in ODD_TEXTS]
        return [(problem, text) for text in (*correct, *(ODD_TEXTS if config.protocol.hint_source == "own" else ()))]
    if use.name in ("answer_extract", "answer_normalize"):
        return [(text,) for text in ODD_TEXTS]
    if use.name == "answer_verify":
        kind = use.path.split(".")[2]  # problems.answer_kinds.KIND.verify
        return [(answer, golds[kind]) for answer in _odd_answers(config, kind, golds[kind])] if kind in golds else []
    return []


def _odd_answers(config: RunConfig, kind: str, gold: str) -> list[str]:
    """Answers that `verify` of a kind may get: the gold answer, and what is found in odd texts."""
    extract = config.problems.answer_kinds[kind].extract
    if extract is None:  # the content of a tag is an answer, also if `normalize` cannot read it
        found = [text.strip()[:MAX_ANSWER_CHARS] for text in ODD_TEXTS]
    else:
        found = _call_all(config, extract, "answer_extract", [(text,) for text in ODD_TEXTS], {})
    return [gold, *filter(None, found)]


def _call_all(
    config: RunConfig, reference: str, point: str, calls: Sequence[tuple[Any, ...]], options: Mapping[str, Any]
) -> list[Any]:
    """The results of a function of the user within the time limit of the run."""
    limit_s = config.extensions.time_limit_s
    return shared_workers().call_many(reference, point, calls, options, limit_s=limit_s)
