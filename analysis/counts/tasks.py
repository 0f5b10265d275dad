"""Counts the rows of published tasks, and checks them.

The input is the keys of tasks, the frozen problems and the configuration. The output is the counts
(`Counted`). A task whose rows are all correct is counted fast (`counts/whole.py`). Every other task
is counted with `scan.tally`, and `integrity.findings` finds its incorrect rows. They are an error,
or they are left out. This module does not use cached counts; `counts/load.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from analysis.counts.counts import ANSWERS, COUNTS, RESCUE_PUBLISHED, Counted, as_counts
from analysis.counts.integrity import (
    EXPECTED,
    GROUP,
    Finding,
    TaskProblems,
    expected_rows,
    expected_samples,
    findings,
    with_expected,
)
from analysis.counts.scan import Shard, count_answers, damage, find_row, in_threads, list_shards, num_scans, tally
from analysis.counts.whole import count_answers_of_whole, count_whole
from core_hpc.common.errors import StoreError
from core_hpc.config.run import RunConfig
from core_hpc.runs.folder import read_identity
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, RESCUE

MAX_SHOWN = 5
"""Maximum number of incorrect rows that one error message lists."""

BATCH_ROWS = 1_000_000
"""Approximate number of rows that are counted at once."""

EMPTY = Counted(pl.DataFrame(schema={**COUNTS, RESCUE_PUBLISHED: pl.Boolean()}), pl.DataFrame(schema=ANSWERS))


def count_tasks(
    run: Path,
    keys: Sequence[TaskKey],
    problems: pl.DataFrame,
    config: RunConfig | None,
    *,
    answers: bool,
    lenient: bool,
    checksum: bool = False,
) -> tuple[Counted, list[str]]:
    """Count the rows of published tasks and check them.

    Args:
        run: the run folder.
        keys: keys of the tasks.
        problems: the result of `problems_of`.
        config: the configuration; None for imported predictions.
        answers: also count the answers.
        lenient: leave out what cannot be used, instead of an error.
        checksum: check the checksums of the shards before Polars reads them.

    Returns:
        The counts, and one line per item that was left out.

    Raises:
        StoreError: something is damaged or incorrect, and `lenient` is false.
    """
    shards, errors = list_shards(run, keys, checksum=checksum)
    if lenient:
        errors += [e for e in map(damage, shards) if e is not None]
        bad = {e.manifest_path for e in errors if isinstance(e, DamagedError)}
        shards = [s for s in shards if s.manifest not in bad]
    elif errors:
        raise errors[0]
    run_id, expected = str(read_identity(run)["run_id"]), TaskProblems(run, problems, config, {s.key for s in shards})
    if lenient:
        shards, undecided = _with_known_problems(shards, expected)
        errors += undecided
    parts, others = _count_whole_tasks(shards, expected, config, run_id=run_id, answers=answers)
    found, left_out = [], [f"{e}; its rows are left out" for e in errors]
    for batch in _batches(others):
        part, found_here = _count_any_tasks(batch, expected, config, run_id=run_id, answers=answers)
        if found_here and not lenient:
            raise _incorrect_rows(run, batch, found_here)
        parts.append(part)
        found += found_here
        left_out += [f"{_line(batch, finding)}; the problem is left out" for finding in found_here]
    counted = Counted(
        pl.concat([EMPTY.counts, *(p.counts for p in parts)]), pl.concat([EMPTY.answers, *(p.answers for p in parts)])
    )
    return _without(counted, found), left_out


def _with_known_problems(shards: Sequence[Shard], expected: TaskProblems) -> tuple[list[Shard], list[StoreError]]:
    """The shards whose problems are known, and why the others' are not: earlier scores are missing."""
    errors: dict[TaskKey, StoreError] = {}
    for key in dict.fromkeys(s.key for s in shards):
        try:
            expected.of(key)
        except StoreError as e:
            errors[key] = StoreError(f"{key}: its problems are unknown, because {e}")
    return [s for s in shards if s.key not in errors], list(errors.values())


def _count_whole_tasks(
    shards: Sequence[Shard], expected: TaskProblems, config: RunConfig | None, *, run_id: str, answers: bool
) -> tuple[list[Counted], list[Shard]]:
    """Count the tasks that are correct. Return their counts, and the shards of all other tasks."""
    if config is None:  # imported files choose the number of completions
        return [], list(shards)
    groups: dict[tuple[int, str, str], list[Shard]] = {}
    for shard in shards:
        groups.setdefault(_task_group(shard), []).append(shard)
    samples = expected_samples(config)

    def count(work: tuple[list[Shard], pl.DataFrame]) -> Counted | None:
        group, of_tasks = work
        counts = count_whole(group, of_tasks, run_id=run_id, num_samples=samples[group[0].key.phase])
        if counts is None:
            return None
        votes = count_answers_of_whole(group) if answers and group[0].key.phase != RESCUE else EMPTY.answers
        return None if votes is None else Counted(counts, votes)

    # Not in the threads: scores that choose problems are read in their order.
    work = [
        (group, pl.concat(expected.of(key) for key in dict.fromkeys(s.key for s in group))) for group in groups.values()
    ]
    counted = in_threads(count, work, num_threads=num_scans(shards))
    is_whole = {key for key, part in zip(groups, counted, strict=True) if part is not None}
    others = [shard for shard in shards if _task_group(shard) not in is_whole]
    return [part for part in counted if part is not None], others


def _task_group(shard: Shard) -> tuple[int, str, str]:
    return shard.key.iteration, shard.key.phase, shard.key.model


def _count_any_tasks(
    shards: Sequence[Shard], problems: TaskProblems, config: RunConfig | None, *, run_id: str, answers: bool
) -> tuple[Counted, list[Finding]]:
    """Count tasks of any phase, and find what is incorrect in them."""
    expected = expected_rows([s.key for s in shards], problems)
    known = with_expected(tally(shards), expected)
    found = findings(known, expected, config, run_id=run_id)
    return Counted(as_counts(known, RESCUE_PUBLISHED), count_answers(shards if answers else [])), found


def _without(counted: Counted, found: Sequence[Finding]) -> Counted:
    """Leave out problems. The rescue of a cold row is not published if it is left out."""
    if not found:
        return counted
    schema = {name: EXPECTED[name] for name in GROUP}
    bad = pl.DataFrame([f.group for f in found], schema=schema).unique()
    counts, answers = (frame.join(bad, on=GROUP, how="anti") for frame in (counted.counts, counted.answers))
    rescues = bad.filter(pl.col("phase") == RESCUE).with_columns(pl.lit(COLD).alias("phase"), is_bad=True)
    counts = counts.join(rescues, on=GROUP, how="left", maintain_order="left")
    is_published = pl.when("is_bad").then(False).otherwise(RESCUE_PUBLISHED)
    return Counted(counts.with_columns(is_published.alias(RESCUE_PUBLISHED)).drop("is_bad"), answers)


def _batches(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Split the shards into batches of about `BATCH_ROWS` rows, which limits the memory."""
    batches: list[list[Shard]] = []
    num_rows = BATCH_ROWS
    for shard in shards:
        if num_rows >= BATCH_ROWS:
            batches.append([])
            num_rows = 0
        batches[-1].append(shard)
        num_rows += shard.num_rows
    return batches


def _incorrect_rows(run: Path, shards: Sequence[Shard], found: Sequence[Finding]) -> StoreError:
    lines = [_line(shards, finding) for finding in found[:MAX_SHOWN]]
    more = [f"and {len(found) - MAX_SHOWN} more"] if len(found) > MAX_SHOWN else []
    listed = "\n  ".join([f"{run}: some rows are incorrect:", *lines, *more])
    return StoreError(f"{listed}\nUse --lenient to leave out and list these problems.")


def _line(shards: Sequence[Shard], finding: Finding) -> str:
    """Describe a finding, with the file and the row that it is about."""
    group = finding.group
    at = (group["iteration"], group["phase"], group["model"])
    of_model = [s for s in shards if _task_group(s) == at]
    own = [s for s in of_model if finding.part in (None, s.key.part)]
    where = find_row(own or shards, finding.where, twice=finding.twice) if finding.where else str(own[0].manifest)
    problem = f"{group['phase']} {group['iteration']}, {group['model']}, problem {group['problem_id']}"
    return f"{where}: {problem}: {finding.what}"
