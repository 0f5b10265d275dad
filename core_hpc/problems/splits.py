"""The problems of a run: reading or generating all splits, and what these may share. Out: frames of schema.PROBLEMS.

The splits of a run are made once, by whoever prepares it, and frozen into its folder (prepare.py); phases read them from there.
Sources are read by problem_files.py, data_sets.py and generators.py; near-duplicates are found by duplicates.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core_hpc.answers.verifier import require_algebra
from core_hpc.common.errors import InputError
from core_hpc.common.seeds import stable_seed
from core_hpc.config.problems import (
    DataSetProblems,
    FileProblems,
    GeneratedProblems,
    GymProblems,
    ProblemSource,
    ProblemsSection,
)
from core_hpc.config.run import RunConfig
from core_hpc.problems import datasets, generators
from core_hpc.problems.duplicates import NearDuplicates
from core_hpc.problems.files import Item, own_row, read_items
from core_hpc.store.schema import EVALUATE, PROBLEMS

TRAIN, EVALUATION, EXAMPLES = SPLITS = ("train", "evaluation", "examples")


@dataclass(frozen=True)
class Splits:
    """All problems of a run. `examples` are shown in prompts, with their worked solution in the metadata."""

    train: pl.DataFrame
    evaluation: pl.DataFrame
    examples: pl.DataFrame


def split_of(phase: str) -> str:
    """The split whose problems a phase is about: held-out ones for evaluate, training problems for all others."""
    return EVALUATION if phase == EVALUATE else TRAIN


def source_mistakes(source: ProblemSource) -> list[tuple[str, str]]:
    """(field, message) for each mistake that can be found without reading a file or asking the hub."""
    if isinstance(source, (GeneratedProblems, GymProblems)):
        return generators.mistakes_in(source)
    return datasets.mistakes_in(source) if isinstance(source, DataSetProblems) else []


def make_splits(section: ProblemsSection) -> Splits:
    """Read or generate all splits; training and evaluation share no problem. Deterministic in the section alone.

    Raises:
        InputError: bad rows, too few problems, or problems that are (nearly) the same in training and evaluation.
    """
    files = {
        label: _read(source, label)
        for label, source in ((TRAIN, section.train), (EVALUATION, section.evaluation))
        if isinstance(source, (FileProblems, DataSetProblems))
    }
    splits = _draw_all(section, files)
    _check_same(splits[TRAIN], splits[EVALUATION])
    near = NearDuplicates([i.compared for i in splits[EVALUATION]]) if len(files) == 2 else None
    if near is not None and section.near_duplicates == "error":
        _check_near(splits[TRAIN], splits[EVALUATION], near)
    taken = {i.question for items in splits.values() for i in items}
    splits[EXAMPLES] = _examples(section, files.get(TRAIN, []), taken, near)
    if any(i.answer_kind == "latex" for items in splits.values() for i in items):
        require_algebra()
    return Splits(**{label: _frame(items) for label, items in splits.items()})


def _read(source: FileProblems | DataSetProblems, label: str) -> list[Item]:
    if isinstance(source, DataSetProblems):
        return datasets.read_data_set(source, label)
    return read_items(Path(source.path).expanduser(), source.source, own_row(source.answer_kind))


def _draw_all(section: ProblemsSection, files: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """Training, then evaluation from what training leaves; with `drop`, training from what evaluation leaves."""
    drop = section.near_duplicates == "drop" and len(files) == 2
    splits: dict[str, list[Item]] = {}
    taken: set[str] = set()
    for label in (EVALUATION, TRAIN) if drop else (TRAIN, EVALUATION):
        source: ProblemSource = getattr(section, label)
        if isinstance(source, (GeneratedProblems, GymProblems)):
            splits[label] = generators.generate(source, source.count, label, taken)
            continue
        items = files[label]
        if drop and label == TRAIN:
            near = NearDuplicates([i.compared for i in splits[EVALUATION]])
            items = [i for i in items if near.nearest(i.compared) is None]
        if source.count is not None:
            used = {_folded(i.compared) for other in splits.values() for i in other}
            items = [i for i in items if _folded(i.compared) not in used]
        splits[label] = _draw(items, source, label, num_read=len(files[label]))
        taken.update(i.question for i in splits[label])
    return splits


def _draw(items: list[Item], source: FileProblems | DataSetProblems, label: str, *, num_read: int) -> list[Item]:
    name, count = source.path or source.source, source.count
    if not items or (count is not None and count > len(items)):
        left = (
            "" if len(items) == num_read else f", {num_read - len(items)} of them used or left out for the other split"
        )
        raise InputError(
            f"problems.{label}: {name} has {num_read} problems{left}, the configuration asks for {count or 'all the others'}"
        )
    if count is None:
        return items
    chosen = random.Random(stable_seed(source.seed, "draw", label)).sample(range(len(items)), count)
    return [items[i] for i in sorted(chosen)]


# --- what splits may share -----------------------------------------------------------------------


def _folded(question: str) -> str:
    return " ".join(question.casefold().split())


def _check_same(train: Sequence[Item], evaluation: Sequence[Item]) -> None:
    held_out = {_folded(i.compared): i for i in evaluation}
    shared = [(i, held_out[_folded(i.compared)]) for i in train if _folded(i.compared) in held_out]
    if shared:
        ours, theirs = shared[0]
        raise InputError(
            f"problems: training and evaluation share {len(shared)} question(s), for example {ours.problem_id} of training and "
            f"{theirs.problem_id} of evaluation: {ours.compared[:80]!r}; use other files or splits, or write "
            "problems.near_duplicates: drop, which leaves them out of training"
        )


def _check_near(train: Sequence[Item], evaluation: Sequence[Item], near: NearDuplicates) -> None:
    pairs = [(*found, ours) for ours in train if (found := near.nearest(ours.compared)) is not None]
    if pairs:
        similarity, index, ours = max(pairs, key=lambda pair: pair[0])
        theirs = evaluation[index]
        raise InputError(
            f"problems: {len(pairs)} training problem(s) are nearly the same as held-out ones, for example {ours.problem_id} of training "
            f"and {theirs.problem_id} of evaluation, whose groups of three words agree to {similarity:.0%}:\n  {ours.compared[:200]!r}\n"
            f"  {theirs.compared[:200]!r}\nwrite problems.near_duplicates: drop (leave them out of training), or allow (keep them)"
        )


def _examples(
    section: ProblemsSection, read: Sequence[Item], taken: set[str], near: NearDuplicates | None
) -> list[Item]:
    """Worked examples from the training source which are in neither split, nor nearly in evaluation."""
    source, count = section.train, section.num_examples
    if count == 0:
        return []
    if isinstance(source, (GeneratedProblems, GymProblems)):
        return _solved(source, generators.generate(source, count, EXAMPLES, taken))
    chosen = [i for i, _ in zip(_spare(read, taken, near), range(count), strict=False)]
    if len(chosen) < count:
        raise InputError(
            f"problems.num_examples: {source.path or source.source} has {len(chosen)} problem(s) with a 'solution' outside both splits, "
            f"{count} are needed; lower problems.train.count or num_examples"
        )
    return chosen


def _spare(read: Sequence[Item], taken: set[str], near: NearDuplicates | None) -> Iterator[Item]:
    for item in read:
        solved = isinstance(item.metadata.get("solution"), str)
        if solved and item.question not in taken and (near is None or near.nearest(item.compared) is None):
            yield item


def _solved(source: GeneratedProblems | GymProblems, items: list[Item]) -> list[Item]:
    if not all(isinstance(i.metadata.get("solution"), str) for i in items):
        raise InputError(f"problems.num_examples: {source.task} gives no worked solutions to show; write 0")
    return items


def _frame(items: Sequence[Item]) -> pl.DataFrame:
    rows = [(i.problem_id, i.question, i.gold, i.answer_kind, json.dumps(i.metadata, sort_keys=True)) for i in items]
    return pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row")


def worked_examples(examples: pl.DataFrame) -> tuple[tuple[str, str], ...]:
    """(question, worked solution) of the examples split, as prompts show them."""
    return tuple(
        (question, json.loads(metadata)["solution"])
        for question, metadata in examples.select("question", "metadata").rows()
    )


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
