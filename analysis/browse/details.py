"""Everything that is stored about one problem in one iteration, read from the shards.

The input is a run and the ids of problems. The output is `Detail` objects: question, gold answer,
and for every model its completions, the hint with what it cut, rewards, advantages and the
log-probabilities of tokens. Only the rows of these problems are decoded, so the memory does not
depend on the size of the run. Nothing is counted here (`browse/outcomes.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from analysis.browse.pieces import TokenTexts, find_tokenizer
from analysis.counts.load import RunData
from core_hpc.problems.splits import TRAIN
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import (
    ATTRIBUTES,
    COLD,
    EVALUATE,
    HINT,
    HINTS,
    RESCUE,
    REWARD_PARTS,
    ROLLOUTS,
    SCORE,
    SCORES,
    Table,
)
from core_hpc.store.shards import published_keys, read_problems

KEPT, CUT, CHANGED = "kept", "cut", "changed"
"""Parts of a teacher's completion: in the hint, not in the hint, and only in the hint."""

_ROLLOUT_COLUMNS = (
    "phase",
    "model",
    "problem_id",
    "sample_index",
    "adapter_iteration",
    "prompt_token_ids",
    "completion_token_ids",
    "logprobs",
    "temperature",
    "num_completion_tokens",
    "finish_reason",
    "text",
    "answer",
    "verdict",
    "hint_given",
)
_KEY = ("phase", "model", "problem_id", "sample_index")
_MAX_COMPARED_WORDS = 4000


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion, with its rewards where they are published."""

    phase: str
    sample: int
    text: str
    answer: str | None
    verdict: str
    truncated: bool
    hinted: bool
    num_tokens: int | None  # None: not recorded
    adapter_iteration: int
    temperature: float
    logprobs: tuple[float, ...]  # one per token
    pieces: tuple[str, ...] | None  # text of each token; None if it is not known
    prompt: str | None  # None if there is no tokenizer
    parts: dict[str, float] = field(default_factory=dict)  # rewards, unweighted
    reward: float | None = None
    advantage: float | None = None
    zero_signal: bool = False


@dataclass(frozen=True, kw_only=True)
class Hint:
    """The hint of a student, or the reason why there is none."""

    reason: str
    teacher: str | None
    sample: int | None  # of the teacher's completion
    other_problem: str | None  # that the teacher's completion solves (protocol.hint_source: shuffled); None: this one
    text: str | None
    num_tokens: int
    leak: str | None
    # The teacher's completion as (KEPT, CUT or CHANGED, text); empty if it is not one of this problem.
    segments: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class ModelDetail:
    """What one model did with the problem."""

    model: str
    completions: list[Completion]  # cold or evaluate
    hint: Hint | None
    rescues: list[Completion]


@dataclass(frozen=True, kw_only=True)
class Detail:
    """One problem in one iteration."""

    run: str
    split: str
    iteration: int
    problem_id: str
    question: str
    gold: str
    attributes: dict[str, str]
    models: list[ModelDetail]


class Reader:
    """Reads the details of the problems of one run.

    Args:
        data: the run.
        problems: the result of `counts.load.problems_of`.
    """

    def __init__(self, data: RunData, problems: pl.DataFrame) -> None:
        self._data = data
        self._problems = problems
        self._tokenizers: dict[str, TokenTexts | None] = {}

    @cached_property
    def _keys(self) -> dict[tuple[str, int], list[Path]]:
        """Paths of the manifests of each phase and iteration."""
        found: dict[tuple[str, int], list[Path]] = {}
        for key in published_keys(self._data.path):
            found.setdefault((key.phase, key.iteration), []).append(RunPaths(self._data.path).task_manifest(key))
        return found

    def tokenizer_note(self, model: str) -> str:
        """Why the texts of a model's tokens are not known; empty if they are."""
        file, searched = find_tokenizer(self._data.path, self._data.config, model)
        places = ", ".join(map(str, searched)) or "nowhere, because the run has no configuration"
        return "" if file is not None else f"this machine has no tokenizer.json of the model (searched: {places})"

    def _tokenizer(self, model: str) -> TokenTexts | None:
        if model not in self._tokenizers:
            file, _ = find_tokenizer(self._data.path, self._data.config, model)
            self._tokenizers[model] = TokenTexts(file) if file is not None else None
        return self._tokenizers[model]

    def read(self, split: str, iteration: int, problem_ids: Sequence[str]) -> Iterator[Detail]:
        """Read some problems of an iteration, in the order of their ids.

        Raises:
            StoreError: a published file is missing or damaged.
        """
        wanted = list(dict.fromkeys(problem_ids))
        phases = (COLD, RESCUE) if split == TRAIN else (EVALUATE,)
        rows = pl.concat(self._rows(phase, iteration, ROLLOUTS, wanted, _ROLLOUT_COLUMNS) for phase in phases)
        columns = (*_KEY, *REWARD_PARTS, "reward", "advantage", "zero_signal")
        scores = self._rows(SCORE, iteration if split == TRAIN else -1, SCORES, wanted, columns)
        rows = rows.join(scores, on=_KEY, how="left", maintain_order="left").sort("phase", "model", "sample_index")
        wanted_hints = tuple(c for c in HINTS.columns if c not in ("run_id", "iteration", "hint_draws", "cold_failed"))
        hints = self._rows(HINT, iteration if split == TRAIN else -1, HINTS, wanted, wanted_hints)
        by_problem = rows.partition_by("problem_id", as_dict=True)
        hints_of = hints.partition_by("problem_id", as_dict=True)
        known = {row["problem_id"]: row for row in self._known(split, wanted).iter_rows(named=True)}
        for problem in wanted:
            own = by_problem.get((problem,), rows.clear()).to_dicts()
            own_hints = {hint["model"]: hint for hint in hints_of.get((problem,), hints.clear()).to_dicts()}
            fields = known.get(problem, {})
            yield Detail(
                run=self._data.name,
                split=split,
                iteration=iteration,
                problem_id=problem,
                question=fields.get("question") or "",
                gold=fields.get("gold") or "",
                attributes={name: fields[name] for name in ATTRIBUTES if fields.get(name)},
                models=[self._model(model, own, own_hints.get(model)) for model in self._data.models],
            )

    def _known(self, split: str, wanted: Sequence[str]) -> pl.DataFrame:
        return self._problems.filter(pl.col("split") == split, pl.col("problem_id").is_in(list(wanted)))

    def _rows(
        self, phase: str, iteration: int, table: Table, wanted: Sequence[str], columns: Sequence[str]
    ) -> pl.DataFrame:
        """The rows of these problems in the published files of a phase."""
        frames = [pl.DataFrame(schema={name: table.schema[name] for name in columns})]
        paths = self._keys.get((phase, iteration), [])
        frames += [read_problems(path, table, problem_ids=wanted, columns=columns) for path in paths]
        return pl.concat(frames)

    def _model(self, model: str, rows: Sequence[dict[str, Any]], hint: dict[str, Any] | None) -> ModelDetail:
        own = [self._completion(row) for row in rows if row["model"] == model]
        return ModelDetail(
            model=model,
            completions=[c for c in own if c.phase != RESCUE],
            hint=_hint(hint, rows) if hint is not None else None,
            rescues=[c for c in own if c.phase == RESCUE],
        )

    def _completion(self, row: dict[str, Any]) -> Completion:
        tokenizer = self._tokenizer(row["model"])
        pieces = tokenizer.pieces(row["completion_token_ids"], row["text"]) if tokenizer is not None else None
        num_tokens = row["num_completion_tokens"]
        is_recorded = num_tokens > 0 or (not row["text"] and row["answer"] is None)  # imported predictions may have 0
        return Completion(
            phase=row["phase"],
            sample=row["sample_index"],
            text=row["text"],
            answer=row["answer"],
            verdict=row["verdict"],
            truncated=row["finish_reason"] == "length",
            hinted=row["hint_given"],
            num_tokens=num_tokens if is_recorded else None,
            adapter_iteration=row["adapter_iteration"],
            temperature=row["temperature"],
            logprobs=tuple(row["logprobs"]),
            pieces=tuple(pieces) if pieces is not None else None,
            prompt=tokenizer.text(row["prompt_token_ids"]) if tokenizer is not None else None,
            parts={part: row[part] for part in REWARD_PARTS if row[part] is not None},
            reward=row["reward"],
            advantage=row["advantage"],
            zero_signal=bool(row["zero_signal"]),
        )


def _hint(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Hint:
    other = row["hint_problem_id"] if row["hint_problem_id"] != row["problem_id"] else None
    source = (COLD, row["teacher_model"], row["teacher_sample_index"])
    texts = [r["text"] for r in rows if other is None and (r["phase"], r["model"], r["sample_index"]) == source]
    return Hint(
        reason=row["reason"],
        teacher=row["teacher_model"],
        sample=row["teacher_sample_index"],
        other_problem=other,
        text=row["hint"],
        num_tokens=row["num_hint_tokens"],
        leak=row["leak"],
        segments=compared(texts[0], row["hint"]) if texts and row["hint"] is not None else (),
    )


def compared(source: str, hint: str) -> tuple[tuple[str, str], ...]:
    """Compare a teacher's completion with the hint that was made from it.

    Returns:
        (kind, text) in order. All KEPT and CUT texts together are the source, all KEPT and CHANGED
        texts together the hint.

    >>> compared("Add. So 7. #### 7", "Add. So 7.")
    (('kept', 'Add. So 7.'), ('cut', ' #### 7'))
    """
    a, b = _words(source), _words(hint)
    if len(a) + len(b) > _MAX_COMPARED_WORDS:
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        found = [(KEPT, a[:same]), (CUT, a[same:]), (CHANGED, b[same:])]
    else:
        found = []
        for tag, a_start, a_end, b_start, b_end in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            if tag == "equal":
                found.append((KEPT, a[a_start:a_end]))
            else:
                found += [(CUT, a[a_start:a_end]), (CHANGED, b[b_start:b_end])]
    return tuple((kind, "".join(words)) for kind, words in found if words)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
