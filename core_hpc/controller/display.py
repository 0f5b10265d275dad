"""What the launcher shows while it works: a live panel on a terminal, plain lines elsewhere.

In: events of the scheduler. Out: text. The estimate of the time left is in `schedule/remaining.py`.
Nothing here is needed to continue a run. The panel is drawn by a thread of rich while the scheduler
changes what it shows, so loops of the panel are over copies.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core_hpc.common.terminal import duration
from core_hpc.problems.splits import EVALUATION
from core_hpc.runs.events import Done, Event, Failed, Progressed, Started, TaskRef
from core_hpc.runs.outcome import Progress
from core_hpc.schedule.progress import FINISHED, RUNNING, STOPPED, WAITING, RunProgress
from core_hpc.schedule.remaining import FinishedTask, TaskCosts, expected_completions
from core_hpc.schedule.useless import NOTHING_USELESS, Useless
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, GENERATION_PHASES, HINT, TRAINING_PHASES, UPDATE, WARMUP
from core_hpc.training.guard import is_near_limit

STATES = (RUNNING, WAITING, STOPPED, FINISHED)
"""States of runs, in the order in which the panel prefers them."""
MAX_ROWS = 12
"""Runs, and tasks in progress, with a row each in the panel: both tables fit on a terminal."""
NO_PROGRESS = Progress(0, 0, 0)


@dataclass
class _Active:
    """A task in progress, as shown; times of the monotonic clock."""

    started: float
    first_progress: float | None = None
    progress: Progress = NO_PROGRESS


class Display:
    """Listener that shows progress."""

    def __init__(
        self,
        console: Console,
        sweep_name: str,
        runs: Sequence[RunProgress],
        *,
        refreshes_per_s: float,
        warm: bool,
    ) -> None:
        """`refreshes_per_s` and `warm` are those of the driver (`controller/drivers.py`)."""
        self._console = console
        self._sweep_name = sweep_name
        self._runs = runs
        self._active: dict[TaskRef, _Active] = {}
        self._costs = TaskCosts(warm=warm)
        self._expected = {p.run.run_id: expected_completions(p.run, p.run.num_problems(EVALUATION)) for p in runs}
        self._useless: dict[tuple[str, str], tuple[int, Useless]] = {}  # (run, phase) -> iteration, its completions
        self._started = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=refreshes_per_s, get_renderable=self._panel)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def on_event(self, progress: RunProgress, event: Event) -> None:
        if isinstance(event, Started):
            self._active[event.task] = _Active(time.monotonic())
        elif isinstance(event, Progressed):
            if (active := self._active.get(event.task)) is not None:
                active.first_progress = active.first_progress or time.monotonic()
                active.progress = event.progress
        elif isinstance(event, Done):
            self._done(progress, event)
        else:
            self._active.pop(event.task, None)
            if isinstance(event, Failed):
                self._failed(progress, event)

    def on_finished(self, progress: RunProgress) -> None:
        """Nothing is left to show."""

    def _failed(self, progress: RunProgress, event: Failed) -> None:
        outcome = event.outcome
        if progress.stopped:
            next_step = "stopping this run"
        elif outcome.counted:
            next_step = "next attempt follows"
        else:
            next_step = "next attempt follows; this one does not count"
        what = f"{event.task.key}: {escape(outcome.message)} ({next_step}; log: {outcome.log})"
        state = "[red]failed[/red]" if outcome.counted else "[yellow]interrupted[/yellow]"
        self._console.print(f"{state} {what}", soft_wrap=True)

    def _done(self, progress: RunProgress, event: Done) -> None:
        key, active = event.task.key, self._active.pop(event.task, None)
        seconds = time.monotonic() - active.started if active else 0.0
        self._costs.add(key, FinishedTask.of(event.stats, time.time()))
        self._count_useless(event)
        what = f"{key.phase} {self._where(progress, key)}"
        detail = describe_stats(key, event.stats)
        left_s = self._left_s()
        left = f", about {duration(left_s)} left" if left_s else ""
        self._console.print(
            f"[{progress.num_done}/{progress.num_tasks}] {what}: {duration(seconds)}{detail}{left}",
            markup=False,
            soft_wrap=True,
        )

    def _count_useless(self, event: Done) -> None:
        """Add the completions of a task to those of its phase in its iteration."""
        key = event.task.key
        if key.phase in GENERATION_PHASES and (counted := Useless.of(event.stats)) is not None:
            iteration, before = self._useless.get((event.task.run_id, key.phase), (key.iteration, NOTHING_USELESS))
            if iteration == key.iteration:
                counted = before + counted
            self._useless[event.task.run_id, key.phase] = key.iteration, counted

    def _where(self, progress: RunProgress, key: TaskKey) -> str:
        part = f" part {key.part + 1}" if key.part or progress.graph.num_parts > 1 else ""
        run = f"{progress.run.run_id} " if len(self._runs) > 1 else ""
        model = "" if key.model == TEAM else f" {key.model}"
        iterations = progress.graph.iterations
        where = f"iteration {key.iteration}/{iterations}" if iterations else "evaluation"
        return f"{run}{where}{model}{part}"

    def _left_s(self) -> float | None:
        """Estimated seconds until all runs are finished; None while that is unknown."""
        work = 0.0
        running: dict[str, dict[TaskKey, Progress]] = {}
        for task, active in list(self._active.items()):
            running.setdefault(task.run_id, {})[task.key] = active.progress
        for progress in self._runs:
            if progress.open:
                run_id = progress.run.run_id
                own = self._costs.work_s(progress.num_open, self._expected[run_id], running.get(run_id, {}))
                if own is None:
                    return None
                work += own
        return work / self._costs.concurrency()

    def _panel(self) -> Group:
        title = Text(f"sweep {self._sweep_name}   {duration(time.monotonic() - self._started)}", style="bold")
        title.append(f"   {self._outlook()}", style="dim")
        return Group(title, self._run_table(), self._active_table())

    def _outlook(self) -> str:
        if not any(p.open for p in self._runs):
            return "done"
        left_s = self._left_s()
        return f"about {duration(left_s)} left" if left_s else "estimating"

    def _run_table(self) -> Group:
        """The runs in the order of the sweep. Of many, those that come first in `STATES`, and how many others."""
        states = [progress.state for progress in self._runs]
        ranked = sorted(range(len(states)), key=lambda i: STATES.index(states[i]))
        table = Table.grid(padding=(0, 2))
        for i in sorted(ranked[:MAX_ROWS]):
            table.add_row(*self._run_row(self._runs[i]))
        parts: list[RenderableType] = [table]
        if others := Counter(states[i] for i in ranked[MAX_ROWS:]):
            counts = ", ".join(f"{others[state]} {state}" for state in STATES if others[state])
            parts.append(Text(f"and {others.total()} more: {counts}"))
        return Group(*parts)

    def _run_row(self, progress: RunProgress) -> tuple[str, str, ProgressBar, str]:
        num, done, iterations = progress.num_tasks, progress.num_done, progress.graph.iterations
        if progress.state == STOPPED:
            state = STOPPED
        elif iterations:
            current = min((k.iteration for k in tuple(progress.open_tasks)), default=iterations)
            state = f"iteration {current}/{iterations}"
        else:
            state = "evaluation"
        waiting = len(progress.waiting)
        counts = f"{done}/{num} tasks, {progress.num_running} running"
        counts += f", {waiting} waiting" if waiting else ""
        counts += f", {progress.failures} failed attempts" if progress.failures else ""
        for phase in (EVALUATE, COLD):
            if found := self._useless.get((progress.run.run_id, phase)):
                counts += f"; {phase} {found[0]}: {found[1].shares}"
        return progress.run.run_id, state, ProgressBar(total=num, completed=done, width=30), counts

    def _active_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        longest = sorted(self._active.items(), key=lambda item: item[1].started)
        for task, active in longest[:MAX_ROWS]:
            elapsed, at = time.monotonic() - (active.first_progress or active.started), active.progress
            speed = f"{at.done / elapsed:.1f} {unit_of(task.key.phase)}/s" if at.done and elapsed > 0 else "starting"
            tokens = f"{at.tokens / elapsed:.0f} tokens/s" if at.tokens and elapsed > 0 else ""
            bar = ProgressBar(total=max(at.total, 1), completed=at.done, width=30)
            table.add_row(
                f"  {task.key.phase} {task.key.iteration}",
                task.key.model,
                bar,
                f"{at.done}/{at.total or '?'}",
                speed,
                tokens,
            )
        if len(longest) > MAX_ROWS:
            table.add_row(f"  and {len(longest) - MAX_ROWS} more")
        return table


def unit_of(phase: str) -> str:
    """What the progress of a task counts."""
    if phase in GENERATION_PHASES:
        return "completions"
    return "steps" if phase in TRAINING_PHASES else "problems"


def useless_text(useless: Useless | None) -> str:
    """The shares of truncated and unanswered completions of a task, and a warning if they are large."""
    if useless is None or not useless.num_completions:
        return ""
    return f", {useless.shares}" + "".join(f"; WARNING: {line}" for line in useless.warnings)


def describe_stats(key: TaskKey, stats: Mapping[str, Any]) -> str:
    """One clause about a finished task, from its manifest's statistics."""
    seconds = stats.get("seconds", {})
    completions, tokens = stats.get("num_completions", 0), stats.get("num_completion_tokens", 0)
    if key.phase in GENERATION_PHASES and (spent := seconds.get("generate")):
        speed = f"{completions / spent:.1f}/s, {tokens / spent:.0f} tokens/s"
        return f", {completions} completions ({speed}){useless_text(Useless.of(stats))}"
    if key.phase == HINT:
        return f", {stats.get('num_rescues', 0)} rescues for {stats.get('num_cases', 0)} cases"
    if key.phase == WARMUP and seconds:
        if stats.get("is_shared"):
            return ", shared with another run"
        losses = f"loss {stats.get('first_loss', math.nan):.2f} -> {stats.get('last_loss', math.nan):.2f}"
        without = f" ({num} of a hinted source without a hint)" if (num := stats.get("num_without_hint")) else ""
        return f", {completions} examples{without}, {losses}"
    if key.phase == UPDATE and (spent := seconds.get("update")):
        speed = f"{stats.get('num_tokens', 0) / spent:.0f} tokens/s"
        return f", {completions} completions ({speed}){_mismatch_warning(stats)}"
    return ""


def _mismatch_warning(stats: Mapping[str, Any]) -> str:
    mismatch, limit = stats.get("mismatch"), stats.get("max_mismatch")
    if mismatch is None or limit is None or not is_near_limit(mismatch, limit):
        return ""
    return f"; WARNING: trainer and engine differ by {mismatch:.2g} nats per token, above {limit:.2g} the run stops"
