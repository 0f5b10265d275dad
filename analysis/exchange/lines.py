"""One line of predictions that other software made: its fields in each of the two forms.

    `PER_PROBLEM`     one line per model and problem:
                      example_id, model, gold, completions[, token_counts, truncated]
    `PER_COMPLETION`  one line per completion:
                      problem, model, sample, answer and/or text, correct
                      [, gold, verdict, token_count, truncated]
                      A line without `correct` needs `gold`; its answer is verified here.

Both forms have the optional fields answer_kind (a key of `core_hpc.answers.kinds.KINDS`, or `GIVEN`;
default: number), question, subject, level, data_set, source_group, and phase (only the value evaluate). A
line that is marked as sampled with a hint (hint_used: true, or round: B) is a mistake, because all
imported completions count as sampled without help.

The input is the bytes of one line, or its fields. The output is a checked line, which yields its completions as
rows of `ROWS`, or a ValueError that explains the mistakes. Checks between lines are in
`exchange/predictions.py`.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from core_hpc.answers.extract import MAX_ANSWER_CHARS, answer_kind, extract_answer
from core_hpc.answers.kinds import KINDS
from core_hpc.store.schema import ATTRIBUTES, CORRECT, NO_ANSWER, WRONG

PER_PROBLEM, PER_COMPLETION = "problem", "completion"
_NUMBER = "number"

GIVEN = "given"
"""`answer_kind` of a problem whose answers cannot be verified here.

The verdicts of its completions come from the file and are never recomputed. Its answers and its gold
answer are kept as they are.
"""

ROWS = pl.Schema(
    {
        "line": pl.Int64(),
        "problem_id": pl.String(),
        "sample_index": pl.Int32(),
        "num_completion_tokens": pl.Int32(),
        "finish_reason": pl.String(),
        "text": pl.String(),
        "answer": pl.String(),
        "verdict": pl.String(),
    }
)
"""One completion of a line, with the columns of `schema.ROLLOUTS` and the line number in the file.

The verdict is null until the completion is verified.
"""


def _as_text(value: Any) -> str:
    """An id or label as text; numbers are accepted too."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"must be text or a number, not {reprlib.repr(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"is {value}, which is not a finite number")
    text = str(value).strip()
    if not text:
        raise ValueError("is empty")
    return text


def _as_optional(value: Any) -> str | None:
    """A text or number; None when it is null or blank."""
    return None if value is None or (isinstance(value, str) and not value.strip()) else _as_text(value)


def _as_kind(value: Any) -> Any:
    known = sorted({*KINDS, GIVEN})
    if isinstance(value, str) and value not in known:
        raise ValueError(f"unknown answer kind {value!r}; known: {', '.join(known)}")
    return value


@lru_cache(maxsize=1 << 14)
def canonical_gold(kind: str, gold: str) -> str | None:
    """The gold answer in the form that answers are compared with; None if nothing can be verified against it."""
    # Cached, because a file repeats the gold answer of a problem on many lines.
    return None if kind == GIVEN else answer_kind(kind).gold(gold)


Text = Annotated[str, BeforeValidator(_as_text)]
Optional = Annotated[str | None, BeforeValidator(_as_optional)]
Kind = Annotated[str, BeforeValidator(_as_kind)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]

_YES = frozenset({"true", "1", "1.0", "yes"})
_HINT_ROUNDS = frozenset({"b", "round b", "round_b", "rescue"})


class _Line(BaseModel):
    """The fields of both forms."""

    model_config = ConfigDict(strict=True, frozen=True, protected_namespaces=())

    model: Text
    gold: Text | None = None
    answer_kind: Kind | None = None
    question: Text | None = None
    data_set: Optional = None
    subject: Optional = None
    level: Optional = None
    source_group: Optional = None
    phase: Literal["evaluate"] | None = None
    hint_used: Any = None
    round: Any = None

    @model_validator(mode="after")
    def _without_hint(self) -> Self:
        marks = self.hint_used if isinstance(self.hint_used, list) else [self.hint_used]
        for name, hinted in (
            ("hint_used", any(str(mark).strip().casefold() in _YES for mark in marks)),
            ("round", str(self.round).strip().casefold() in _HINT_ROUNDS),
        ):
            if hinted:
                value = reprlib.repr(getattr(self, name))
                raise ValueError(
                    f"'{name}' is {value}, so the line was sampled with a hint, but imported completions count as "
                    "sampled without help; remove the lines with hints from the file"
                )
        return self

    @property
    def kind(self) -> str:
        return self.answer_kind or _NUMBER

    def of_problem(self) -> dict[str, str]:
        """The fields that belong to the problem, with the gold answer in canonical form.

        All lines of a problem must agree in them.
        """
        gold = self.gold and (canonical_gold(self.kind, self.gold) or self.gold)
        given = {name: getattr(self, name) for name in ("question", *ATTRIBUTES)}
        fields = {"answer_kind": self.kind, "gold": gold, **given}
        return {name: value for name, value in fields.items() if value is not None}

    def require_gold(self) -> None:
        """Raise ValueError unless the gold answer can be verified against."""
        if self.gold is None:
            problem = "no 'gold'"
        elif canonical_gold(self.kind, self.gold) is None:
            problem = f"'gold' {reprlib.repr(self.gold)} is not an answer of kind {self.kind}"
        else:
            return
        raise ValueError(
            f"{problem}, so nothing can be verified; correct 'gold' or 'answer_kind', or give 'correct' per completion"
        )


class ProblemLine(_Line):
    """A line of the form `PER_PROBLEM`."""

    example_id: Text
    gold: Text
    completions: list[str] = Field(min_length=1, fail_fast=True)
    token_counts: list[Whole] | None = Field(None, fail_fast=True)
    truncated: list[bool] | None = Field(None, fail_fast=True)

    @property
    def problem(self) -> str:
        return self.example_id

    @model_validator(mode="after")
    def _fits(self) -> ProblemLine:
        for name, values in (("token_counts", self.token_counts), ("truncated", self.truncated)):
            if values is not None and len(values) != len(self.completions):
                raise ValueError(
                    f"{len(self.completions)} completions, but {len(values)} entries in '{name}'; "
                    "give one per completion"
                )
        self.require_gold()
        return self

    def rows(self, line: int) -> Iterator[tuple[Any, ...]]:
        """Yield the completions as rows of `ROWS`, not verified yet."""
        tokens = self.token_counts or [0] * len(self.completions)
        truncated = self.truncated or [False] * len(self.completions)
        for sample, (text, num_tokens, cut) in enumerate(zip(self.completions, tokens, truncated, strict=True)):
            yield line, self.problem, sample, num_tokens, _reason(cut), text, extract_answer(text, self.kind), None


class CompletionLine(_Line):
    """A line of the form `PER_COMPLETION`."""

    problem: Text
    sample: Whole
    text: str | None = None
    answer: Optional = None
    correct: bool | None = None
    verdict: Literal["correct", "wrong", "no_answer", "timeout"] | None = None
    token_count: Whole = 0
    truncated: bool = False

    @model_validator(mode="after")
    def _fits(self) -> CompletionLine:
        if self.text is None and "answer" not in self.model_fields_set:
            raise ValueError(
                "no field 'text' or 'answer'; give one of them ('answer': null for a completion without an answer)"
            )
        if self.verdict is not None and self.correct is not (self.verdict == CORRECT):
            raise ValueError(f"'verdict' is {self.verdict}, so 'correct' must be {json.dumps(self.verdict == CORRECT)}")
        if self.correct and self.text is None and self.answer is None:
            raise ValueError("'correct' is true, but there is no answer; give 'answer' or 'text'")
        if self.correct is None:
            self.require_gold()
        return self

    def rows(self, line: int) -> Iterator[tuple[Any, ...]]:
        """Yield the row of `ROWS`. A given answer or verdict is used; a missing one is computed."""
        text = self.text or ""
        answer = None
        if self.kind == GIVEN:
            answer = self.answer and self.answer[:MAX_ANSWER_CHARS]
        elif self.answer is not None:
            answer = answer_kind(self.kind).normalize(self.answer) or self.answer[:MAX_ANSWER_CHARS]
        # `"answer": null` means "no answer" only when `correct` is given too.
        elif self.correct is None or "answer" not in self.model_fields_set:
            answer = extract_answer(text, self.kind)
        found = CORRECT if self.correct else NO_ANSWER if answer is None else WRONG
        verdict = None if self.correct is None else self.verdict or found
        yield line, self.problem, self.sample, self.token_count, _reason(self.truncated), text, answer, verdict


def _reason(truncated: bool) -> str:
    return "length" if truncated else "stop"


LINES: dict[str, type[ProblemLine] | type[CompletionLine]] = {PER_PROBLEM: ProblemLine, PER_COMPLETION: CompletionLine}
_MARKS = {PER_PROBLEM: ("example_id", "completions"), PER_COMPLETION: ("problem", "sample")}


def parsed(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        ValueError: the line is not a JSON object.
    """
    try:
        row = from_json(line, allow_inf_nan=False)
    except ValueError as e:
        reason = str(e).replace(" at line 1 column ", ", character ")
        raise ValueError(f"not JSON ({reason}); write one JSON object per line, in UTF-8") from e
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object, but {reprlib.repr(row)}")
    return row


def form_of(row: dict[str, Any]) -> str:
    """`PER_PROBLEM` or `PER_COMPLETION`, recognised by the fields.

    Raises:
        ValueError: the fields belong to neither form, or to both.
    """
    found = [form for form, marks in _MARKS.items() if not row.keys().isdisjoint(marks)]
    if len(found) != 1:
        needed = " or ".join(f"'{first}' and '{second}'" for first, second in _MARKS.values())
        fields = ", ".join(map(reprlib.repr, row)) or "no field"
        raise ValueError(f"not one of the two forms: give {needed} (the line has {fields})")
    return found[0]


def checked(row: dict[str, Any], form: str) -> ProblemLine | CompletionLine:
    """The line as the model of its form.

    Raises:
        ValueError: lists all mistakes of the line.
    """
    try:
        return LINES[form].model_validate(row)
    except ValidationError as e:
        raise ValueError("; ".join(_explain(error) for error in e.errors(include_url=False))) from e


def _explain(error: Any) -> str:
    """A mistake that pydantic found, as one message."""
    field = f"'{error['loc'][0]}'" if error["loc"] else ""
    if error["type"] == "missing":
        return f"no field {field}"
    message = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("Input should", "should")
        .replace("List should", "list should")
    )
    if error["type"] in ("value_error", "too_short"):
        return f"{field} {message}".strip()
    entry = f" (entry {error['loc'][1]})" if len(error["loc"]) > 1 else ""
    return f"{field}{entry} {message}, not {reprlib.repr(error['input'])}"
