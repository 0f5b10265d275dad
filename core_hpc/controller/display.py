"""What the launcher shows while it works: a live panel on a terminal, plain lines elsewhere.

In: events of the scheduler. Out: text. It estimates the time left from the tasks that this start has seen end; it
keeps no state that matters.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core_hpc.common.terminal import duration
from core_hpc.problems.splits import EVALUATION
from core_hpc.schedule.base import Event, TaskRef
from core_hpc.schedule.progress import RunProgress
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, GENERATION_PHASES, RESCUE, UPDATE

MAX_ROWS = 12


@dataclass
class _Active:
    """A task in flight, as shown."""

    started: float
    first_progress: float | None = None
    done: int = 0
    total: int = 0
    tokens: int = 0


class Display:
    """Listener that shows progress."""

    def __init__(self, console: Console, sweep_name: str, runs: list[RunProgress], *, refreshes_per_s: float) -> None:
        """`refreshes_per_s`: on a terminal; drawing many runs costs CPU time of a login node."""
        self._console = console
        self._sweep_name = sweep_name
        self._runs = runs
        self._active: dict[TaskRef, _Active] = {}
        self._spent: dict[tuple[str, str], list[float]] = {}
        self._s_per_completion: dict[str, tuple[int, float]] = {}
        self._num_evaluated = {
            p.run.run_id: p.run.num_problems(EVALUATION) * p.run.config.evaluation.samples for p in runs
        }
        self._started = time.monotonic()
        self._live = (
            Live(console=console, refresh_per_second=refreshes_per_s, get_renderable=self._panel)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def on_event(self, progress: RunProgress, event: Event) -> None:
        task = event.task
        if event.kind == "started":
            self._active[task] = _Active(time.monotonic())
        elif event.kind == "waiting":
            self._active.pop(task, None)
        elif event.kind == "progress" and task in self._active:
            self._progress(self._active[task], event)
        elif event.kind == "done":
            self._done(progress, task, event)
        elif event.kind == "failed":
            self._active.pop(task, None)
            counted = event.fields.get("counted", True)
            again = (
                "stopping this run"
                if progress.stopped
                else "trying again"
                if counted
                else "trying again; this does not count as a try"
            )
            what = f"{task.key}: {escape(event.fields['message'])} ({again}; log: {event.fields['log']})"
            self._console.print(
                f"{'[red]failed[/red]' if counted else '[yellow]interrupted[/yellow]'} {what}", soft_wrap=True
            )

    def _progress(self, active: _Active, event: Event) -> None:
        if active.first_progress is None:
            active.first_progress = time.monotonic()
        active.done, active.total, active.tokens = (event.fields[k] for k in ("done", "total", "tokens"))

    def _done(self, progress: RunProgress, task: TaskRef, event: Event) -> None:
        active = self._active.pop(task, None)
        seconds = time.monotonic() - active.started if active else 0.0
        self._learn(task.key, event.fields)
        what = f"{task.key.phase} {self._where(progress, task.key)}"
        detail = describe_stats(task.key, event.fields)
        left = f", about {duration(self._time_left())} left" if any(p.open for p in self._runs) else ""
        self._console.print(
            f"[{progress.num_done}/{progress.num_tasks}] {what}: {duration(seconds)}{detail}{left}",
            markup=False,
            soft_wrap=True,
        )

    def _learn(self, key: TaskKey, stats: dict[str, Any]) -> None:
        """Remember how long such a task takes once its worker is warm, from its manifest's statistics."""
        work = sum(
            spent
            for name, spent in stats["seconds"].items()
            if name not in ("import", "prepare", "load", "compile", "read")
        )
        self._spent.setdefault((key.phase, key.model), []).append(work)
        num = stats.get("num_completions", 0)
        # A handful of completions says little of the speed of many: believe the largest task.
        if key.phase in GENERATION_PHASES and num and num >= self._s_per_completion.get(key.model, (0, 0.0))[0]:
            self._s_per_completion[key.model] = (num, stats["seconds"]["generate"] / num)

    def _where(self, progress: RunProgress, key: TaskKey) -> str:
        part = f" part {key.part + 1}" if key.part or progress.graph.num_parts > 1 else ""
        run = f"{progress.run.run_id} " if len(self._runs) > 1 else ""
        model = "" if key.model == TEAM else f" {key.model}"
        return f"{run}iteration {key.iteration}/{progress.graph.iterations}{model}{part}"

    def _time_left(self) -> float:
        """Estimated work that is open, divided by the mean concurrency so far; 0 while nothing is known."""
        if not self._s_per_completion:
            return 0.0
        work = sum(self._work(p) for p in self._runs if p.open)
        spent = sum(sum(v) for v in self._spent.values())
        concurrency = max(1.0, spent / max(time.monotonic() - self._started, 1e-9))
        return work / concurrency

    def _work(self, progress: RunProgress) -> float:
        """Seconds of a run's open tasks, all of one phase and model alike."""
        kinds = Counter((key.phase, key.model) for key in progress.rest)
        return sum(num * self._estimate(progress, TaskKey(1, phase, model)) for (phase, model), num in kinds.items())

    def _estimate(self, progress: RunProgress, key: TaskKey) -> float:
        """Seconds of an open task: the mean of tasks like it; before there is one, by its number of completions."""
        like = self._spent.get((key.phase, key.model))
        if like:
            return sum(like) / len(like)
        if key.model == TEAM:
            return 0.0
        config, graph = progress.run.config, progress.graph
        cold = config.protocol.problems_per_iteration * config.protocol.cold_samples / graph.num_parts
        num_evaluated = self._num_evaluated[progress.run.run_id] / graph.num_evaluation_parts
        # A guess: few problems are rescued, and an update takes longer than the sampling of its completions.
        expected = {COLD: cold, RESCUE: 0.2 * cold, UPDATE: 2 * cold * graph.num_parts, EVALUATE: num_evaluated}[
            key.phase
        ]
        known = {model: seconds for model, (_, seconds) in self._s_per_completion.items()}
        return expected * known.get(key.model, max(known.values()))

    def _panel(self) -> Group:
        head = Table.grid(padding=(0, 2))
        for progress in self._runs:
            num, done = progress.num_tasks, progress.num_done
            current = min((k.iteration for k in progress.rest), default=progress.graph.iterations)
            state = "stopped" if progress.stopped else f"iteration {current}/{progress.graph.iterations}"
            waiting = len(progress.waiting)
            counts = f"{done}/{num} tasks, {len(progress.in_flight) - waiting} running"
            counts += f", {waiting} waiting" if waiting else ""
            counts += f", {progress.failures} tries failed" if progress.failures else ""
            head.add_row(progress.run.run_id, state, ProgressBar(total=num, completed=done, width=30), counts)
        left = self._time_left()
        title = Text(f"sweep {self._sweep_name}   {duration(time.monotonic() - self._started)}", style="bold")
        state = (
            "   done"
            if not any(p.open for p in self._runs)
            else f"   about {duration(left)} left"
            if left
            else "   estimating"
        )
        title.append(state, style="dim")
        return Group(title, head, self._active_table())

    def _active_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        longest = sorted(self._active.items(), key=lambda item: item[1].started)
        for task, active in longest[:MAX_ROWS]:
            elapsed = time.monotonic() - (active.first_progress or active.started)
            unit = (
                "completions/s"
                if task.key.phase in GENERATION_PHASES
                else "steps/s"
                if task.key.phase == UPDATE
                else "problems/s"
            )
            speed = f"{active.done / elapsed:.1f} {unit}" if active.done and elapsed > 0 else "starting"
            tokens = f"{active.tokens / elapsed:.0f} tokens/s" if active.tokens and elapsed > 0 else ""
            bar = ProgressBar(total=max(active.total, 1), completed=active.done, width=30)
            table.add_row(
                f"  {task.key.phase}", task.key.model, bar, f"{active.done}/{active.total or '?'}", speed, tokens
            )
        if len(longest) > MAX_ROWS:
            table.add_row(f"  and {len(longest) - MAX_ROWS} more")
        return table


def describe_stats(key: TaskKey, stats: dict[str, object]) -> str:
    """One clause about a finished task, from its manifest's statistics."""
    seconds = stats.get("seconds")
    if key.phase in GENERATION_PHASES and isinstance(seconds, dict) and seconds.get("generate"):
        completions, tokens = stats["num_completions"], stats["num_completion_tokens"]
        assert isinstance(completions, int)
        assert isinstance(tokens, int)
        return f", {completions} completions ({completions / seconds['generate']:.1f}/s, {tokens / seconds['generate']:.0f} tokens/s)"
    if key.phase == "hint":
        return f", {stats['num_rescues']} rescues for {stats['num_cases']} cases"
    if key.phase == "update" and isinstance(seconds, dict):
        tokens = stats["num_tokens"]
        assert isinstance(tokens, int)
        return f", {stats['num_completions']} completions ({tokens / seconds['update']:.0f} tokens/s)"
    return ""
