"""Every sweep of yaml/examples is run, and what its function did is computed a second time."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core_hpc.models.folder import load_tokenizer
from core_hpc.protocol.distance import distance_matrix, operation_signature
from core_hpc.protocol.embeddings import create_embedder
from core_hpc.protocol.hints import remove_answers
from core_hpc.runs.folder import Run
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, HINT, HINTS, RESCUE, REWARD_PARTS, ROLLOUTS, SCORE, SCORES
from tests.support.examples import EXAMPLES, run_example

KEY = ["model", "phase", "problem_id", "sample_index"]
TESTED = {"reward_part", "problem_source", "answer_kind", "hint_maker", "prompt_builder", "training"}


@pytest.fixture(scope="module")
def example(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that runs an example once."""
    done: dict[str, Run] = {}

    def run(name: str) -> Run:
        if name not in done:
            done[name] = run_example(name, tiny_models, tmp_path_factory.mktemp(name))
        return done[name]

    return run


def rollouts_of(run: Run) -> pl.DataFrame:
    keys = [TaskKey(1, phase, m.name) for phase in (COLD, RESCUE) for m in run.config.team]
    return shards.read_tasks(run.root, keys, ROLLOUTS)


def scored(run: Run) -> pl.DataFrame:
    """Scores with the texts of their completions."""
    scores = shards.read_task(run.root, TaskKey(1, SCORE, TEAM), SCORES)
    return scores.join(rollouts_of(run).select(*KEY, "text", "hint_given", "prompt_token_ids"), on=KEY)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == TESTED


def test_reward_part(example: Any) -> None:
    run = example("reward_part")
    reward = run.config.reward
    frame = scored(run)
    weights = {name: getattr(reward, name).weight for name in REWARD_PARTS}
    total = sum(
        frame[name].to_numpy() * (weight[0] if isinstance(weight, list) else weight) for name, weight in weights.items()
    )
    words = np.array([len(text.split()) for text in frame["text"]])
    expected = 0.1 * frame["correct"].to_numpy() * (1 - np.minimum(words / 60, 1))
    assert 0 < np.count_nonzero(expected) < frame.height
    np.testing.assert_allclose(frame["reward"].to_numpy() - total, expected, atol=1e-12)


def test_problem_source(example: Any) -> None:
    run = example("problem_source")
    train, evaluation = run.split("train"), run.split("evaluation")
    assert (train.height, evaluation.height, run.split("examples").height) == (12, 4, 1)
    for question, gold in pl.concat([train, evaluation]).select("question", "gold").rows():
        numbers = [int(n) for n in re.findall(r"\d+", question.partition("What")[0])]
        assert len(numbers) == 3
        assert gold == str(max(abs(a - b) for a, b in itertools.combinations(numbers, 2)))
    assert set(train["question"]).isdisjoint(evaluation["question"])
    assert train["problem_id"].n_unique() == 12
    assert rollouts_of(run)["correct"].any()


def test_answer_kind(example: Any) -> None:
    run = example("answer_kind")
    assert run.split("train")["answer_kind"].unique().to_list() == ["roman"]
    frame = rollouts_of(run)
    stated = [re.findall(r"#### (-?\d+)", text) for text in frame["text"]]
    verdicts = [
        "no_answer" if not found or found[-1].startswith("-") else "correct" if found[-1] == gold else "wrong"
        for found, gold in zip(stated, frame["gold"], strict=True)
    ]
    assert frame["verdict"].to_list() == verdicts
    assert {"correct", "wrong"} <= set(verdicts)


def test_hint_maker(example: Any) -> None:
    run = example("hint_maker")
    hints = shards.read_task(run.root, TaskKey(1, HINT, TEAM), HINTS).filter(reason="rescue")
    cold = rollouts_of(run).filter(phase=COLD)
    assert hints.height > 0
    for row in hints.iter_rows(named=True):
        (text,) = cold.filter(
            problem_id=row["problem_id"], model=row["teacher_model"], sample_index=row["teacher_sample_index"]
        )["text"]
        first = text.strip().partition(".")[0] + "."
        assert row["hint"] == remove_answers(f"Begin like this: {first}")


def test_prompt_builder(example: Any, tiny_models: list[Path]) -> None:
    """The first model is plain. The second has a chat template, which has one message of the user here."""
    run = example("prompt_builder")
    frame = rollouts_of(run)
    questions = dict(run.split("train").select("problem_id", "question").rows())
    hints = shards.read_task(run.root, TaskKey(1, HINT, TEAM), HINTS)
    by_case = {(r["model"], r["problem_id"]): r["hint"] for r in hints.iter_rows(named=True)}
    ((asked, metadata),) = run.split("examples").select("question", "metadata").rows()
    solution = re.search(r'"solution": "([^"]*)"', metadata)
    assert solution is not None
    assert frame["hint_given"].any()
    for model, folder in zip(("m0", "m1"), tiny_models, strict=True):
        tokenizer = load_tokenizer(folder)
        for row in frame.filter(model=model).iter_rows(named=True):
            hint = f"\nHere is a hint: {by_case[model, row['problem_id']]}" if row["hint_given"] else ""
            text = f"Question: {asked}\nAnswer: {solution[1]}\n\nQuestion: {questions[row['problem_id']]}{hint}"
            text = f"{text}\nAnswer:" if model == "m0" else f"<s>user: {text}</s><s>assistant:"
            assert tokenizer.decode(row["prompt_token_ids"]) == text


def test_explore_rule_and_advantages(example: Any) -> None:
    run = example("training")
    frame = scored(run)
    embedder = create_embedder("fake:hashing")
    for _, group in frame.group_by("problem_id"):
        texts = group["text"].to_list()
        distances = distance_matrix(
            embedder.embed(texts), [operation_signature(t) for t in texts], run.config.reward.distance.embedding_weight
        )
        n = group.height
        means = [sum(distances[i, j] for j in range(n) if j != i) / (n - 1) for i in range(n)]
        np.testing.assert_allclose(group["explore"].to_numpy(), means, rtol=1e-6)
        rewards = group["reward"].to_list()
        others = [(sum(rewards) - reward) / (n - 1) for reward in rewards]
        np.testing.assert_allclose(group["advantage"].to_numpy(), np.array(rewards) - others, atol=1e-9)
