"""Problem sources: generated arithmetic, local JSONL, GSM8K's file format. Out: frames of schema.PROBLEMS.

Every bad row is an InputError that names file and line. The splits of a run are made once and frozen into its
folder (prepare.py); phases read them from there. Verification of answers is answers.py's.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.answers import normalize_number
from core_hpc.config import FileProblems, GeneratedProblems, ProblemsSection, RunConfig
from core_hpc.errors import InputError
from core_hpc.schema import PROBLEMS
from core_hpc.seeds import stable_seed


@dataclass(frozen=True)
class Splits:
    """All problems of a run. `examples` are shown in prompts, with their worked solution in the metadata."""

    train: pl.DataFrame
    evaluation: pl.DataFrame
    examples: pl.DataFrame


@dataclass(frozen=True)
class _Item:
    problem_id: str
    question: str
    gold: str
    metadata: dict[str, Any]


def _frame(items: list[_Item]) -> pl.DataFrame:
    rows = [(i.problem_id, i.question, i.gold, "number", json.dumps(i.metadata, sort_keys=True)) for i in items]
    return pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row")


# --- generated ------------------------------------------------------------------------------------------------------


def _addition_chain(rng: random.Random, *, num_terms: int = 3, max_value: int = 9, subtract: int = 1) -> _Item:
    """`What is 4 + 7 - 3?` with a worked line as solution; partial sums stay non-negative."""
    total = rng.randint(1, max_value)
    text, steps = str(total), []
    for _ in range(num_terms - 1):
        value = rng.randint(1, max_value)
        minus = bool(subtract) and value <= total and rng.random() < 0.5
        result = total - value if minus else total + value
        sign = "-" if minus else "+"
        text += f" {sign} {value}"
        steps.append(f"{total} {sign} {value} = {result}.")
        total = result
    return _Item("", f"What is {text}?", str(total), {"solution": f"{' '.join(steps)} #### {total}"})


Generator = Callable[..., _Item]
GENERATORS: dict[str, tuple[Generator, dict[str, tuple[int, int]]]] = {
    "addition_chain": (_addition_chain, {"num_terms": (2, 50), "max_value": (1, 10**9), "subtract": (0, 1)}),
}
"""Name -> (generator, {option: (smallest, largest value)}). Adding a family is one function and one line."""


def generator_mistakes(source: GeneratedProblems) -> list[tuple[str, str]]:
    """(field, message) for each mistake in a generator's name or options; needs no other file."""
    if source.task not in GENERATORS:
        return [("task", f"unknown generator {source.task!r}; there is {', '.join(sorted(GENERATORS))}")]
    ranges = GENERATORS[source.task][1]
    mistakes = []
    for name, value in source.options.items():
        if name not in ranges:
            mistakes.append((f"options.{name}", f"unknown option; {source.task} has {', '.join(ranges)}"))
        elif not ranges[name][0] <= value <= ranges[name][1]:
            mistakes.append((f"options.{name}", f"must be from {ranges[name][0]} to {ranges[name][1]}, not {value}"))
    return mistakes


def _generate(source: GeneratedProblems, count: int, label: str, taken: set[str]) -> list[_Item]:
    """`count` different items whose questions are not in `taken`; adds them to it."""
    make = GENERATORS[source.task][0]
    rng = random.Random(stable_seed(source.seed, "problems", source.task, label))
    items: list[_Item] = []
    misses = 0
    while len(items) < count:
        item = make(rng, **source.options)
        if item.question in taken:
            misses += 1
            if misses > 1000 + 100 * count:
                raise InputError(
                    f"problems: generator {source.task} with {source.options or 'its defaults'} has too few different problems: "
                    f"found {len(items)} of {count} for {label}; ask for fewer or widen its options"
                )
            continue
        taken.add(item.question)
        items.append(_Item(f"{source.task}-{label}-{len(items):05d}", item.question, item.gold, item.metadata))
    return items


# --- files ----------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as f:
            for number, line in enumerate(f, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: not a JSON object")
                yield number, row
    except json.JSONDecodeError as e:
        raise InputError(f"{path}, line {number}: not JSON ({e.msg} at column {e.colno})") from e
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read ({e})") from e


def _text_field(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise InputError(f"{where}: no field '{field}' (it has {', '.join(map(str, row)) or 'none'})")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where}: '{field}' must be text or a number, not {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: '{field}' is {value}, which is not a finite number")
    text = str(value).strip()
    if not text:
        raise InputError(f"{where}: '{field}' is empty")
    return text


def _gold_number(text: str, where: str) -> str:
    gold = normalize_number(text)
    if gold is None:
        raise InputError(f"{where}: the answer {text[:60]!r} is not a finite number")
    return gold


def _read_jsonl(path: Path) -> list[_Item]:
    items = []
    for number, row in _json_lines(path):
        where = f"{path}, line {number}"
        rest = {k: v for k, v in row.items() if k not in ("id", "question", "answer")}
        gold = _gold_number(_text_field(row, "answer", where), where)
        items.append(_Item(_text_field(row, "id", where), _text_field(row, "question", where), gold, rest))
    return items


def _read_gsm8k(path: Path) -> list[_Item]:
    items = []
    for number, row in _json_lines(path):
        where = f"{path}, line {number}"
        solution, mark, final = _text_field(row, "answer", where).rpartition("####")
        if not mark:
            raise InputError(f"{where}: 'answer' has no '#### <number>' at its end")
        worked = f"{solution.strip()}\n#### {final.strip()}"
        question, gold = _text_field(row, "question", where), _gold_number(final, where)
        items.append(_Item(f"{path.stem}-{number:05d}", question, gold, {"solution": worked}))
    return items


def _read_file(source: FileProblems) -> list[_Item]:
    path = Path(source.path).expanduser()
    if not path.is_file():
        raise InputError(f"{path.absolute()}: no such file (problems.*.path is relative to the current folder)")
    items = _read_jsonl(path) if source.source == "jsonl" else _read_gsm8k(path)
    first: dict[str, int] = {}
    for row, item in enumerate(items, start=1):
        if item.problem_id in first:
            raise InputError(f"{path}: id {item.problem_id!r} of problem {row} is also that of problem {first[item.problem_id]}")
        first[item.problem_id] = row
    if source.count is not None and source.count > len(items):
        raise InputError(f"{path}: has {len(items)} problems, the configuration asks for {source.count}")
    if not items:
        raise InputError(f"{path}: has no problems")
    return items


def _draw(items: list[_Item], count: int | None, seed: int, label: str) -> list[_Item]:
    if count is None:
        return items
    chosen = random.Random(stable_seed(seed, "draw", label)).sample(range(len(items)), count)
    return [items[i] for i in sorted(chosen)]


# --- splits ---------------------------------------------------------------------------------------------------------


def _folded(question: str) -> str:
    return " ".join(question.casefold().split())


def make_splits(section: ProblemsSection) -> Splits:
    """Read or generate all splits; they share no question. Deterministic in the section alone."""
    taken: set[str] = set()
    splits: dict[str, list[_Item]] = {}
    for label, source in (("train", section.train), ("evaluation", section.evaluation)):
        if isinstance(source, GeneratedProblems):
            splits[label] = _generate(source, source.count, label, taken)
        else:
            splits[label] = _draw(_read_file(source), source.count, source.seed, label)
            taken.update(i.question for i in splits[label])
    shared = {_folded(i.question) for i in splits["train"]} & {_folded(i.question) for i in splits["evaluation"]}
    if shared:
        raise InputError(f"problems: training and evaluation share {len(shared)} question(s), for example {sorted(shared)[0][:80]!r}")
    examples = _examples(section, taken)
    return Splits(_frame(splits["train"]), _frame(splits["evaluation"]), _frame(examples))


def _examples(section: ProblemsSection, taken: set[str]) -> list[_Item]:
    """Worked examples from the training source which are in neither split."""
    if section.num_examples == 0:
        return []
    source = section.train
    if isinstance(source, GeneratedProblems):
        return _generate(source, section.num_examples, "examples", taken)
    spare = [i for i in _read_file(source) if i.question not in taken and isinstance(i.metadata.get("solution"), str)]
    if len(spare) < section.num_examples:
        raise InputError(
            f"problems.num_examples: {source.path} has {len(spare)} problem(s) with a 'solution' outside both splits, "
            f"{section.num_examples} are needed; lower problems.train.count or num_examples"
        )
    return spare[: section.num_examples]


def worked_examples(examples: pl.DataFrame) -> tuple[tuple[str, str], ...]:
    """(question, worked solution) of the examples split, as prompts show them."""
    return tuple((question, json.loads(metadata)["solution"]) for question, metadata in examples.select("question", "metadata").rows())


def check_counts(config: RunConfig, splits: Splits) -> None:
    """InputError when an iteration needs more problems than there are."""
    wanted = config.protocol.problems_per_iteration
    if wanted > splits.train.height:
        raise InputError(
            f"protocol.problems_per_iteration: {wanted} problems an iteration, but problems.train has {splits.train.height}; "
            "lower the one or raise the other"
        )


def iterations_per_epoch(num_problems: int, problems_per_iteration: int) -> int:
    """Whole iterations of one pass over the training problems; the rest of the pass is left out."""
    return num_problems // problems_per_iteration


def problems_of_iteration(num_problems: int, problems_per_iteration: int, iteration: int, seed: int) -> list[int]:
    """Row numbers of the training problems of an iteration (1-based), in a seeded order anew each epoch."""
    per_epoch = iterations_per_epoch(num_problems, problems_per_iteration)
    epoch, position = divmod(iteration - 1, per_epoch)
    order = list(range(num_problems))
    random.Random(stable_seed(seed, "order", epoch)).shuffle(order)
    return order[position * problems_per_iteration : (position + 1) * problems_per_iteration]
