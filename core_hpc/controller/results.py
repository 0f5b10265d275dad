"""What the launcher prints at the end: the table of every run, and which commands show more."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from analysis.counts.load import load_run
from analysis.layout.tables import render
from analysis.report.summary import summary_tables
from core_hpc.runs.sweep import Sweep
from core_hpc.schedule.progress import RunProgress


def conclude(sweep: Sweep, progress: Sequence[RunProgress], console: Console) -> int:
    """Print the result of every run. Returns the exit status: 0 when no run was stopped."""
    stopped = [p for p in progress if p.stopped]
    for p in progress:
        console.print()
        if p.stopped:
            console.print(f"[red]{escape(p.run.run_id)} stopped:[/red] {escape(p.stopped)}", soft_wrap=True)
        else:
            render(summary_tables(load_run(p.run.root)), console)
    console.print("see also:")
    console.print(f"  tensorboard --logdir {sweep.folder}", soft_wrap=True)
    console.print(f"  python -m analysis report {sweep.folder} --out {sweep.folder / 'report'}", soft_wrap=True)
    for p in progress:
        console.print(f"  run folder: {p.run.root}", soft_wrap=True)
    return 1 if stopped else 0
