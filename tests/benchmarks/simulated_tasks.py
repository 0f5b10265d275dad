"""Publications of SIMULATED tasks: the schemas and statistics of the real phases, without models.

In: a run and a task. Out: its publication, with as many rows as a real one and the run, iteration
and problems of the task, because the controller checks and counts them. Everything else of a row is
the same in every run, and texts are short.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl

from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.contents import TABLE_OF, problems_of_part
from core_hpc.runs.folder import Run
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import (
    COLD,
    CORRECT,
    EVALUATE,
    GENERATION_PHASES,
    HINT,
    RESCUE,
    SCORE,
    STEPS,
    UPDATE,
    WRONG,
    check_frame,
)

RESCUED_SHARE = 0.2
NUM_TOKENS = 8
TOKENS_A_COMPLETION = 600
"""Tokens per completion in the statistics. A row itself has NUM_TOKENS tokens."""


@dataclass
class SimulatedTasks:
    """Publishes tasks of one sweep.

    Attributes:
        update_bytes: size of adapter and optimizer of an update together.
    """

    update_bytes: int = 1 << 18
    _frames: dict[tuple[str, str, int, int], pl.DataFrame] = field(default_factory=dict)

    def publish(self, run: Run, key: TaskKey) -> None:
        """Publish a task without fsync, which is time of the task and not of the controller."""
        parquet, rows = self._shard(run, key)

        def fill(folder: Path) -> dict[str, tuple[int, str]]:
            if key.phase != UPDATE:
                (folder / "shard.parquet").write_bytes(parquet)
                return {"shard.parquet": (rows, TABLE_OF[key.phase].name)}
            (folder / "steps.parquet").write_bytes(parquet)
            for name, share in (("adapter_model.safetensors", 3), ("optimizer.safetensors", 1.5)):
                (folder / name).write_bytes(os.urandom(round(self.update_bytes / share)))
            return {"steps.parquet": (rows, STEPS.name)}

        with mock.patch.object(os, "fsync"):
            manifests.publish(
                run.paths.task_folder(key),
                run.paths.task_name(key),
                fill,
                as_folder=key.phase == UPDATE,
                stats=statistics(key, rows),
            )

    def _shard(self, run: Run, key: TaskKey) -> tuple[bytes, int]:
        kind = (key.phase, key.model, key.part, key.iteration if key.phase == UPDATE else 0)
        if kind not in self._frames:
            self._frames[kind] = rows_of(run, key)
        frame, buffer = of_task(self._frames[kind], run, key), io.BytesIO()
        check_frame(frame, TABLE_OF[key.phase], source=str(key))
        frame.write_parquet(buffer, compression="zstd")
        return buffer.getvalue(), frame.height


def of_task(frame: pl.DataFrame, run: Run, key: TaskKey) -> pl.DataFrame:
    """Put the run, iteration and problems of a task into the result of `rows_of`."""
    own = frame.with_columns(run_id=pl.lit(run.run_id), iteration=pl.lit(key.iteration, pl.Int32))
    if key.phase == UPDATE:
        return own
    problems = problems_of_part(run, key)[frame["problem_id"].cast(pl.Int64)]
    own = own.with_columns(problems["problem_id"])
    if "gold" in frame.columns:
        own = own.with_columns(problems["gold"])
        own = own.with_columns(answer=pl.when("correct").then("gold").otherwise(pl.lit("?")))
    return own


def statistics(key: TaskKey, rows: int) -> Callable[[], dict[str, Any]]:
    """Return the statistics of a manifest, with the names that the phases use."""
    more: dict[str, Any] = {"num_completions": rows}
    if key.phase in GENERATION_PHASES:
        more |= {"num_prompt_tokens": 200 * rows, "num_completion_tokens": TOKENS_A_COMPLETION * rows, "engine": "fake"}
    elif key.phase == HINT:
        more = {"num_cases": rows, "num_rescues": rows}
    elif key.phase == UPDATE:
        more |= {"num_ranks": 1, "resumed_from_step": 0, "num_tokens": TOKENS_A_COMPLETION * rows, "train_s": 1600.0}
        more |= {
            "num_padded_tokens": TOKENS_A_COMPLETION * rows + 1000,
            "prepare_s": 1.0,
            "reference_s": 150.0,
            "save_s": 1.0,
        }
    working = "generate" if key.phase in GENERATION_PHASES else key.phase
    seconds = {"read": 1.5, "load": 30.0, working: 600.0, "publish": 0.2}
    return lambda: {"seconds": seconds, "rss_gb": 4.0, "threads": 4, **more}


# --- rows ----------------------------------------------------------------------------------------


def rows_of(run: Run, key: TaskKey) -> pl.DataFrame:
    """Make the rows that a simulated task publishes; the id of a problem is its position in the part."""
    config, per_part = run.config, run.config.protocol.problems_per_part
    total = run.num_problems(EVALUATION) if key.phase == EVALUATE else config.protocol.problems_per_iteration
    problems = range(min(per_part, total - key.part * per_part))
    own = {"run_id": run.run_id, "iteration": key.iteration, "model": key.model}
    if key.phase == UPDATE:
        steps = config.steps_per_iteration
        before = (key.iteration - 1) * steps
        rows = [{**own, "step": s, "global_step": before + s, **_STEP} for s in range(1, steps + 1)]
    elif key.phase == HINT:
        rows = [{**own, "model": m.name, "problem_id": str(p), **_HINT} for p in problems for m in config.team]
    elif key.phase == SCORE:
        rows = _score_rows(run, own, problems)
    else:
        num_samples = {
            COLD: config.protocol.cold_samples,
            RESCUE: config.protocol.rescue_samples,
            EVALUATE: config.evaluation.samples,
        }
        rows = [
            {**own, **_rollout(key.phase, k, p), "problem_id": str(p)}
            for p in problems
            if key.phase != RESCUE or is_rescued(p)
            for k in range(num_samples[key.phase])
        ]
    return pl.DataFrame(rows, schema=TABLE_OF[key.phase].schema)


def is_rescued(problem: int) -> bool:
    """Whether all models sample a problem again."""
    return problem % round(1 / RESCUED_SHARE) == 0


def _score_rows(run: Run, own: dict[str, Any], problems: range) -> list[dict[str, Any]]:
    protocol = run.config.protocol
    rows = []
    for p in problems:
        for model in (m.name for m in run.config.team):
            cold = [("cold", k) for k in range(protocol.cold_samples)]
            rescue = [(RESCUE, k) for k in range(protocol.rescue_samples)] if is_rescued(p) else []
            rows += [{**own, **_score(phase, k, p), "model": model, "problem_id": str(p)} for phase, k in cold + rescue]
    return rows


def _rollout(phase: str, k: int, p: int) -> dict[str, Any]:
    correct = (p + k) % 2 == 0
    ids, rescue = list(range(NUM_TOKENS)), phase == RESCUE
    return {
        "phase": phase,
        "sample_index": k,
        "adapter_iteration": 0,
        "seed": k,
        "prompt_token_ids": ids,
        "completion_token_ids": ids,
        "logprobs": [-0.5] * NUM_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "num_prompt_tokens": NUM_TOKENS,
        "num_completion_tokens": NUM_TOKENS,
        "finish_reason": "stop",
        "text": "4 + 7 = 11. #### 11",
        "answer": "11",
        "gold": "11",
        "verdict": CORRECT if correct else WRONG,
        "correct": correct,
        "cold_failed": True if rescue else None,
        "hint_given": rescue,
        "teacher_model": None,
        "teacher_sample_index": None,
    }


def _score(phase: str, k: int, p: int) -> dict[str, Any]:
    correct, rescue = (p + k) % 2 == 0, phase == RESCUE
    parts = {"exploit": float(correct), "explore": 0.1, "rescue": 0.0, "trace_accuracy": 0.5, "cross": 0.0}
    return {
        "phase": phase,
        "sample_index": k,
        "correct": correct,
        "verdict": CORRECT if correct else WRONG,
        "cold_failed": True if rescue else None,
        "hint_given": rescue and p % 10 != 0,
        "teacher_model": None,
        "num_completion_tokens": TOKENS_A_COMPLETION,
        "truncated": False,
        **parts,
        "reward": sum(parts.values()),
        "advantage": 1.0 if correct else -1.0,
        "zero_signal": False,
    }


_HINT: dict[str, Any] = {
    "cold_failed": True,
    "teacher_model": None,
    "teacher_sample_index": None,
    "hint": None,
    "num_hint_tokens": 0,
    "reason": "no_teacher",
    "hint_draws": [],
}
_STEP: dict[str, Any] = {
    "num_completions": 18,
    "num_tokens": 18 * TOKENS_A_COMPLETION,
    "loss": 0.1,
    "policy_loss": 0.1,
    "kl": 0.01,
    "clip_share": 0.02,
    "entropy": 0.4,
    "grad_norm": 0.9,
    "learning_rate": 1e-5,
    "mismatch_mean": 0.01,
    "mismatch_max": 0.3,
    "importance_mean": 1.0,
    "kept_mass": 1.0,
    "ratio_max": 1.2,
}
