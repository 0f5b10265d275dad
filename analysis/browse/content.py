"""The data of the browse page, as plain values for JSON.

The input is the runs of a sweep. The output is the content of the page's data files:

    index                       runs, models, flags, and the list of blocks
    pRUN-SPLIT                  the problems of a split: ids, beginnings of questions
    bRUN-SPLIT-ITERATION        a block: the outcomes of all problems of one iteration
    dRUN-SPLIT-ITERATION-KEY    details of some problems of a block, with all texts

RUN is the position of the run. Index, problems and blocks come from counts, so they are small even
for a large run. Details are read from the shards when they are asked for. `browse/export.py` writes
the data files, and `browse/server.py` answers requests for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from analysis.browse.details import Completion, Detail, Hint, ModelDetail, Reader
from analysis.browse.outcomes import BIT, FLAGS, OUTCOMES, outcomes_of
from analysis.counts.load import RunData, problems_of
from core_hpc.common.errors import InputError

QUESTION_CHARS = 160
"""How much of a question the list of problems shows."""
LOGPROB_DIGITS = 2

_NUMBERS = tuple(name for name, dtype in OUTCOMES.items() if dtype in (pl.Int64(), pl.Int32()) and name != "iteration")


@dataclass(frozen=True, order=True)
class Block:
    """The problems of one run, split and iteration."""

    run: int
    split: str
    iteration: int

    @property
    def name(self) -> str:
        return f"{self.run}-{self.split}-{self.iteration}"


class Content:
    """Makes the content of the data files for some runs.

    Args:
        runs: the runs; their counts are loaded, their answers are not needed.
        title: the name of the sweep or run.
    """

    def __init__(self, runs: Sequence[RunData], *, title: str) -> None:
        self._runs = list(runs)
        self._title = title
        problems = [problems_of(data.path, data.config) for data in runs]
        # A problem's position in its split is its number in all data files.
        self._problems = [p.with_columns(position=pl.int_range(pl.len()).over("split")) for p in problems]
        self.readers = [Reader(data, known) for data, known in zip(runs, problems, strict=True)]
        self._outcomes: dict[Block, pl.DataFrame] = {}
        for run, frame in enumerate(outcomes_of(runs, problems)):
            for key, part in frame.partition_by("split", "iteration", as_dict=True).items():
                self._outcomes[Block(run, str(key[0]), int(key[1]))] = part
        if not self._outcomes:
            raise InputError(f"{title}: no completions are published yet, so there is nothing to read")

    @property
    def blocks(self) -> list[Block]:
        """All blocks, ordered by run, split and iteration."""
        return sorted(self._outcomes)

    def index(self, *, live: bool, left_out: str = "") -> dict[str, Any]:
        """The content of the file `index`.

        Args:
            live: a server answers requests, so details of every problem can be had.
            left_out: a message about problems without details.
        """
        runs = [
            {
                "name": data.name,
                "models": data.models,
                "sets": list(data.sets),  # further sets of the evaluation; ids of their problems begin with SET/
                "tokenizers": {model: reader.tokenizer_note(model) for model in data.models},
            }
            for data, reader in zip(self._runs, self.readers, strict=True)
        ]
        return {
            "title": self._title,
            "live": live,
            "left_out": left_out,
            "flags": [
                {
                    "name": f.name,
                    "label": f.label,
                    "of_model": f.of_model,
                    "meaning": f.meaning,
                    "short": f.short or f.label,
                    "bit": BIT[f.name],
                }
                for f in FLAGS
            ],
            "runs": runs,
            "blocks": [
                {"run": b.run, "split": b.split, "iteration": b.iteration, "rows": frame["problem_id"].n_unique()}
                for b, frame in sorted(self._outcomes.items(), key=lambda item: item[0])
            ],
        }

    def problems(self, run: int, split: str) -> dict[str, Any]:
        """The content of the file of problems of one split."""
        known = self._problems[run].filter(pl.col("split") == split)
        short = known.select(
            "problem_id",
            pl.col("question").str.slice(0, QUESTION_CHARS),
            *(name for name in ("data_set", "subject", "level") if known[name].drop_nulls().n_unique() > 1),
        )
        return {name: column.to_list() for name, column in short.to_dict().items()}

    def block(self, block: Block, details: dict[str, int] | None = None) -> dict[str, Any]:
        """The content of the file of a block.

        Args:
            block: the block.
            details: for each problem the key of the file with its details; None: the file of every
                problem has the problem's position as its key.
        """
        rows, models = self._outcomes[block], self._runs[block.run].models
        known = self._problems[block.run].filter(pl.col("split") == block.split)
        ids = known.select("problem_id", "position").join(rows.select("problem_id").unique(), on="problem_id")
        ids = ids.sort("position")
        numbers: dict[str, list[list[int]]] = {name: [] for name in _NUMBERS}
        for model in models:
            own = ids.join(rows.filter(pl.col("model") == model), on="problem_id", how="left", maintain_order="left")
            for name in _NUMBERS:
                numbers[name].append(own[name].fill_null(0).to_list())
        keys = [details.get(problem, -1) for problem in ids["problem_id"]] if details is not None else None
        return {"problems": ids["position"].to_list(), "details": keys, **numbers}

    def sizes(self, block: Block) -> pl.DataFrame:
        """For each problem of a block: problem_id, num_completions and flags (of any model)."""
        total = pl.col("n") + pl.col("hinted_n") + pl.col("control_n")
        flags = pl.sum_horizontal(
            ((pl.col("flags") & BIT[f.name]) > 0).any().cast(pl.Int32) * BIT[f.name] for f in FLAGS
        )
        rows = self._outcomes[block].group_by("problem_id").agg(num_completions=total.sum(), flags=flags)
        return rows.sort("problem_id")

    def details(self, block: Block, problem_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Read the details of some problems: pairs of id and content.

        Raises:
            StoreError: a published file is missing or damaged.
        """
        for detail in self.readers[block.run].read(block.split, block.iteration, problem_ids):
            yield detail.problem_id, detail_content(detail)

    def problem_at(self, block: Block, position: int) -> str | None:
        """The id of the problem at a position of its split, or None if the block does not have it."""
        known = self._problems[block.run].filter(pl.col("split") == block.split, pl.col("position") == position)
        ids = known["problem_id"].to_list()
        return ids[0] if ids and self._outcomes[block].filter(pl.col("problem_id") == ids[0]).height else None


def detail_content(detail: Detail) -> dict[str, Any]:
    """The details of one problem. Equal prompts are stored once."""
    prompts: dict[str, int] = {}
    models = [_model_content(model, prompts) for model in detail.models]
    return {
        "question": detail.question,
        "gold": detail.gold,
        "attributes": detail.attributes,
        "prompts": list(prompts),
        "models": models,
    }


def _model_content(model: ModelDetail, prompts: dict[str, int]) -> dict[str, Any]:
    return {
        "model": model.model,
        "completions": [_completion_content(c, prompts) for c in model.completions],
        "hint": _hint_content(model.hint) if model.hint is not None else None,
        "rescues": [_completion_content(c, prompts) for c in model.rescues],
    }


def _hint_content(hint: Hint) -> dict[str, Any]:
    return {
        "reason": hint.reason,
        "teacher": hint.teacher,
        "sample": hint.sample,
        "other_problem": hint.other_problem,
        "text": hint.text,
        "tokens": hint.num_tokens,
        "leak": hint.leak,
        "segments": hint.segments,
    }


def _completion_content(completion: Completion, prompts: dict[str, int]) -> dict[str, Any]:
    known = completion.pieces is not None
    return {
        "sample": completion.sample,
        "text": completion.text,
        "answer": completion.answer,
        "verdict": completion.verdict,
        "truncated": completion.truncated,
        "hinted": completion.hinted,
        "tokens": completion.num_tokens,
        "adapter": completion.adapter_iteration,
        "temperature": round(completion.temperature, 4),
        "logprobs": [round(p, LOGPROB_DIGITS) if math.isfinite(p) else None for p in completion.logprobs],
        # JavaScript counts UTF-16 units; the page cuts the text into pieces of these lengths.
        "lengths": [len(piece.encode("utf-16-le", "surrogatepass")) // 2 for piece in completion.pieces or ()]
        if known
        else None,
        "prompt": prompts.setdefault(completion.prompt, len(prompts)) if completion.prompt is not None else None,
        "parts": completion.parts,
        "reward": completion.reward,
        "advantage": completion.advantage,
        "zero_signal": completion.zero_signal,
    }


def data_file(name: str, content: Any) -> bytes:
    """A data file: a script that hands its content to the page.

    A page that is opened from disk may load scripts but no other files. All characters that could
    end a script or a line of it are escaped.
    """
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return f"browse.put({json.dumps(name)},{text.replace('<', chr(92) + 'u003c')});\n".encode("ascii")
