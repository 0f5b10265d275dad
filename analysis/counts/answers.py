"""The answer counts of a few evaluations of a run that was loaded without its answers.

The input is the `RunData` of a run, and iterations. The output is the same `RunData` with the
answer counts of these evaluations. A report shows two evaluations of a run. The answers of all the
others, and of the cold phases, are most of the memory of a large run, so a report does not read
them. `load_run(run, answers=True)` loads the answers of every iteration.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import polars as pl

from analysis.counts import cache
from analysis.counts.counts import ANSWERS
from analysis.counts.integrity import GROUP
from analysis.counts.load import RunData, described, problems_of
from analysis.counts.tasks import count_tasks
from core_hpc.store.schema import EVALUATE
from core_hpc.store.shards import published_keys


def with_answers(data: RunData, iterations: Collection[int]) -> RunData:
    """Load the answer counts of some evaluations of a run, and of its further sets.

    Only problems that the counts of the run have are used. Problems that were left out, and tasks
    that were published after the counts were read, have no answers.

    Args:
        data: the run; its present answer counts are not used.
        iterations: the iterations of the evaluations.

    Raises:
        StoreError: a published shard is damaged or incorrect, and nothing of the run was left out.
    """
    lenient = bool(data.left_out)
    counted = {} if lenient else cache.read(data.path, answers=True, iterations=iterations)
    keys = [k for k in published_keys(data.path) if k.phase == EVALUATE and k.iteration in iterations]
    new, problems = [k for k in keys if k.iteration not in counted], problems_of(data.path, data.config)
    fresh, _ = count_tasks(data.path, new, problems, data.config, answers=True, lenient=lenient)
    frames = [part.answers.filter(pl.col("phase") == EVALUATE) for part in (*counted.values(), fresh)]
    answers = described(pl.concat([pl.DataFrame(schema=ANSWERS), *frames]), problems)

    def of(own: RunData) -> pl.DataFrame:
        known = own.counts.filter(pl.col("phase") == EVALUATE, pl.col("iteration").is_in(list(iterations)))
        return answers.join(known.select(GROUP).unique(), on=GROUP, how="semi")

    sets = {name: replace(own, answers=of(own)) for name, own in data.sets.items()}
    return replace(data, answers=of(data), sets=sets)
