"""One run as the tables need it: its configuration and its counts, read from published shards.

In: a run folder. Out: `RunData`. The only module of the package that reads run folders; it never writes into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from analysis.counts import ROW_COLUMNS, count_rows
from core_hpc.config import RunConfig
from core_hpc.schema import GENERATION_PHASES, ROLLOUTS
from core_hpc.shards import list_runs, read_rows, read_run_config


@dataclass(frozen=True)
class RunData:
    """One run, read at one moment."""

    path: Path
    config: RunConfig
    counts: pl.DataFrame  # COUNTS

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def models(self) -> list[str]:
        """The team, in the order of the configuration."""
        return [m.name for m in self.config.team]


def load_run(run: Path) -> RunData:
    """Counts and configuration of a run, finished or in progress.

    Raises:
        StoreError: a published shard is damaged, or holds what it must not.
    """
    run = Path(run).resolve()
    rows = read_rows(run, ROLLOUTS, phases=GENERATION_PHASES, columns=ROW_COLUMNS)
    return RunData(run, read_run_config(run), count_rows(rows, source=str(run)))


def load_runs(paths: Sequence[Path]) -> list[RunData]:
    """All runs of these run and sweep folders, each once.

    Raises:
        InputError: a path is neither a run nor a sweep folder.
    """
    runs = dict.fromkeys(run.resolve() for path in paths for run in list_runs(Path(path)))
    return [load_run(run) for run in runs]
