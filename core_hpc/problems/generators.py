"""Generated problems: the generators of this package, and the tasks of reasoning-gym.

In: a source with a seed, and the questions that must not be repeated. Out: `Item`s. The same source
gives the same problems on every machine. `splits.py` makes the splits and checks what they share.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.seeds import stable_seed
from core_hpc.config.problems import FunctionProblems, GeneratedProblems, GymProblems
from core_hpc.extensions.sources import function_name, source_of
from core_hpc.extensions.workers import shared_workers
from core_hpc.problems.files import Item, RowError, gold_of, own_row
from core_hpc.problems.skills import SKILL_OPTIONS, skill_problem

GYM_TIMEOUT_S = 600
FUNCTION_TIMEOUT_S = 600.0
"""Wall-clock limit of one call of a user's problem source."""
MAX_ROUNDS = 20
"""Calls of a user's problem source that do not return enough different problems."""


def _addition_chain(
    rng: random.Random, number: int, *, num_terms: int = 3, max_value: int = 9, subtract: int = 1
) -> Item:
    """`What is 4 + 7 - 3?` with a worked solution; partial sums are never negative."""
    del number  # all problems are of one family
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
    return Item("", f"What is {text}?", str(total), {"solution": f"{' '.join(steps)} #### {total}"})


Generator = Callable[..., Item]
GENERATORS: dict[str, tuple[Generator, dict[str, tuple[int, int]]]] = {
    "addition_chain": (_addition_chain, {"num_terms": (2, 50), "max_value": (1, 10**9), "subtract": (0, 1)}),
    "skills": (skill_problem, SKILL_OPTIONS),
}
"""Name -> (generator, {option: (smallest, largest value)}).

A generator is a function of a random stream, the 0-based number of the problem in its split, and
options. A new one needs one function and one entry.
"""


Made = GeneratedProblems | GymProblems | FunctionProblems
"""A source that makes as many problems as it is asked for."""


def mistakes_in(source: Made) -> list[tuple[str, str]]:
    """(field, message) for each mistake in the name or options of a generator.

    Imports nothing heavy. `runs/sweep.py` checks functions of the user.
    """
    if isinstance(source, FunctionProblems):
        return []
    if isinstance(source, GymProblems):
        return _gym_mistakes(source)
    if source.task not in GENERATORS:
        return [("task", f"unknown generator {source.task!r}; known: {', '.join(sorted(GENERATORS))}")]
    ranges = GENERATORS[source.task][1]
    mistakes = []
    for name, value in source.options.items():
        if name not in ranges:
            mistakes.append((f"options.{name}", f"unknown option; {source.task} has {', '.join(ranges)}"))
        elif not ranges[name][0] <= value <= ranges[name][1]:
            mistakes.append((f"options.{name}", f"must be from {ranges[name][0]} to {ranges[name][1]}, not {value}"))
    return mistakes


def name_of(source: Made) -> str:
    """The name of the generator, task or function."""
    return function_name(source.function) if isinstance(source, FunctionProblems) else source.task


def generate(source: Made, count: int, label: str, taken: set[str]) -> list[Item]:
    """Different problems whose questions are not in `taken`.

    Args:
        source: the generator and its options.
        count: number of problems.
        label: name of the split; it is part of the seed.
        taken: questions that must not be repeated; the new questions are added.

    Raises:
        InputError: the generator has too few different problems, or rejects its options.
    """
    if isinstance(source, FunctionProblems):
        items = _by_function(source, count, label, taken)
    elif isinstance(source, GymProblems):
        items = _gym(source, count, label, taken)
    else:
        items = _own(source, count, label, taken)
    taken.update(item.question for item in items)
    return items


def _too_few(source: Made, found: int, count: int, label: str) -> InputError:
    return InputError(
        f"problems: generator {name_of(source)} with {source.options or 'its defaults'} has too few different "
        f"problems: found {found} of {count} for {label}; ask for fewer or widen its options"
    )


def _own(source: GeneratedProblems, count: int, label: str, taken: set[str]) -> list[Item]:
    make = GENERATORS[source.task][0]
    rng = random.Random(stable_seed(source.seed, "problems", source.task, label))
    items: list[Item] = []
    seen = set(taken)
    misses = 0
    while len(items) < count:
        item = make(rng, len(items), **source.options)
        if item.question in seen:
            misses += 1
            if misses > 1000 + 100 * count:
                raise _too_few(source, len(items), count, label)
            continue
        seen.add(item.question)
        items.append(Item(f"{source.task}-{label}-{len(items):05d}", item.question, item.gold, item.metadata))
    return items


# --- a function of the user ----------------------------------------------------------------------


def _by_function(source: FunctionProblems, count: int, label: str, taken: set[str]) -> list[Item]:
    """Calls the function with further seeds until there are enough different problems."""
    parse, name, path = own_row(source.answer_kind), name_of(source), source_of(source.function).path
    items: list[Item] = []
    ids: set[str] = set()
    seen = set(taken)
    for attempt in range(MAX_ROUNDS):
        seed = stable_seed(source.seed, "problems", name, label, *([attempt] if attempt else [])) % 2**31
        arguments = (count, seed, label)
        limit = FUNCTION_TIMEOUT_S
        (rows,) = shared_workers().call_many(
            source.function, "problem_source", [arguments], source.options, limit_s=limit
        )
        for number, row in enumerate(rows, start=1):
            try:
                item = parse({"id": f"{name}-{label}-{len(items):05d}", **row}, number)
            except RowError as e:
                raise InputError(f"problems.{label}: {path}: row {number} of what {name} returned: {e}") from e
            if item.question in seen or len(items) == count:
                continue
            if item.problem_id in ids:
                raise InputError(f"problems.{label}: {path}: {name} returned the id {item.problem_id!r} twice")
            ids.add(item.problem_id)
            seen.add(item.question)
            items.append(replace(item, metadata={"data_set": name, **item.metadata}))
        if len(items) == count:
            return items
    raise _too_few(source, len(items), count, label)


# --- reasoning-gym -------------------------------------------------------------------------------


def _gym_mistakes(source: GymProblems) -> list[tuple[str, str]]:
    if find_spec("reasoning_gym") is None:
        return [("source", "reasoning_gym is not installed; run: pip install 'core_hpc[gym]'")]
    reserved = [name for name in ("seed", "size") if name in source.options]
    message = "is set from the seed and count of the source; leave it out"
    return [(f"options.{name}", message) for name in reserved]


def _gym(source: GymProblems, count: int, label: str, taken: set[str]) -> list[Item]:
    # Some tasks depend on the order of sets of strings, so they run in a process with a fixed hash
    # seed.
    seed = stable_seed(source.seed, "reasoning_gym", source.task, label) % 2**31
    request = {"task": source.task, "options": source.options, "seed": seed, "count": count, "taken": sorted(taken)}
    answer = _run_gym(request)
    if "error" in answer:
        raise InputError(
            f"problems: reasoning-gym task {source.task} with {source.options or 'its defaults'}: {answer['error']}"
        )
    if len(answer["items"]) < count:
        raise _too_few(source, len(answer["items"]), count, label)
    return [_gym_item(source, f"{source.task}-{label}-{i:05d}", made) for i, made in enumerate(answer["items"])]


def _run_gym(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "core_hpc.problems.gym"]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=GYM_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as e:
        raise InputError(
            f"problems: reasoning-gym did not make {request['count']} problems of {request['task']} "
            f"in {GYM_TIMEOUT_S} s; ask for fewer"
        ) from e
    if done.returncode != 0:
        raise CoreHpcError(f"reasoning-gym ended with status {done.returncode}; its output:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout))


def _gym_item(source: GymProblems, problem_id: str, made: dict[str, Any]) -> Item:
    try:
        gold = gold_of(made["answer"].strip(), source.answer_kind)
    except RowError as e:
        raise InputError(f"problems: reasoning-gym task {source.task}: {e}; set its answer_kind") from e
    metadata = {"data_set": source.task, "subject": made["category"], "source_index": made["index"]}
    if made["solution"]:
        metadata["solution"] = made["solution"]
    return Item(problem_id, made["question"], gold, metadata, source.answer_kind)
