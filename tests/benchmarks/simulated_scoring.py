"""Shards of a whole iteration with SIMULATED rollouts, from which score tasks can run.

In: sizes. Out: a run folder with problems, the rollouts of two models, and hints with the vectors of
the cold texts. Texts are as long as solutions of word problems. Token ids and log-probabilities are
as long as the texts, but have nothing to do with them. Three quarters of the completions are cold.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core_hpc.config.run import RunConfig
from core_hpc.phases.text_embeddings import FILE, write_embeddings
from core_hpc.problems.splits import EVALUATION, TRAIN
from core_hpc.runs.contents import problems_of_part, scored_tasks
from core_hpc.runs.folder import Run
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, HINT, HINTS, PROBLEMS, RESCUE, ROLLOUTS, SCORE
from tests.benchmarks.scoring import PROMPT_TOKENS, TOKENS_PER_WORD, text_of

MODELS = ("m0", "m1")
DIMENSIONS = 384
EMBEDDER = "fake:random"
VOCABULARY, NUM_TEXTS = 150_000, 500


@dataclass(frozen=True)
class Size:
    """The size of an iteration. A multiple of 8 completions per problem."""

    problems: int
    completions: int = 64
    parts: int = 1

    def run(self, folder: Path) -> Run:
        """A run of this size."""
        samples = self.completions // len(MODELS)
        config = RunConfig.model_validate(
            {
                "name": "scale",
                "iterations": 1,
                "team": [{"name": m, "model": "fake:any", "engine": "fake"} for m in MODELS],
                "problems": {
                    TRAIN: {"source": "generated", "count": self.problems},
                    EVALUATION: {"source": "generated", "count": 1},
                },
                "protocol": {
                    "problems_per_iteration": self.problems,
                    "problems_per_part": -(-self.problems // self.parts),
                    "cold_samples": samples * 3 // 4,
                    "rescue_samples": samples // 4,
                    "even_budget": True,
                },
                "reward": {"distance": {"embedder": EMBEDDER}},
            }
        )
        return Run("scale", RunPaths(folder), config, {})

    @property
    def num_parts(self) -> int:
        """The number of parts that have problems."""
        return -(-self.problems // -(-self.problems // self.parts))


class RandomVectors:
    """An embedder that costs nothing."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.random.default_rng(len(texts)).standard_normal((len(texts), DIMENSIONS), dtype=np.float32)


def make_shards(run: Run, num_parts: int) -> int:
    """Publish everything that the score tasks of the first parts read. Returns its bytes."""
    count = run.config.protocol.problems_per_iteration
    rng = np.random.default_rng(0)
    words = random.Random(0)
    texts = pl.Series("text", [text_of(words, words.randint(2, 90), words.randint(2, 90)) for _ in range(NUM_TEXTS)])
    problems = pl.DataFrame(
        {
            "problem_id": [f"p{i:05d}" for i in range(count)],
            "question": [f"How much is {i}?" for i in range(count)],
            "gold": [str(i) for i in range(count)],
            "answer_kind": "number",
            "metadata": "{}",
        },
        schema=PROBLEMS.schema,
    )
    shards.publish_frame(run.paths.problems, TRAIN, problems, PROBLEMS)
    for part in range(num_parts):
        here = problems_of_part(run, TaskKey(1, COLD, MODELS[0], part))
        cold = []
        for key in scored_tasks(run.config, TaskKey(1, SCORE, TEAM, part)):
            rows = _rollouts(run, key, here, texts, rng)
            shards.publish_frame(run.paths.task_folder(key), run.paths.task_name(key), rows, ROLLOUTS)
            cold += rows["text"].to_list() if key.phase == COLD else []
        _publish_hints(run, TaskKey(1, HINT, TEAM, part), here, cold)
    return sum(path.stat().st_size for path in run.root.rglob("*") if path.is_file())


def _rollouts(
    run: Run, key: TaskKey, problems: pl.DataFrame, texts: pl.Series, rng: np.random.Generator
) -> pl.DataFrame:
    """Rollouts of a task. Every text is another one, and has 1.4 tokens per word."""
    protocol, rescue = run.config.protocol, key.phase == RESCUE
    samples = protocol.rescue_samples if rescue else protocol.cold_samples
    num = problems.height * samples
    chosen = rng.integers(0, len(texts), num)
    lengths = np.round(TOKENS_PER_WORD * texts.str.split(" ").list.len().to_numpy()[chosen]).astype(np.int64)
    chances = np.repeat(rng.random(problems.height), samples)
    correct = rng.random(num) < chances
    frame = pl.DataFrame(
        {
            "problem_id": np.repeat(problems["problem_id"].to_numpy(), samples),
            "sample_index": np.tile(np.arange(samples), problems.height),
            "gold": np.repeat(problems["gold"].to_numpy(), samples),
            "correct": correct,
            "verdict": np.where(correct, "correct", "wrong"),
            "num_completion_tokens": lengths,
            "finish_reason": np.where(rng.random(num) < 0.05, "length", "stop"),
            "hint_given": rng.random(num) < (0.75 if rescue else 0.0),
            "prompt_token_ids": _lists(
                np.repeat(_token_ids(rng, (problems.height, PROMPT_TOKENS)), samples, axis=0).ravel(),
                np.full(num, PROMPT_TOKENS),
            ),
            "completion_token_ids": _lists(_token_ids(rng, (int(lengths.sum()),)), lengths),
            "logprobs": _lists(-rng.exponential(0.3, int(lengths.sum())).astype(np.float32), lengths),
            "body": texts[chosen],
            "other": rng.integers(0, 6, num),
        }
    )
    constants = {"run_id": run.run_id, "iteration": 1, "phase": key.phase, "model": key.model, "adapter_iteration": 0}
    constants |= {"seed": 0, "temperature": 0.7, "top_p": 0.9, "num_prompt_tokens": PROMPT_TOKENS, "cold_failed": None}
    constants |= {"teacher_model": None, "teacher_sample_index": None}
    frame = frame.with_columns(
        text=pl.format(f"{{}}, attempt {{}} of {key.model}, {key.phase}. {{}}", "problem_id", "sample_index", "body"),
        answer=pl.when("correct").then("gold").otherwise(pl.format("{}{}", "gold", "other")),
        **{name: pl.lit(value) for name, value in constants.items()},
    )
    return frame.select(pl.col(name).cast(dtype) for name, dtype in ROLLOUTS.schema.items())


def _token_ids(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """Ids of which small ones are more frequent, as in real texts."""
    ids: NDArray[np.uint32] = np.exp(rng.random(shape, dtype=np.float32) * np.log(VOCABULARY)).astype(np.uint32)
    return ids


def _lists(values: NDArray[Any], lengths: NDArray[np.int64]) -> pl.Series:
    """A column of lists with these lengths."""
    import pyarrow as pa  # type: ignore[import-untyped]

    column = pl.from_arrow(pa.LargeListArray.from_arrays(np.append(0, np.cumsum(lengths)), pa.array(values)))
    assert isinstance(column, pl.Series)
    return column


def _publish_hints(run: Run, key: TaskKey, problems: pl.DataFrame, cold: list[str]) -> None:
    """Publish the draws of the rescue rows, and vectors of the cold texts."""
    draws = [False] * run.config.protocol.rescue_samples
    rows = [
        {
            "run_id": run.run_id,
            "iteration": 1,
            "model": model,
            "problem_id": problem,
            "cold_failed": False,
            "num_hint_tokens": 0,
            "reason": "solved",
            "hint_draws": draws,
        }
        for model in MODELS
        for problem in problems["problem_id"]
    ]

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        write_embeddings(folder / FILE, EMBEDDER, cold, RandomVectors().embed(cold))
        return {"hints.parquet": shards.write_frame(folder / "hints.parquet", pl.DataFrame(rows, HINTS.schema), HINTS)}

    manifests.publish(run.paths.task_folder(key), run.paths.task_name(key), fill, as_folder=True)
