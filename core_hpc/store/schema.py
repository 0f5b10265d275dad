"""Column schemas of every published Parquet file, with one version for all of them.

This is the only place that defines what a column means. `check_frame` is called whenever a shard is
written or read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from core_hpc.common.errors import StoreError
from core_hpc.store.phases import COLD as COLD
from core_hpc.store.phases import EVALUATE as EVALUATE
from core_hpc.store.phases import GENERATION_PHASES as GENERATION_PHASES
from core_hpc.store.phases import HINT as HINT
from core_hpc.store.phases import OUTSIDE_ITERATIONS as OUTSIDE_ITERATIONS
from core_hpc.store.phases import PHASES as PHASES
from core_hpc.store.phases import RESCUE as RESCUE
from core_hpc.store.phases import SCORE as SCORE
from core_hpc.store.phases import TRAINING_PHASES as TRAINING_PHASES
from core_hpc.store.phases import UPDATE as UPDATE
from core_hpc.store.phases import WARMUP as WARMUP

SCHEMA_VERSION = 1

CORRECT, WRONG, NO_ANSWER, TIMEOUT = VERDICTS = ("correct", "wrong", "no_answer", "timeout")
"""Results of verifying the extracted answer of a completion. A time-out is not a wrong answer."""

LEAK_NONE, LEAK_ANYWHERE, LEAK_RESULT = LEAKS = ("none", "anywhere", "result")
"""How a hint shows the gold answer: not at all, as a value, or as the result of a step."""


@dataclass(frozen=True)
class Table:
    """One kind of Parquet file.

    `columns` maps a name to type and meaning. `key` names the columns that identify a row, and
    `nullable` those that may be null. `added` names nullable columns that files of an earlier
    version of core_hpc do not have; they are read as null (`shards.py`).
    """

    name: str
    columns: dict[str, tuple[pl.DataType, str]]
    key: tuple[str, ...]
    nullable: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()

    @property
    def schema(self) -> pl.Schema:
        return pl.Schema({name: dtype for name, (dtype, _) in self.columns.items()})


_S, _I, _F, _B = pl.String(), pl.Int32(), pl.Float64(), pl.Boolean()

PROBLEMS = Table(
    "problems",
    {
        "problem_id": (_S, "unique within the split"),
        "question": (_S, "text shown to the model"),
        "gold": (_S, "gold answer, normalized by the data source"),
        "answer_kind": (
            _S,
            "how an answer is verified: number, integer, latex, letter, text; given: already verified (imported)",
        ),
        "metadata": (_S, "JSON object: everything else that the source has about the problem"),
    },
    ("problem_id",),
)

ATTRIBUTES = pl.Schema(
    {
        "data_set": pl.String(),
        "subject": pl.String(),  # null if the data set has none
        "level": pl.String(),  # null if the data set has none
        # The same for problems that are not independent, for example variants of one question.
        "source_group": pl.String(),
    }
)
"""Fields of a problem's metadata that `analysis` reads, as columns."""

_ROW_KEY: dict[str, tuple[pl.DataType, str]] = {
    "run_id": (_S, "run that the row belongs to"),
    "iteration": (_I, "1-based; phase evaluate: number of updates of the evaluated adapter (0: before the first)"),
    "phase": (_S, "cold, rescue or evaluate"),
    "model": (_S, "name of the model in the team"),
    "problem_id": (_S, "problem of the frozen train or evaluation split"),
    "sample_index": (_I, "0-based within (model, problem, phase, iteration)"),
}
ROW_KEY = tuple(_ROW_KEY)

ROLLOUTS = Table(
    "rollouts",
    {
        **_ROW_KEY,
        "adapter_iteration": (
            _I,
            "number of updates of the adapter that sampled the row (0: base weights or warm-up)",
        ),
        "seed": (pl.Int64(), "seed of the request: a stable hash of run seed and row key"),
        "prompt_token_ids": (pl.List(pl.UInt32()), "exactly the ids that the model received"),
        "completion_token_ids": (
            pl.List(pl.UInt32()),
            "all sampled tokens with the end token; text is never tokenized again",
        ),
        "logprobs": (
            pl.List(pl.Float32()),
            "behaviour log-probability of each completion token (temperature and top-p applied)",
        ),
        "temperature": (pl.Float32(), "sampling temperature that logprobs refer to; 0: greedy"),
        "top_p": (pl.Float32(), "nucleus mass that logprobs refer to"),
        "num_prompt_tokens": (_I, "length of prompt_token_ids"),
        "num_completion_tokens": (_I, "length of completion_token_ids"),
        "finish_reason": (_S, "stop or length (truncated)"),
        "text": (
            _S,
            "decoded completion, cut at a stop string, without special tokens except those around thoughts; "
            "if the prompt opened a thought, it begins with that token",
        ),
        "answer": (_S, "extracted answer; null when there is none"),
        "gold": (_S, "gold answer of the problem"),
        "verdict": (_S, "correct, wrong, no_answer or timeout"),
        "correct": (_B, "verdict == correct"),
        "cold_failed": (_B, "rescue rows: the model had no correct cold completion of this problem; else null"),
        "hint_given": (_B, "whether the prompt contained the hint"),
        "teacher_model": (_S, "rescue rows: model whose completion is the source of the hint; else null"),
        "teacher_sample_index": (_I, "rescue rows: cold sample index of the teacher's completion; else null"),
    },
    ROW_KEY,
    frozenset({"answer", "cold_failed", "teacher_model", "teacher_sample_index"}),
)

HINTS = Table(
    "hints",
    {
        "run_id": (_S, "run that the row belongs to"),
        "iteration": (_I, "1-based"),
        "model": (_S, "the student: the model that may sample again"),
        "problem_id": (_S, "problem of the train split"),
        "cold_failed": (_B, "whether the student had no correct cold completion"),
        "teacher_model": (
            _S,
            "peer whose correct cold completion is the source; null if there is none. With protocol.hint_source: own, "
            "the student itself",
        ),
        "teacher_sample_index": (_I, "sample index of that completion"),
        "hint": (_S, "hint as the student sees it, without answers, cut to hint_tokens; null if there is none"),
        "num_hint_tokens": (_I, "length of the hint in tokens of the student; 0 if there is none"),
        "reason": (
            _S,
            "rescue if there is a hint, otherwise why there is none: solved, no_teacher, no_hint (nothing is left "
            "without answers), leak (protocol.hint_leak left nothing)",
        ),
        "hint_draws": (
            pl.List(pl.Boolean()),
            "for each rescue sample, whether it sees the hint; empty if the student does not sample again",
        ),
        "leak": (
            _S,
            "whether the gold answer stands in the hint: none, anywhere (as a value), result (of a step, or as the "
            "last value); null if there is no hint, or in files of an earlier version",
        ),
        "hint_problem_id": (
            _S,
            "problem whose completion is the source of the hint: problem_id, except with protocol.hint_source: "
            "shuffled; null if there is no hint, or in files of an earlier version",
        ),
    },
    ("run_id", "iteration", "model", "problem_id"),
    nullable=frozenset({"teacher_model", "teacher_sample_index", "hint", "leak", "hint_problem_id"}),
    added=frozenset({"leak", "hint_problem_id"}),
)

SCORES = Table(
    "scores",
    {
        **_ROW_KEY,
        "correct": (_B, "as in the rollout"),
        "verdict": (_S, "as in the rollout"),
        "cold_failed": (_B, "as in the rollout"),
        "hint_given": (_B, "as in the rollout"),
        "teacher_model": (_S, "as in the rollout"),
        "num_completion_tokens": (_I, "as in the rollout"),
        "truncated": (_B, "finish_reason == length"),
        "exploit": (_F, "Eq. 2, unweighted"),
        "explore": (_F, "Eq. 3 or the chosen rule, unweighted"),
        "rescue": (_F, "Eq. 4, unweighted"),
        "trace_accuracy": (_F, "Eq. 5, unweighted"),
        "cross": (_F, "Eq. 6, unweighted"),
        "reward": (_F, "Eq. 7: weighted sum with the weights of this iteration"),
        "advantage": (
            _F,
            "(reward - mean) / (population std + 1e-8) over the completions that are compared (update.group, "
            "update.baseline), mixed with team_pass_advantage if update.team_pass is on",
        ),
        "zero_signal": (_B, "whether all compared completions have the same reward, so that every advantage is 0"),
        "team_pass_advantage": (
            _F,
            "cold rows: the advantage for team Pass@k, before it is mixed; null for rescue rows, if update.team_pass "
            "is off, and in files of an earlier version",
        ),
    },
    ROW_KEY,
    frozenset({"cold_failed", "teacher_model", "team_pass_advantage"}),
    added=frozenset({"team_pass_advantage"}),
)

REWARD_PARTS = ("exploit", "explore", "rescue", "trace_accuracy", "cross")

_SOURCES = {
    COLD: "own cold completions",
    RESCUE: "own rescue completions",
    "taught": "texts of peers",
    "rehearsed": "rehearsed own completions",
    "internalised": "hinted rescue completions that are learned on the prompt without the hint",
    "peer": "rollouts of peers (update.hacpo)",
    "self_taught": "failed cold completions that the model with the hint corrects (update.self_teacher: sdpo)",
}
_CLIPPED = (COLD, RESCUE, "internalised", "peer")

_STEPS_BY_SOURCE: dict[str, tuple[pl.DataType, str]] = {
    "reliance": (
        _F,
        "mean over the correct hinted rescues in the step of mean log pi_old without the hint - with it, in nats per "
        "token; null if there are none (METHOD.md section 9.6)",
    ),
    "self_teacher_factor": (
        _F,
        "mean factor of the advantage over the tokens of failed cold completions with a hint (update.self_teacher: "
        "rlsd); null if there are none",
    ),
    "num_lessons": (
        _I,
        "completions in the step that the model does not learn as it sampled them: of peers, rehearsed, or "
        "internalised (METHOD.md sections 9.2, 9.5, 9.7 and 9.8)",
    ),
    **{
        f"clip_share_{source}": (_F, f"share of tokens of {_SOURCES[source]} with a clipped ratio")
        for source in _CLIPPED
    },
    **{
        f"slope_share_{source}": (
            _F,
            f"share of {meaning} in the sum over tokens of |derivative of the loss by the log-probability|",
        )
        for source, meaning in _SOURCES.items()
    },
}
"""What the update learns from which completions. Null if there is nothing to average, and in files of an
earlier version."""

STEPS = Table(
    "steps",
    {
        "run_id": (_S, "run that the row belongs to"),
        "iteration": (_I, "1-based; 0: the warm-up before the first iteration"),
        "model": (_S, "model that was updated"),
        "step": (_I, "1-based optimizer step within the iteration"),
        "global_step": (_I, "optimizer steps of this model since the run began"),
        "num_completions": (_I, "completions in the step"),
        "num_tokens": (_I, "completion tokens in the step"),
        "loss": (_F, "value of the minimized objective"),
        "policy_loss": (_F, "its clipped-surrogate part"),
        "kl": (
            _F,
            "k3 estimate against the reference policy: mean over completions of their token means, without peers' "
            "completions of HACPO; NaN without KL term",
        ),
        "clip_share": (_F, "share of completion tokens with a clipped ratio"),
        "entropy": (_F, "mean entropy of the policy at completion tokens, in nats"),
        "grad_norm": (_F, "global gradient norm before clipping"),
        "learning_rate": (_F, "learning rate of the step"),
        "mismatch_mean": (
            _F,
            "mean |trainer - engine| of the log-probabilities of completion tokens; with protocol.staleness: 1 it "
            "includes the update in between",
        ),
        "mismatch_max": (_F, "largest |trainer - engine| of a log-probability"),
        "importance_mean": (
            _F,
            "mean importance weight of completion tokens (update.importance); that of texts that the engine did not "
            "sample is 1",
        ),
        "kept_mass": (
            _F,
            "mean exp(trainer - engine) of the log-probabilities of completion tokens; with top-p below 1 the mean "
            "probability mass from which the engine samples, otherwise 1; null in files of an earlier version",
        ),
        "ratio_max": (_F, "largest policy ratio exp(current - old)"),
        **_STEPS_BY_SOURCE,
    },
    ("run_id", "iteration", "model", "step"),
    nullable=frozenset({"kept_mass", *_STEPS_BY_SOURCE}),
    added=frozenset({"kept_mass", *_STEPS_BY_SOURCE}),
)

TABLES = {t.name: t for t in (PROBLEMS, ROLLOUTS, HINTS, SCORES, STEPS)}


def check_frame(frame: pl.DataFrame, table: Table, *, source: str, columns: Sequence[str] | None = None) -> None:
    """Check a frame against the schema of a table.

    Args:
        frame: The rows.
        table: What they must be.
        source: Where they are from; the message begins with it.
        columns: The frame has only these columns of the table, in this order. The key is checked if
            all its columns are among them.

    Raises:
        StoreError: The columns differ, a column has a forbidden null, or a key occurs twice.
    """
    expected = table.schema if columns is None else pl.Schema({name: table.schema[name] for name in columns})
    if frame.schema != expected:
        missing = [c for c in expected if c not in frame.schema]
        extra = [c for c in frame.schema if c not in expected]
        wrong = [
            f"{c} is {frame.schema[c]}, not {expected[c]}"
            for c in expected
            if c in frame.schema and frame.schema[c] != expected[c]
        ]
        detail = "; ".join(
            [f"missing {missing}"] * bool(missing) + [f"unknown {extra}"] * bool(extra) + wrong
            or ["column order differs"]
        )
        raise StoreError(f"{source}: not a {table.name} table of schema version {SCHEMA_VERSION}: {detail}")
    nulls = [c for c in expected if c not in table.nullable and frame[c].null_count() > 0]
    if nulls:
        row = frame.with_row_index("row").filter(pl.any_horizontal(pl.col(c).is_null() for c in nulls))["row"][0]
        raise StoreError(f"{source}: row {row}: null in {nulls}, which may not be null")
    if not expected.keys() >= set(table.key):
        return
    duplicated = frame.select(table.key).is_duplicated()
    if duplicated.any():
        row = duplicated.arg_true()[0]
        raise StoreError(
            f"{source}: row {row}: {dict(zip(table.key, frame.select(table.key).row(row), strict=True))} occurs twice"
        )
