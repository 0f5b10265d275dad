"""All problems of a run, with the further problem sets of its evaluation (`evaluation.sets`).

In: the configuration. Out: the splits with the problems of warm-ups, and of all sets, which follow
the held-out problems in the frozen evaluation split. The id of a problem begins with the name of its
set, so a row of any table shows the set that it belongs to. Problems of `problems.evaluation` belong
to the set with the empty name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import polars as pl

from core_hpc.answers.kinds import own_kinds
from core_hpc.answers.own import kinds_of
from core_hpc.common.errors import InputError
from core_hpc.config.evaluation import EvaluationSetSection
from core_hpc.config.problems import DataSetProblems, FileProblems, ProblemSource
from core_hpc.config.run import RunConfig
from core_hpc.problems.duplicates import NearDuplicates
from core_hpc.problems.files import Item, folded
from core_hpc.problems.splits import (
    EVALUATION,
    EXAMPLES,
    TRAIN,
    Splits,
    frame_of,
    identities_of,
    items_of,
    make_splits,
    problems_apart_from,
    warmup_problems,
)
from core_hpc.store.phases import EVALUATE

SEPARATOR = "/"
FILES = (FileProblems, DataSetProblems)
"""Sources in which problems can be nearly equal. Generated ones differ in what they ask for."""


def all_problems(config: RunConfig) -> Splits:
    """Read or generate all problems of a run: the splits, the sets of its evaluation, and the warm-ups.

    Raises:
        InputError: a source is missing or wrong, or has too few problems; or training and
            evaluation share problems. The message names the place in the sweep file.
    """
    with own_kinds(kinds_of(config.problems.answer_kinds)):
        splits = _with_sets(config, make_splits(config.problems))
        held_out = set(splits.compared(EVALUATION))
        near = NearDuplicates(sorted(held_out)) if _compares_near(config) else None
        warmups: dict[str, pl.DataFrame] = {}
        for index, model in enumerate(config.team):
            if model.warmup is not None:
                try:
                    warmups[model.name] = warmup_problems(model.warmup, held_out, near)
                except InputError as e:
                    raise InputError(f"team.{index}.warmup: {e}") from e
    return replace(splits, warmups=warmups)


def _compares_near(config: RunConfig) -> bool:
    """Whether warm-ups leave out problems that are nearly equal to held-out ones: of files, like training problems."""
    sources = [config.problems.evaluation, *(own.problems for own in config.evaluation.sets)]
    has_warmup = any(model.warmup is not None for model in config.team)
    return has_warmup and config.problems.near_duplicates != "allow" and any(isinstance(s, FILES) for s in sources)


def _with_sets(config: RunConfig, splits: Splits) -> Splits:
    sets = config.evaluation.sets
    if not sets:
        return splits
    for own in sets:
        taken = splits.evaluation.filter(pl.col("problem_id").str.starts_with(f"{own.name}{SEPARATOR}"))
        if taken.height:
            raise InputError(
                f"evaluation.sets.{own.name}: the held-out problem {taken['problem_id'][0]!r} has an id of this set; "
                "give the set another name"
            )
    items = [item for index in range(len(sets)) for item in _problems(config, index, splits)]
    evaluation = pl.concat([splits.evaluation, frame_of(items)])
    return replace(splits, evaluation=evaluation, identities={**splits.identities, **identities_of(items)})


def _problems(config: RunConfig, index: int, splits: Splits) -> list[Item]:
    """The problems of one set. Equal sources give the main set and a further one the same problems.

    No problem of a set is a training problem or a worked example, which every prompt shows.
    """
    own, trained = config.evaluation.sets[index], [*splits.compared(TRAIN), *splits.compared(EXAMPLES)]
    where = f"evaluation.sets.{index}.problems"
    if own.problems == config.problems.evaluation:
        found = items_of(splits.evaluation, splits.identities)  # apart from training and examples already
    else:
        found = _drawn(own.problems, trained, where)
        if shared := _shared(config, own, trained, [item.compared for item in found]):
            raise InputError(
                f"{where}: {len(shared)} question(s) are (nearly) the same as training problems or worked examples, "
                f"for example {shared[0][:80]!r}; use other problems, or set problems.near_duplicates: allow if they "
                "are only similar"
            )
    return [replace(item, problem_id=f"{own.name}{SEPARATOR}{item.problem_id}") for item in found]


def _drawn(source: ProblemSource, trained: list[str], where: str) -> list[Item]:
    """The problems of a source of its own; with a `count`, none of them is among `trained`."""
    # A whole file stays whole: problems that it shares with training or the worked examples are an error of the caller.
    taken = set(trained) if source.count is not None else set[str]()
    try:
        return problems_apart_from(source, EVALUATION, taken)
    except InputError as e:
        raise InputError(f"{where}: {e}") from e


def _shared(config: RunConfig, own: EvaluationSetSection, trained: list[str], evaluated: list[str]) -> list[str]:
    """Problems of a set that are among `trained`; with two files also those that are nearly the same.

    Problems are given by the texts by which they are compared.
    """
    equal = {folded(text) for text in trained}
    shared = [text for text in evaluated if folded(text) in equal]
    if shared or config.problems.near_duplicates == "allow" or not isinstance(own.problems, FILES):
        return shared
    if not isinstance(config.problems.train, FILES):
        return []
    near = NearDuplicates(trained)
    return [text for text in evaluated if near.nearest(text) is not None]


def set_of(names: Sequence[str]) -> pl.Expr:
    """The set of a row's problem, as an expression on the column `problem_id`.

    Args:
        names: of the further sets.
    """
    found = pl.lit("")
    for name in names:
        found = pl.when(pl.col("problem_id").str.starts_with(f"{name}{SEPARATOR}")).then(pl.lit(name)).otherwise(found)
    return found


def set_names(config: RunConfig) -> list[str]:
    """The names of the further sets."""
    return [own.name for own in config.evaluation.sets]


def by_set(config: RunConfig, rows: pl.DataFrame) -> Iterator[tuple[str, RunConfig, pl.DataFrame]]:
    """Yield the name of each set, its configuration (`RunConfig.for_set`), and its rows of a table by problem."""
    names = set_names(config)
    for name in ("", *names):
        yield name, config.for_set(name), rows.filter(set_of(names) == name)


def evaluation_tokens(
    config: RunConfig, model: str, problems: pl.DataFrame, longest: Callable[[RunConfig, pl.Series], int]
) -> tuple[int, int]:
    """Tokens of the longest prompt, and the most new tokens, of the set of the evaluation that needs most context.

    Args:
        config: of the run.
        model: name of a member of the team.
        problems: the held-out problems of all sets.
        longest: the tokens of the longest prompt of a set, from its configuration and its questions.
    """
    found = []
    for _, own, rows in by_set(config, problems):
        found.append((longest(own, rows["question"]), own.sampling_of(own.model(model), EVALUATE).max_new_tokens))
    return max(found, key=sum)


def set_sizes(config: RunConfig, problems: pl.DataFrame) -> dict[str, int]:
    """The number of problems of each set, in the order of the frozen evaluation split `problems`."""
    found = problems.with_columns(set_of(set_names(config)).alias("set"))["set"]  # a literal is one row in `select`
    return {name: int((found == name).sum()) for name in ("", *set_names(config))}


def num_samples(config: RunConfig) -> pl.Expr:
    """Completions of a held-out problem per model, as an expression on the column `problem_id`."""
    samples = {"": config.evaluation.samples, **{n: config.for_set(n).evaluation.samples for n in set_names(config)}}
    return set_of(set_names(config)).replace_strict(samples, return_dtype=pl.Int64)
