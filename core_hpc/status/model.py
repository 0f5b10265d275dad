"""The fields that `python -m core_hpc.status --json` prints: {"time": ..., "sweeps": [SweepStatus, ...]}.

Points in time are in seconds since 1970; null stands for what is not known. Nothing is read or concluded here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FINISHED, RUNNING, WAITING, NO_CONTROLLER, STOPPED, UNREADABLE = (
    "finished",
    "running",
    "waiting",
    "no controller",
    "stopped",
    "unreadable",
)


@dataclass(frozen=True)
class RunStatus:
    """One run. `done`, `running`, `waiting` and `total` count tasks; the others are not submitted yet."""

    run_id: str
    state: str
    """finished, running, waiting (in the queue), no controller, stopped (until it is started again) or unreadable."""
    detail: str = ""
    """Why it stopped, or what cannot be read."""
    iteration: int = 0
    """The first one with a task that is not done."""
    iterations: int = 0
    phases: list[str] = field(default_factory=list)
    """Of the tasks that run or wait; if there are none, of those that could."""
    done: int = 0
    running: int | None = 0
    """Null for the local driver: its workers leave no trace before they publish."""
    waiting: int = 0
    total: int = 0
    failed: int = 0
    """Tries of this start that failed and counted (cluster.max_attempts)."""
    completions_per_s: float | None = None
    """Over the last ten minutes."""
    left_s: float | None = None
    """Estimate from the tasks that were published last, as if the run went on like that."""
    expected_end: float | None = None
    """Now + left_s, if the run is running."""
    iteration_s: float | None = None
    """Time of the last iteration whose training is published."""
    overhead: float | None = None
    """Share of it above its lower bound, by the rates of the tasks that were published last (python -m analysis time: of all)."""
    largest_item: str | None = None
    """What most of the overhead was, as python -m analysis time calls it."""


@dataclass(frozen=True)
class Failure:
    """A try of the last start that failed. `counted`: as one of cluster.max_attempts; null: no controller has seen it yet."""

    run_id: str
    task: str
    kind: str
    message: str
    node: str
    counted: bool | None
    log: str
    time: float


@dataclass(frozen=True)
class ControllerStatus:
    """Who drives the sweep."""

    holder: dict[str, Any] | None
    """Of the claim: host, pid, user, time, job (null outside SLURM). Null: nobody."""
    alive: bool | None
    """Whether the holder lives; null when there is none, or when neither can be proven."""
    jobs: list[dict[str, Any]]
    """Detached controllers that wait or run: job, state (squeue's, or unknown), reason, log."""
    last_log: str | None
    """Log of the detached controller that was submitted last."""
    seen: float | None
    """When the last controller wrote controller.json."""
    cpu_s_per_hour: float | None
    """CPU time of the last controller and of the commands that it called."""
    stop_request: dict[str, Any] | None
    """Who asked the sweep to stop: host, pid, user, time."""


@dataclass(frozen=True)
class SweepStatus:
    """One sweep."""

    sweep: str
    folder: str
    slurm: str
    """ok, not needed, or why the queue is not known: tasks are then counted by what their jobs wrote."""
    controller: ControllerStatus
    runs: list[RunStatus]
    waiting_reasons: dict[str, int]
    """SLURM's reason -> array elements that wait for it."""
    failures: list[Failure]
    """Of the last start, newest first."""
