"""The command `core-hpc status`, also `python -m core_hpc.status`: show how far sweeps are.

In: sweep folders, run folders or sweep files. Out: one table per sweep, or with --json the fields of
`status/model.py`. The command only reads, and needs no claim.

A task is done if its files are published. Which tasks run or wait is known from the records of submissions, the
status files that jobs write, one query of SLURM's queue, and the controller's heartbeat (controller.json).
"""

from __future__ import annotations

from core_hpc.common.startup import begin_command

if __name__ == "__main__":
    begin_command()

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.packages import require_own_analysis
from core_hpc.common.terminal import duration, show_error, standard_console

require_own_analysis()  # status/pace.py imports `analysis`

from core_hpc.runs.folder import locate
from core_hpc.runs.names import short_names
from core_hpc.schedule.progress import FINISHED, STOPPED, WAITING
from core_hpc.status.collect import Manifests
from core_hpc.status.compute import read_status
from core_hpc.status.model import NO_CONTROLLER, UNREADABLE, ControllerStatus, RunStatus, SweepStatus
from core_hpc.store.claims import describe_holder

PROG = "python -m core_hpc.status"
WATCH_S = 10.0
NUM_SHOWN = 10
COLUMNS = (
    *("run", "iteration", "phase", "tasks done", "running", "waiting", "failed"),
    *("compl./s", "cut", "no answer", "overhead", "expected end", "state"),
)
LEFT = {"run", "phase", "overhead", "expected end", "state"}
"""Columns that are aligned to the left."""
DROPPED_FIRST = (
    *("overhead", "compl./s", "no answer", "cut", "phase", "waiting", "running"),
    *("expected end", "failed", "iteration", "tasks done"),
)
"""Columns that are left out where the terminal is too narrow, the least important first."""
GAP = 2
"""Columns of the terminal between two columns of the table."""
WIDE = 10_000
"""A terminal that every table fits."""
STYLES = {FINISHED: "green", WAITING: "cyan", NO_CONTROLLER: "yellow", STOPPED: "red", UNREADABLE: "red"}


def render(status: SweepStatus, *, show_all: bool = False, width: int = WIDE) -> Group:
    """The table of a sweep, and the lines below it: controller, queue, failures.

    Args:
        status: the sweep.
        show_all: show all failures.
        width: columns of the terminal. Columns of the table are left out until it fits.
    """
    names = short_names([run.run_id for run in status.runs])
    lines = [_controller_line(status.controller)]
    if status.copy_of is not None:
        lines.insert(0, Text(f"a copy of {status.copy_of}, whose jobs are not shown here", style="yellow"))
    for job in status.controller.jobs:
        lines.append(Text(f"  SLURM job {job['job']}: {job['state']}{_in_brackets(job['reason'])}; log: {job['log']}"))
    if status.slurm not in ("ok", "not needed"):
        lines.append(
            Text(f"SLURM: {status.slurm}; running and waiting tasks are counted from the jobs' files", style="yellow")
        )
    if status.waiting_reasons:
        reasons = "; ".join(f"{num} waiting: {reason}" for reason, num in status.waiting_reasons.items())
        lines.append(Text(f"queue: {reasons}"))
    for run in (r for r in status.runs if r.detail):
        lines.append(Text(f"{names[run.run_id]} {run.state}: {_brief(run.detail)}", style="red"))
    for run in status.runs:
        lines += [Text(f"{names[run.run_id]}: WARNING: {warning}", style="yellow") for warning in run.warnings]
    shown = status.failures if show_all else status.failures[:NUM_SHOWN]
    if shown:
        all_shown = len(shown) == len(status.failures)
        count = f"all {len(shown)}" if all_shown else f"{len(shown)} of {len(status.failures)}; --all shows all"
        lines.append(Text(f"failures of the last start, newest first ({count}):"))
    for f in shown:
        known = {True: "", None: "; not seen by a controller yet", False: "; does not count as an attempt"}[f.counted]
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(f.time))
        lines.append(Text(f"  {when} {f.run_id} {f.task}: {f.kind}: {_brief(f.message)} (node {f.node or '?'}{known})"))
        lines.append(Text(f"    log: {f.log or '?'}"))
    title = Text(f"sweep {status.sweep}", style="bold").append(f"   {status.folder}", style="dim")
    return Group(title, _table(status.runs, names, width), *lines)


def _table(runs: Sequence[RunStatus], names: Mapping[str, str], width: int) -> Table:
    rows = [dict(zip(COLUMNS, _cells(run, names[run.run_id]), strict=True)) for run in runs]
    needed = {name: max(len(cell) for cell in (name, *(row[name] for row in rows))) for name in COLUMNS}
    columns = list(COLUMNS)
    for name in DROPPED_FIRST:
        if sum(needed[c] + GAP for c in columns) - GAP <= width:
            break
        columns.remove(name)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(row[c], style=STYLES.get(row[c], "") if c == "state" else "") for c in columns))
    return table


def _cells(r: RunStatus, name: str) -> tuple[str, ...]:
    """The cells of a run, in the order of `COLUMNS`."""
    running = "-" if r.running is None else str(r.running)
    speed = "-" if r.completions_per_s is None else f"{r.completions_per_s:.1f}"
    return (
        name,
        f"{r.iteration}/{r.iterations}",
        ", ".join(r.phases) or "-",
        f"{r.done}/{r.total}",
        running,
        str(r.waiting),
        str(r.failed),
        speed,
        _share(r.truncated_share),
        _share(r.no_answer_share),
        _overhead(r),
        _end(r),
        r.state,
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _overhead(run: RunStatus) -> str:
    """The overhead of the last finished iteration, with its largest item."""
    if run.overhead is None:
        return "-"
    return f"{run.overhead:.0%}" + (f" ({run.largest_item})" if run.largest_item else "")


def _end(run: RunStatus) -> str:
    if run.expected_end is None or run.left_s is None:
        return "-"
    day = "" if run.left_s < 12 * 3600 else "%a " if run.left_s < 6 * 86400 else "%Y-%m-%d "
    return f"{time.strftime(f'{day}%H:%M', time.localtime(run.expected_end))} ({duration(run.left_s)})"


def _controller_line(c: ControllerStatus) -> Text:
    now = time.time()
    facts, style = ["none"], "yellow"
    if c.holder is not None:
        alive = {True: "alive", None: "unknown whether it is alive", False: "dead: the next start takes over"}[c.alive]
        facts, style = [describe_holder(c.holder), alive], "" if c.alive else "yellow"
    elif c.unreadable_claim:
        facts = [f"unknown, because the claim cannot be read ({c.unreadable_claim})"]
    elif c.jobs:
        facts, style = ["waits as a job"], "cyan"
    if c.seen is not None:
        facts.append(f"last seen {duration(max(0.0, now - c.seen))} ago")
    if c.cpu_s_per_hour is not None:
        facts.append(f"{c.cpu_s_per_hour:.0f} CPU-seconds per hour")
    if c.stop_request is not None:
        ago = duration(now - c.stop_request["time"])
        facts.append(f"stop requested by {c.stop_request['user']} on {c.stop_request['host']} {ago} ago")
    if c.last_log is not None and not c.jobs:
        facts.append(f"log: {c.last_log}")
    return Text(f"controller: {'; '.join(facts)}", style=style)


def _brief(message: str) -> str:
    """The first line of a message, and the line that names the log."""
    lines = message.splitlines() or [""]
    return "; ".join(dict.fromkeys([lines[0], *(line for line in lines if line.startswith("log: "))]))


def _in_brackets(reason: str) -> str:
    return f" ({reason})" if reason and reason != "None" else ""


# --- the command line ----------------------------------------------------------------------------


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(prog=prog, description="Show how far sweeps are. Changes nothing.")
    text = "a sweep's folder or YAML file, or a run's folder; default: all in ./outputs"
    parser.add_argument("sweeps", type=Path, nargs="*", metavar="SWEEP", help=text)
    parser.add_argument(
        "--all", action="store_true", dest="show_all", help=f"show all failures, not only the last {NUM_SHOWN}"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--json", action="store_true", help="everything as JSON (the fields are described in core_hpc/status/model.py)"
    )
    text = f"repeat every SECONDS ({WATCH_S:.0f}) until all runs are finished"
    how.add_argument("--watch", type=float, nargs="?", const=WATCH_S, metavar="SECONDS", help=text)
    return parser


def _sweeps(paths: Sequence[Path]) -> list[tuple[Path, list[Path]]]:
    """The folders of the named sweeps and of their runs. Without a name: all sweeps below ./outputs."""
    chosen = paths or sorted({p.parents[1] for p in Path("outputs").glob("*/*/run.json")})
    if not chosen:
        raise InputError("no sweep below ./outputs; name the folder or the YAML file of a sweep")
    return [locate(path) for path in chosen]


def watch(paths: Sequence[Path], interval_s: float, console: Console, *, show_all: bool) -> None:
    """Show the status every `interval_s` seconds until all runs are finished."""
    manifests = Manifests()
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        while True:
            found = read_status(_sweeps(paths), manifests)
            shown: RenderableType = Group(*(render(status, show_all=show_all, width=console.width) for status in found))
            if live is not None:
                live.update(Group(shown, Text(time.strftime("%H:%M:%S"), style="dim")), refresh=True)
            else:
                console.print(shown, soft_wrap=True)
            if all(run.state == FINISHED for status in found for run in status.runs):
                return
            time.sleep(interval_s)


def main(arguments: Sequence[str], *, prog: str = PROG) -> int:
    """Run the command and return its exit status."""
    parser = build_parser(prog)
    options = parser.parse_args(arguments)
    if options.watch is not None and not options.watch > 0:
        parser.error("--watch: give a positive number of seconds")
    console = standard_console()
    try:
        if options.watch is not None:
            watch(options.sweeps, options.watch, console, show_all=options.show_all)
            return 0
        found = read_status(_sweeps(options.sweeps), Manifests())
        if options.json:
            print(json.dumps({"time": time.time(), "sweeps": [asdict(status) for status in found]}, indent=1))
        else:
            for status in found:
                console.print(render(status, show_all=options.show_all, width=console.width), soft_wrap=True)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
