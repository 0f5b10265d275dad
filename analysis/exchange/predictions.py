"""Predictions that other software made: reads and checks a whole file.

The input is a file. Its records (`exchange/sources.py`) become lines of one of the two forms of
`exchange/lines.py` (`exchange/bridges.py`); the form is recognised by the fields. The output is a
`Predictions` object, or one error that lists the bad lines of the whole file: lines with mistakes,
duplicates, contradictions between lines, and problems that are missing for a model. This module
writes nothing. The run folder is made in `exchange/folder.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from analysis.exchange.bridges import Bridge
from analysis.exchange.converters import INSPECT, Origin
from analysis.exchange.lines import (
    GIVEN,
    LINES,
    PER_PROBLEM,
    ROWS,
    CompletionLine,
    ProblemLine,
    canonical_gold,
    checked,
    form_of,
)
from analysis.exchange.sources import place_of, records
from core_hpc.answers.extract import verify_many
from core_hpc.common.errors import InputError
from core_hpc.config.base import NAME_PATTERN
from core_hpc.store.paths import TEAM
from core_hpc.store.schema import ATTRIBUTES, PROBLEMS

MAX_LISTED = 20
_CHUNK_ROWS = 20_000  # completions kept as Python objects before they become columns


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The content of a checked file."""

    file: Path
    sha256: str
    form: str
    num_lines: int
    models: dict[str, str]  # name used here -> name in the file, in the order of the file
    problems: pl.DataFrame  # schema.PROBLEMS, in the order of the file
    rows: dict[str, pl.DataFrame]  # name -> ROWS, in the order of problems and samples
    left_out: list[str]  # lenient only: one line per problem that is missing for a model
    unread: list[str]  # names of unknown fields


def valid_name(model: str) -> str:
    """The model's name in a form that is valid in file names; empty when no character is valid.

    >>> valid_name("Qwen/Qwen2.5-7B-Instruct")
    'qwen-qwen2-5-7b-instruct'
    """
    if re.fullmatch(NAME_PATTERN, model):
        return model
    return re.sub(r"[^a-z0-9_]+", "-", model.lower()).strip("-_")[:63]


def read_predictions(file: Path, *, origin: Origin | None = None, lenient: bool = False) -> Predictions:
    """Read and check a whole file, and verify the completions that have no verdict.

    Args:
        file: JSON lines, Parquet or a log of Inspect.
        origin: how its records become lines; default: they are lines in one of the two forms.
        lenient: leave out problems that are missing for a model and list them in `left_out`,
            instead of rejecting the file.

    Raises:
        InputError: the file has bad lines. The message gives the line number, the mistake and the
            remedy of the first `MAX_LISTED` of them.
    """
    reading = _Reading(Path(file), origin or Origin())
    try:
        for number, record in records(reading.file, reading.digest, inspect_log=reading.is_log):
            reading.take(number, record)
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror or e})") from e
    return reading.result(lenient=lenient)


class _Reading:
    """The state while a file is read."""

    def __init__(self, file: Path, origin: Origin) -> None:
        self.file = file
        self.bridge = Bridge(origin, file)
        self.is_log = origin.name == INSPECT
        self.place = place_of(file, inspect_log=self.is_log)
        self.digest = hashlib.sha256()
        self.form: str | None = None
        self.num_lines = 0
        self.models: dict[str, str] = {}
        self.rejected: set[str] = set()  # model names that cannot be used; each is reported once
        # Problem id -> field -> (value, first line with it).
        self.problems: dict[str, dict[str, tuple[str, int]]] = {}
        self.chunks: dict[str, list[pl.DataFrame]] = {}
        self.waiting: dict[str, list[tuple[Any, ...]]] = {}
        self.unread: dict[str, None] = {}
        self.mistakes: list[tuple[int, str]] = []
        self.num_mistakes = 0

    def mistake(self, number: int, what: str) -> None:
        self.num_mistakes += 1
        if len(self.mistakes) < MAX_LISTED:
            self.mistakes.append((number, what))

    def take(self, number: int, record: dict[str, Any] | ValueError) -> None:
        """Check the lines of one record and keep their content."""
        try:
            if isinstance(record, ValueError):
                raise record
            rows = [self._checked(fields) for fields in self.bridge.lines(record)]
        except ValueError as e:
            self.mistake(number, str(e))
            return
        for row in rows:
            name = self._name(number, row.model)
            if self._agrees(number, row) and name is not None:
                self.num_lines += 1
                self.waiting.setdefault(name, []).extend(row.rows(number))
                if len(self.waiting[name]) >= _CHUNK_ROWS:
                    self._pack(name)

    def _checked(self, fields: dict[str, Any]) -> ProblemLine | CompletionLine:
        form = form_of(fields)
        self.form = self.form or form
        if form != self.form:
            raise ValueError(
                f"has the form 'one line per {form}', but earlier lines have the form 'one line per {self.form}'; "
                "split the file"
            )
        self.unread |= dict.fromkeys(field for field in fields if field not in LINES[form].model_fields)
        return checked(fields, form)

    def _name(self, number: int, model: str) -> str | None:
        """The name of the model in the run folder; None when it cannot be used."""
        name = valid_name(model)
        if self.models.setdefault(name, model) == model and name and name != TEAM:
            return name
        if model not in self.rejected:
            self.rejected.add(model)
            if not name:
                why = "has no character that is valid in a file name"
            elif name == TEAM:
                why = "has the name that is reserved for the whole team"
            else:
                why = f"would get the name `{name}` in files, which model {self.models[name]!r} has already"
            self.mistake(number, f"model {model!r} {why}; give it another name (a-z, 0-9, _ and -)")
        return None

    def _agrees(self, number: int, row: ProblemLine | CompletionLine) -> bool:
        """Whether the line agrees with earlier lines of the same problem."""
        known = self.problems.setdefault(row.problem, {})
        for field, value in row.of_problem().items():
            first_value, line = known.setdefault(field, (value, number))
            if first_value != value:
                here, there = reprlib.repr(value), reprlib.repr(first_value)
                where = f"'{field}' of problem {row.problem!r}"
                self.mistake(
                    number,
                    f"{where} is {here}, but {there} on {self.place} {line}; use the same value on all {self.place}s",
                )
                return False
        return True

    def _pack(self, name: str) -> None:
        """Verify the waiting completions, and convert them to columns to save memory."""
        rows = self.waiting.pop(name)
        known = (self.problems[problem] for _, problem, *_, verdict in rows if verdict is None)
        answers = (answer for *_, answer, verdict in rows if verdict is None)
        claims = [(a, fields["gold"][0], fields["answer_kind"][0]) for a, fields in zip(answers, known, strict=True)]
        verdicts = iter(verify_many(claims))
        verified = [row if row[-1] is not None else (*row[:-1], next(verdicts)) for row in rows]
        self.chunks.setdefault(name, []).append(pl.DataFrame(verified, schema=ROWS, orient="row"))

    def result(self, *, lenient: bool) -> Predictions:
        """The content of the file; raises InputError when there are mistakes."""
        for name in list(self.waiting):
            self._pack(name)
        rows = {name: self._ordered(pl.concat(self.chunks.pop(name))) for name in self.models if name in self.chunks}
        for name, frame in rows.items():
            self._find_duplicates(name, frame)
        missing = {} if self.num_mistakes else self._missing(rows)
        if missing and not lenient:
            for problem, (number, names) in missing.items():
                what = f"problem {problem!r} is missing for {', '.join(names)}; add it, or import with --lenient"
                self.mistake(number, what)
        self._raise_mistakes()
        if len(missing) == len(self.problems):
            raise InputError(f"{self.file}: no problem has predictions of all models; nothing was written")
        left_out = [f"problem {problem!r}: missing for {', '.join(names)}" for problem, (_, names) in missing.items()]
        kept = {problem: fields for problem, fields in self.problems.items() if problem not in missing}
        complete = ~pl.col("problem_id").is_in(list(missing))
        rows = {name: _numbered(frame.filter(complete)) for name, frame in rows.items()}
        assert self.form is not None  # there are lines
        return Predictions(
            file=self.file,
            sha256=self.digest.hexdigest(),
            form=self.form,
            num_lines=self.num_lines,
            models={name: self.models[name] for name in rows},
            problems=_problems(kept),
            rows=rows,
            left_out=left_out,
            unread=list(self.unread),
        )

    def _ordered(self, frame: pl.DataFrame) -> pl.DataFrame:
        order = pl.DataFrame({"problem_id": list(self.problems)}, schema={"problem_id": pl.String})
        order = order.with_row_index("position")
        return frame.join(order, on="problem_id", how="left").sort("position", "sample_index", "line").drop("position")

    def _find_duplicates(self, name: str, frame: pl.DataFrame) -> None:
        key = ["problem_id", "sample_index"]
        is_first = pl.struct(key).is_first_distinct()
        firsts = frame.filter(is_first).select(*key, first="line")
        again = frame.filter(~is_first).join(firsts, on=key, how="left").unique("line").sort("line")
        for number, problem, sample, first in again.select("line", *key, "first").head(MAX_LISTED).iter_rows():
            sampled = "" if self.form == PER_PROBLEM else f", sample {sample}"
            row = f"model {self.models[name]!r}, problem {problem!r}{sampled}"
            self.mistake(number, f"{row} is also on {self.place} {first}; remove one of the {self.place}s")
        self.num_mistakes += max(0, again.height - MAX_LISTED)

    def _missing(self, rows: dict[str, pl.DataFrame]) -> dict[str, tuple[int, list[str]]]:
        """Incomplete problems -> (first line of the problem, names of the missing models)."""
        if not rows:
            return {}
        lines = pl.concat([frame.select("problem_id", "line", model=pl.lit(name)) for name, frame in rows.items()])
        seen = lines.group_by("problem_id", maintain_order=True).agg(pl.col("line").min(), pl.col("model").unique())
        partly = seen.filter(pl.col("model").list.len() < len(rows))
        return {
            p: (line, [self.models[name] for name in rows if name not in present])
            for p, line, present in partly.iter_rows()
        }

    def _raise_mistakes(self) -> None:
        if not self.num_mistakes and not self.num_lines:
            raise InputError(f"{self.file}: has no predictions; nothing was written")
        if not self.num_mistakes:
            return
        num = f"1 bad {self.place}" if self.num_mistakes == 1 else f"{self.num_mistakes} bad {self.place}s"
        lines = [f"{self.file}: {num}; nothing was written"]
        lines += [f"  - {self.file}, {self.place} {number}: {what}" for number, what in sorted(self.mistakes)]
        more = self.num_mistakes - len(self.mistakes)
        if more:
            lines.append(f"  - and {more} more")
        raise InputError("\n".join(lines))


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """The ordered rows of a model, with samples that count from 0 in each problem, as those of a run do."""
    position = pl.int_range(pl.len(), dtype=pl.Int32)
    return frame.with_columns(sample_index=position.over("problem_id"))


def _problems(known: dict[str, dict[str, tuple[str, int]]]) -> pl.DataFrame:
    rows = []
    for problem, fields in known.items():
        values = {name: value for name, (value, _) in fields.items()}
        gold, kind = values.get("gold", ""), values["answer_kind"]
        metadata = json.dumps({name: values[name] for name in ATTRIBUTES if name in values}, sort_keys=True)
        kind = kind if canonical_gold(kind, gold) is not None else GIVEN
        rows.append((problem, values.get("question", ""), gold, kind, metadata))
    return pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row")
