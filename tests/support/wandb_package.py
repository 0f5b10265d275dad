"""A stand-in for the package wandb, which records its calls and needs no network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.tracked_run import Point, copied_points


class RecordingRun:
    """A stand-in for a run of the package wandb, which keeps the rows that are logged."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.rows: list[dict[str, Any]] = []
        self.finished = False
        self.folder = Path(arguments["dir"], "wandb", f"offline-run-20260101_000000-{arguments['id']}")
        self.folder.mkdir(parents=True)

    def define_metric(self, *names: str, **options: Any) -> None:
        """Axes are not recorded."""

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True

    def points(self) -> Counter[Point]:
        return copied_points(self.rows)


class RecordingWandb:
    """A stand-in for the package wandb, which keeps the runs that are started."""

    def __init__(self) -> None:
        self.runs: list[RecordingRun] = []
        self.ended = False

    def init(self, **arguments: Any) -> RecordingRun:
        self.runs.append(RecordingRun(arguments))
        return self.runs[-1]

    def teardown(self) -> None:
        self.ended = True

    def Settings(self, **settings: Any) -> SimpleNamespace:
        return SimpleNamespace(**settings)
