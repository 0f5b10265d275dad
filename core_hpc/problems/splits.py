"""The splits of a run: reads or generates them, and checks what training and evaluation share.

In: the `problems` section of the configuration. Out: frames of schema.PROBLEMS. The process that
prepares a run makes its splits once and freezes them in the run folder; the phases read them there.
`files.py`, `datasets.py` and `generators.py` read the sources, and `duplicates.py` finds
near-duplicates.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from core_hpc.answers.verifier import require_algebra
from core_hpc.common.errors import InputError
from core_hpc.common.seeds import stable_seed
from core_hpc.config.problems import (
    MADE,
    DataSetProblems,
    FileProblems,
    NoProblems,
    ProblemSource,
    ProblemsSection,
)
from core_hpc.config.run import RunConfig
from core_hpc.config.warmup import WarmupSection
from core_hpc.problems import datasets, generators
from core_hpc.problems.duplicates import NearDuplicates
from core_hpc.problems.files import Item, folded, own_row, read_items
from core_hpc.store.schema import EVALUATE, PROBLEMS, UPDATE

HINTED = "hinted"
"""Field of a warm-up problem's metadata: its prompt shows the solution as a hint."""
TRAIN, EVALUATION, EXAMPLES = SPLITS = ("train", "evaluation", "examples")


@dataclass(frozen=True)
class Splits:
    """All problems of a run. Prompts show `examples`, whose metadata has their worked solution."""

    train: pl.DataFrame
    evaluation: pl.DataFrame
    examples: pl.DataFrame
    warmups: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """The problems of each model's warm-up, by the model's name; `HINTED` is a field of their metadata."""
    identities: Mapping[str, str] = field(default_factory=dict)
    """Question -> `Item.identity`, for the problems that have one. Frozen splits do not have it."""

    def by_name(self) -> dict[str, pl.DataFrame]:
        """All problems, by the name under which they are frozen."""
        return {name: getattr(self, name) for name in SPLITS} | {
            warmup_split(model): frame for model, frame in self.warmups.items()
        }

    def compared(self, split: str) -> list[str]:
        """The texts by which the problems of a split are compared with others (`Item.compared`)."""
        return [self.identities.get(question, question) for question in getattr(self, split)["question"]]


def warmup_split(model: str) -> str:
    """The split with the problems of a model's warm-up."""
    return f"warmup-{model}"


def split_of(phase: str) -> str:
    """The split that a phase uses: held-out problems for evaluate, otherwise training problems."""
    return EVALUATION if phase == EVALUATE else TRAIN


def source_mistakes(source: ProblemSource | NoProblems) -> list[tuple[str, str]]:
    """(field, message) for each mistake that can be found without a file and without the hub."""
    if isinstance(source, MADE):
        return generators.mistakes_in(source)
    return datasets.mistakes_in(source) if isinstance(source, DataSetProblems) else []


def make_splits(section: ProblemsSection) -> Splits:
    """Read or generate all splits.

    The result depends only on the section and the files that it names. Kinds of answers of the user
    must be known already (`kinds.own_kinds`).

    Raises:
        InputError: there are bad rows or too few problems, or training and evaluation share
            (nearly) the same problems.
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
    return Splits(
        train=frame_of(splits[TRAIN]),
        evaluation=frame_of(splits[EVALUATION]),
        examples=frame_of(splits[EXAMPLES]),
        identities=identities_of(i for items in splits.values() for i in items),
    )


def identities_of(items: Iterable[Item]) -> dict[str, str]:
    """Question -> identity of the problems that have one."""
    return {i.question: i.identity for i in items if i.identity is not None}


def warmup_problems(warmup: WarmupSection, held_out: set[str], near: NearDuplicates | None = None) -> pl.DataFrame:
    """The problems of a warm-up, none of which is a held-out problem.

    Args:
        warmup: the sources.
        held_out: the texts by which held-out problems are compared.
        near: an index of the held-out problems to which no problem of a file may be nearly equal.

    Raises:
        InputError: a source has too few problems, or problems without a worked solution.
    """
    items: list[Item] = []
    for number, source in enumerate(warmup.sources):
        label = f"warmup-{number}" if number else "warmup"
        found = _solved(source, problems_apart_from(source, label, held_out, near))
        items += [replace(i, metadata={**i.metadata, HINTED: True}) for i in found] if number else found
    if twice := [name for name, times in Counter(i.problem_id for i in items).items() if times > 1]:
        raise InputError(f"two sources of the warm-up have the id {twice[0]!r}; give their problems different ids")
    return frame_of(items)


def problems_apart_from(
    source: ProblemSource, label: str, others: set[str], near: NearDuplicates | None = None
) -> list[Item]:
    """The problems of a source, without those that are among others.

    Args:
        source: the source.
        label: name of the split; it is part of the seed.
        others: the texts by which the other problems are compared.
        near: if given, the problems of a file are also not nearly equal to one of this index.

    Raises:
        InputError: the source cannot be read, or has too few problems.
    """
    if isinstance(source, MADE):
        return generators.generate(source, source.count, label, set(others))
    read, taken = _read(source, label), {folded(text) for text in others}
    apart = [i for i in read if folded(i.compared) not in taken]
    if near is not None:
        apart = [i for i in apart if near.nearest(i.compared) is None]
    return _draw(apart, source, label, num_read=len(read))


def _read(source: FileProblems | DataSetProblems, label: str) -> list[Item]:
    if isinstance(source, DataSetProblems):
        return datasets.read_data_set(source, label)
    return read_items(Path(source.path).expanduser(), source.source, own_row(source.answer_kind), one_answer=True)


def _draw_all(section: ProblemsSection, files: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """Draw training first, then evaluation from the rest; with `drop` in the reverse order."""
    drop = section.near_duplicates == "drop" and len(files) == 2
    splits: dict[str, list[Item]] = {}
    taken: set[str] = set()
    for label in (EVALUATION, TRAIN) if drop else (TRAIN, EVALUATION):
        source: ProblemSource | NoProblems = getattr(section, label)
        if isinstance(source, NoProblems):
            splits[label] = []
            continue
        if isinstance(source, MADE):
            splits[label] = generators.generate(source, source.count, label, taken)
            continue
        items = files[label]
        if drop and label == TRAIN:
            near = NearDuplicates([i.compared for i in splits[EVALUATION]])
            items = [i for i in items if near.nearest(i.compared) is None]
        if source.count is not None:
            used = {folded(i.compared) for other in splits.values() for i in other}
            items = [i for i in items if folded(i.compared) not in used]
        splits[label] = _draw(items, source, label, num_read=len(files[label]))
        taken.update(i.question for i in splits[label])
    return splits


def _draw(items: list[Item], source: FileProblems | DataSetProblems, label: str, *, num_read: int) -> list[Item]:
    name, count = source.path or source.source, source.count
    if not items or (count is not None and count > len(items)):
        num_missing = num_read - len(items)
        missing = f", {num_missing} of them are used or excluded by the other split" if num_missing else ""
        raise InputError(
            f"problems.{label}: {name} has {num_read} problems{missing}, "
            f"but the configuration asks for {count or 'all the others'}"
        )
    if count is None:
        return items
    chosen = random.Random(stable_seed(source.seed, "draw", label)).sample(range(len(items)), count)
    return [items[i] for i in sorted(chosen)]


# --- problems that splits must not share ---------------------------------------------------------


def _check_same(train: Sequence[Item], evaluation: Sequence[Item]) -> None:
    by_text = {folded(i.compared): i for i in evaluation}
    shared = [(i, by_text[folded(i.compared)]) for i in train if folded(i.compared) in by_text]
    if shared:
        trained, held_out = shared[0]
        raise InputError(
            f"problems: training and evaluation share {len(shared)} question(s), for example {trained.problem_id} of "
            f"training and {held_out.problem_id} of evaluation: {trained.compared[:80]!r}; use other files or splits, "
            "or set problems.near_duplicates: drop, which removes them from training"
        )


def _check_near(train: Sequence[Item], evaluation: Sequence[Item], near: NearDuplicates) -> None:
    pairs = [(*found, item) for item in train if (found := near.nearest(item.compared)) is not None]
    if pairs:
        similarity, index, trained = max(pairs, key=lambda pair: pair[0])
        held_out = evaluation[index]
        raise InputError(
            f"problems: {len(pairs)} training problem(s) are nearly the same as held-out problems, for example "
            f"{trained.problem_id} of training and {held_out.problem_id} of evaluation, which share {similarity:.0%} "
            f"of their groups of three words:\n  {trained.compared[:200]!r}\n  {held_out.compared[:200]!r}\n"
            "set problems.near_duplicates: drop (remove them from training), or allow (keep them)"
        )


def _examples(
    section: ProblemsSection, read: Sequence[Item], taken: set[str], near: NearDuplicates | None
) -> list[Item]:
    """Worked examples from the training source.

    They are in neither split and not near an evaluation problem.
    """
    source, count = section.train, section.num_examples
    if count == 0 or isinstance(source, NoProblems):
        return []
    if isinstance(source, MADE):
        return _solved(source, generators.generate(source, count, EXAMPLES, taken))
    chosen = [i for i, _ in zip(_spare(read, taken, near), range(count), strict=False)]
    if len(chosen) < count:
        raise InputError(
            f"problems.num_examples: {source.path or source.source} has {len(chosen)} problem(s) with a 'solution' "
            f"outside both splits, but {count} are needed; lower problems.train.count or num_examples"
        )
    return chosen


def _spare(read: Sequence[Item], taken: set[str], near: NearDuplicates | None) -> Iterator[Item]:
    for item in read:
        solved = isinstance(item.metadata.get("solution"), str)
        if solved and item.question not in taken and (near is None or near.nearest(item.compared) is None):
            yield item


def _solved(source: ProblemSource, items: list[Item]) -> list[Item]:
    if not all(isinstance(i.metadata.get("solution"), str) for i in items):
        name = generators.name_of(source) if isinstance(source, MADE) else source.path or source.source
        raise InputError(
            f"problems: {name} has no worked solutions (`solution`), which problems.num_examples and a warm-up need; "
            "use another source, or leave them out"
        )
    return items


def frame_of(items: Sequence[Item]) -> pl.DataFrame:
    """The problems as `schema.PROBLEMS`."""
    rows = [(i.problem_id, i.question, i.gold, i.answer_kind, json.dumps(i.metadata, sort_keys=True)) for i in items]
    return pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row")


def items_of(problems: pl.DataFrame, identities: Mapping[str, str]) -> list[Item]:
    """The problems of `frame_of`, with the identities of `identities_of`."""
    return [
        Item(name, question, gold, json.loads(metadata), kind, identities.get(question))
        for name, question, gold, kind, metadata in problems.select(list(PROBLEMS.columns)).iter_rows()
    ]


def problems_digest(problems: pl.DataFrame) -> str:
    """A digest of problems, in hex digits. It depends on their content only, not on a file format."""
    rows = json.dumps(problems.select(list(PROBLEMS.columns)).rows(), separators=(",", ":"))
    return hashlib.sha256(rows.encode()).hexdigest()


def worked_examples(examples: pl.DataFrame) -> tuple[tuple[str, str], ...]:
    """(question, worked solution) of each example, for prompts."""
    return tuple(
        (question, json.loads(metadata)["solution"])
        for question, metadata in examples.select("question", "metadata").rows()
    )


def check_counts(config: RunConfig, splits: Splits) -> None:
    """Raise InputError if an iteration needs more problems than the training split has."""
    wanted = config.protocol.problems_per_iteration
    if isinstance(config.problems.train, NoProblems):
        return
    if wanted > splits.train.height:
        raise InputError(
            f"protocol.problems_per_iteration is {wanted}, but problems.train has {splits.train.height} problems; "
            "lower problems_per_iteration or add problems"
        )


def iterations_per_epoch(num_problems: int, problems_per_iteration: int) -> int:
    """Number of whole iterations in one pass over the training problems; the rest is skipped."""
    return num_problems // problems_per_iteration


def problems_of_iteration(num_problems: int, problems_per_iteration: int, iteration: int, seed: int) -> list[int]:
    """Row numbers of the training problems of a 1-based iteration.

    Every epoch has its own seeded order.
    """
    per_epoch = iterations_per_epoch(num_problems, problems_per_iteration)
    epoch, position = divmod(iteration - 1, per_epoch)
    order = list(range(num_problems))
    random.Random(stable_seed(seed, "order", epoch)).shuffle(order)
    return order[position * problems_per_iteration : (position + 1) * problems_per_iteration]


def problems_of_steps(
    problem_ids: Sequence[str], *, problems_per_step: int, run_seed: int, iteration: int
) -> list[tuple[str, ...]]:
    """The problems of each optimizer step of an update, the same for all models.

    Args:
        problem_ids: the problems of the iteration, sorted.
        problems_per_step: `update.problems_per_step`.
        run_seed: seed of the run.
        iteration: 1-based.
    """
    return cut_into_steps(problem_ids, problems_per_step=problems_per_step, seed=shuffle_seed(run_seed, iteration))


def shuffle_seed(run_seed: int, iteration: int) -> int:
    """The seed of the order of problems in the updates of an iteration."""
    return stable_seed(run_seed, UPDATE, "shuffle", iteration)


def cut_into_steps(problem_ids: Sequence[str], *, problems_per_step: int, seed: int) -> list[tuple[str, ...]]:
    """The problems in a random order, cut into optimizer steps; the last one may be smaller.

    >>> cut_into_steps(["p", "q", "r"], problems_per_step=2, seed=0)
    [('p', 'r'), ('q',)]
    """
    order = list(problem_ids)
    random.Random(seed).shuffle(order)
    return [tuple(order[i : i + problems_per_step]) for i in range(0, len(order), problems_per_step)]
