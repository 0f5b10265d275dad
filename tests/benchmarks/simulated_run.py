"""A run folder of any size with SIMULATED rollouts, without texts and token ids.

In: sizes. Out: a folder that `analysis` reads like the folder of a finished run. The columns that
the analysis reads are as in a real run: sorted by problem and sample, with verdicts that fit the
answers, teachers and hints. The wide columns are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl

from core_hpc.config.run import RunConfig
from core_hpc.problems.splits import problems_of_iteration
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, PROBLEMS, RESCUE, ROLLOUTS
from core_hpc.store.shards import publish_frame

MODELS = ("ada", "bob")
ANSWERS = 6
"""Number of wrong answers to a problem."""


@dataclass(frozen=True)
class Size:
    """The size of a run.

    Rows: iterations x models x (problems x (cold + evaluation) + cold-failed problems x rescue).
    """

    problems: int = 5000
    iterations: int = 15
    parts: int = 4
    cold: int = 32
    rescue: int = 16
    evaluation: int = 26

    def config(self) -> RunConfig:
        """The configuration of a run of this size."""
        problems = {"source": "generated", "count": self.problems}
        return RunConfig.model_validate(
            {
                "name": "simulated",
                "iterations": self.iterations,
                "team": [{"name": m, "model": "fake:any", "engine": "fake"} for m in MODELS],
                "problems": {"train": problems, "evaluation": problems},
                "protocol": {
                    "problems_per_iteration": self.problems,
                    "problems_per_part": -(-self.problems // self.parts),
                    "cold_samples": self.cold,
                    "rescue_samples": self.rescue,
                },
                "evaluation": {"every": 1, "samples": self.evaluation},
            }
        )


def make_run(folder: Path, size: Size, seed: int = 0) -> int:
    """Write the run and return the number of its rollout rows."""
    config, paths, rng = size.config(), RunPaths(folder), np.random.default_rng(seed)
    manifests.make_folder(folder)
    ids = {
        split: [f"addition_chain-{split}-{i:05d}" for i in range(size.problems)] for split in ("train", "evaluation")
    }
    with mock.patch.object(manifests, "_fsync"), mock.patch("os.fsync"):
        for split, names in ids.items():
            golds = [str(i) for i in range(len(names))]
            columns = {"problem_id": names, "question": names, "gold": golds, "answer_kind": "number", "metadata": "{}"}
            frame = pl.DataFrame(columns, schema=PROBLEMS.schema)
            publish_frame(paths.problems, split, frame, PROBLEMS)
        num_rows, per_part = 0, config.protocol.problems_per_part
        for iteration in range(size.iterations + 1):
            orders = {EVALUATE: np.arange(size.problems)}
            if iteration:
                orders[COLD] = np.array(problems_of_iteration(size.problems, size.problems, iteration, config.seed))
            for phase, order in orders.items():
                for part in range(size.parts):
                    here = order[part * per_part : (part + 1) * per_part]
                    for model in MODELS:
                        num_rows += _part(paths, TaskKey(iteration, phase, model, part), here, ids, size, rng)
    manifests.write_json(paths.config, config.model_dump(mode="json"))
    manifests.write_json(paths.identity, {"run_id": folder.name})
    return num_rows


def _part(
    paths: RunPaths, key: TaskKey, problems: np.ndarray, ids: dict[str, list[str]], size: Size, rng: np.random.Generator
) -> int:
    """Write a cold task with its rescue task, or an evaluation task. Return the number of rows."""
    chances = (np.sin(problems * 12.9898 + MODELS.index(key.model)) % 1) ** 2
    names = np.array(ids["evaluation" if key.phase == EVALUATE else "train"])[problems]
    samples = size.evaluation if key.phase == EVALUATE else size.cold
    correct = rng.random((len(problems), samples)) < chances[:, None]
    _shard(paths, key, names, problems, correct, rng)
    if key.phase == EVALUATE:
        return correct.size
    failed = ~correct.any(axis=1)
    rescued = rng.random((int(failed.sum()), size.rescue)) < 0.3
    _shard(paths, TaskKey(key.iteration, RESCUE, key.model, key.part), names[failed], problems[failed], rescued, rng)
    return correct.size + rescued.size


def _shard(
    paths: RunPaths, key: TaskKey, names: np.ndarray, golds: np.ndarray, correct: np.ndarray, rng: np.random.Generator
) -> None:
    num_problems, samples = correct.shape
    num, hit, rescue = correct.size, correct.reshape(-1), key.phase == RESCUE
    gold = pl.Series(np.repeat(golds, samples)).cast(pl.String)
    other = pl.Series(rng.integers(0, ANSWERS, num) + 100_000).cast(pl.String)
    nothing = pl.Series([[]]).new_from_index(0, num)
    constants = {
        "run_id": paths.root.name,
        "iteration": key.iteration,
        "phase": key.phase,
        "model": key.model,
        "adapter_iteration": key.iteration,
        "seed": 0,
        "temperature": 0.7,
        "top_p": 0.9,
        "num_prompt_tokens": 100,
        "num_completion_tokens": 300,
        "text": "",
        "cold_failed": True if rescue else None,
        "teacher_model": next(m for m in MODELS if m != key.model) if rescue else None,
        "teacher_sample_index": 0 if rescue else None,
    }
    frame = pl.DataFrame(
        {
            "problem_id": np.repeat(names, samples),
            "sample_index": np.tile(np.arange(samples), num_problems),
            "correct": hit,
            "gold": gold,
            "prompt_token_ids": nothing,
            "completion_token_ids": nothing,
            "logprobs": nothing,
            "hint_given": rng.random(num) < 0.75 if rescue else np.zeros(num, dtype=bool),
            "finish_reason": pl.Series(np.where(rng.random(num) < 0.05, "length", "stop")),
            "verdict": pl.Series(np.where(hit, "correct", "wrong")),
        }
    )
    frame = frame.with_columns(
        answer=pl.when("correct").then(gold).otherwise(other), **{k: pl.lit(v) for k, v in constants.items()}
    )
    frame = frame.select(pl.col(name).cast(dtype) for name, dtype in ROLLOUTS.schema.items())
    publish_frame(paths.task_folder(key), paths.task_name(key), frame, ROLLOUTS)
