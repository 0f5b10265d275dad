"""The fields that `core-hpc status --json` prints: {"time": ..., "sweeps": [SweepStatus, ...]}.

Points in time are seconds since 1970. Null means unknown, unless a field's description gives another meaning.
The values come from `status/compute.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NO_CONTROLLER, UNREADABLE = "no controller", "unreadable"
"""States of a run besides those of `schedule/progress.py`."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run. `done`, `running`, `waiting` and `total` count tasks; the remaining tasks are not submitted yet."""

    run_id: str
    state: str
    """finished, running, waiting (in the queue), no controller, stopped (until it is started again) or unreadable."""
    detail: str = ""
    """Why the run stopped, or what cannot be read."""
    iteration: int = 0
    """The first iteration with a task that is not done. The next one may be in progress, too."""
    iterations: int = 0
    phases: list[str] = field(default_factory=list)
    """Phases of the tasks that run or wait; if there are none, of the tasks that are ready."""
    done: int = 0
    running: int | None = 0
    """Null for the local driver, because its workers write no file before they publish."""
    waiting: int = 0
    total: int = 0
    failed: int = 0
    """Attempts of the last start that failed and count towards cluster.max_attempts."""
    completions_per_s: float | None = None
    """Mean of the last ten minutes."""
    left_s: float | None = None
    """Estimated time until the run ends, at the pace of the tasks that were published last."""
    expected_end: float | None = None
    """Now + left_s, if the run is running."""
    iteration_s: float | None = None
    """Time of the last iteration whose training is published. With protocol.staleness: 1 it overlaps others."""
    overhead: float | None = None
    """Share of iteration_s above its lower bound. The bound uses the rates of the tasks that were published last
    (`core-hpc analysis time` uses the rates of all tasks)."""
    largest_item: str | None = None
    """The largest item of the overhead, under its name in `core-hpc analysis time`."""
    truncated_share: float | None = None
    """Share of completions that were cut at the token limit, in the last published task of every phase and model."""
    no_answer_share: float | None = None
    """Share of these completions in which no answer was found."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about these shares, with what to do."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An attempt of the last start that failed.

    `counted` is whether it counts towards cluster.max_attempts; null: no controller has seen it yet.
    """

    run_id: str
    task: str
    kind: str
    message: str
    node: str
    counted: bool | None
    log: str
    time: float


@dataclass(frozen=True, kw_only=True)
class ControllerStatus:
    """The controller of the sweep."""

    holder: dict[str, Any] | None
    """The process that holds the claim: host, pid, user, time, job (null outside SLURM). Null: nobody, or unknown."""
    unreadable_claim: str = ""
    """Why the claim cannot be read. A controller may work on the sweep. Empty if it can be read, or there is none."""
    alive: bool | None
    """Whether the holder is alive; null if there is no holder, or if it is unknown."""
    jobs: list[dict[str, Any]]
    """Detached controllers that wait or run: job, state (squeue's, or unknown), reason, log."""
    last_log: str | None
    """Log of the detached controller that was submitted last."""
    seen: float | None
    """When the last controller wrote controller.json."""
    cpu_s_per_hour: float | None
    """CPU time of the last controller and of the commands that it called, in seconds per hour."""
    stop_request: dict[str, Any] | None
    """Who asked the sweep to stop: host, pid, user, time."""


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """One sweep."""

    sweep: str
    folder: str
    copy_of: str | None = None
    """The folder of which this one is a copy. Jobs and controllers of the original are not shown here."""
    slurm: str
    """ok, not needed, or why the queue is not known. Tasks are then counted from the files that their jobs wrote."""
    controller: ControllerStatus
    runs: list[RunStatus]
    waiting_reasons: dict[str, int]
    """SLURM's reason -> number of array elements that wait for it."""
    failures: list[Failure]
    """Failed attempts of the last start, newest first."""
