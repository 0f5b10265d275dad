"""python -m core_hpc.status [SWEEP ...]: how sweeps are getting on. It only reads, and needs no claim.

In: sweep folders, run folders or sweep files. Out: a table a sweep, or with --json what the classes below hold:
{"time": ..., "sweeps": [SweepStatus, ...]}. Points in time are in seconds since 1970; null stands for what is not known.

What is done is what is published. What is under way comes from the records of submissions, the status files of their
elements, one look at SLURM's queue if there is one, and the controller's last word on itself (controller.json).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.terminal import duration, show_error, standard_console
from core_hpc.runs.folder import locate
from core_hpc.status.collect import Manifests
from core_hpc.status.compute import read_status
from core_hpc.status.model import (
    FINISHED,
    NO_CONTROLLER,
    STOPPED,
    UNREADABLE,
    WAITING,
    ControllerStatus,
    RunStatus,
    SweepStatus,
)
from core_hpc.store.claims import describe_holder

WATCH_S = 10.0
NUM_SHOWN = 10
STYLES = {FINISHED: "green", WAITING: "cyan", NO_CONTROLLER: "yellow", STOPPED: "red", UNREADABLE: "red"}


def render(status: SweepStatus, *, show_all: bool = False) -> Group:
    """The table of a sweep and what stands below it."""
    lines = [_controller_line(status.controller)]
    lines += [
        Text(f"  SLURM job {j['job']}: {j['state']}{_in_brackets(j['reason'])}; log: {j['log']}")
        for j in status.controller.jobs
    ]
    if status.slurm not in ("ok", "not needed"):
        lines.append(
            Text(f"SLURM: {status.slurm}; what runs and waits is counted by what the jobs wrote", style="yellow")
        )
    if status.waiting_reasons:
        lines.append(
            Text("queue: " + "; ".join(f"{num} waiting: {reason}" for reason, num in status.waiting_reasons.items()))
        )
    for run in status.runs:
        lines += [Text(f"{run.run_id} {run.state}: {_brief(run.detail)}", style="red")] if run.detail else []
    shown = status.failures if show_all else status.failures[:NUM_SHOWN]
    if shown:
        count = (
            f"all {len(shown)}"
            if len(shown) == len(status.failures)
            else f"{len(shown)} of {len(status.failures)}; --all shows all"
        )
        lines.append(Text(f"failures of the last start, newest first ({count}):"))
    for f in shown:
        known = (
            "" if f.counted else "; not seen by a controller yet" if f.counted is None else "; does not count as a try"
        )
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(f.time))
        lines.append(Text(f"  {when} {f.run_id} {f.task}: {f.kind}: {_brief(f.message)} (node {f.node or '?'}{known})"))
        lines.append(Text(f"    log: {f.log or '?'}"))
    title = Text(f"sweep {status.sweep}", style="bold").append(f"   {status.folder}", style="dim")
    return Group(title, _table(status.runs), *lines)


def _table(runs: Sequence[RunStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    left = ("run", "phase", "overhead", "expected end", "state")
    names = (
        "run",
        "iteration",
        "phase",
        "tasks done",
        "running",
        "waiting",
        "failed",
        "compl./s",
        "overhead",
        "expected end",
        "state",
    )
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for r in runs:
        running, speed = (
            "-" if x is None else form % x for x, form in ((r.running, "%d"), (r.completions_per_s, "%.1f"))
        )
        table.add_row(
            r.run_id,
            f"{r.iteration}/{r.iterations}",
            ", ".join(r.phases) or "-",
            f"{r.done}/{r.total}",
            running,
            str(r.waiting),
            str(r.failed),
            speed,
            _overhead(r),
            _end(r),
            Text(r.state, style=STYLES.get(r.state, "")),
        )
    return table


def _overhead(run: RunStatus) -> str:
    """Of the last finished iteration, with its largest item."""
    return (
        "-" if run.overhead is None else f"{run.overhead:.0%}" + (f" ({run.largest_item})" if run.largest_item else "")
    )


def _end(run: RunStatus) -> str:
    if run.expected_end is None or run.left_s is None:
        return "-"
    day = "" if run.left_s < 12 * 3600 else "%a " if run.left_s < 6 * 86400 else "%Y-%m-%d "
    return f"{time.strftime(f'{day}%H:%M', time.localtime(run.expected_end))} ({duration(run.left_s)})"


def _controller_line(c: ControllerStatus) -> Text:
    now = time.time()
    words, style = ["none"], "yellow"
    if c.holder is not None:
        alive = (
            "alive"
            if c.alive
            else "not known whether it lives"
            if c.alive is None
            else "dead: the next start takes over"
        )
        words, style = [describe_holder(c.holder), alive], "" if c.alive else "yellow"
    elif c.jobs:
        words, style = ["waits as a job"], "cyan"
    if c.seen is not None:
        words.append(f"last seen {duration(max(0.0, now - c.seen))} ago")
    if c.cpu_s_per_hour is not None:
        words.append(f"{c.cpu_s_per_hour:.0f} CPU-seconds an hour")
    if c.stop_request is not None:
        words.append(
            f"stop requested by {c.stop_request['user']} on {c.stop_request['host']} {duration(now - c.stop_request['time'])} ago"
        )
    if c.last_log is not None and not c.jobs:
        words.append(f"log: {c.last_log}")
    return Text(f"controller: {'; '.join(words)}", style=style)


def _brief(words: str) -> str:
    """The first line of a message, and the line that says where the log is."""
    lines = words.splitlines() or [""]
    return "; ".join(dict.fromkeys([lines[0], *(line for line in lines if line.startswith("log: "))]))


def _in_brackets(words: str) -> str:
    return f" ({words})" if words and words != "None" else ""


# --- the command line ----------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m core_hpc.status", description="How sweeps are getting on. Reads only."
    )
    words = "a sweep's folder or YAML file, or a run's folder; default: all in ./outputs"
    parser.add_argument("sweeps", type=Path, nargs="*", metavar="SWEEP", help=words)
    parser.add_argument(
        "--all", action="store_true", dest="show_all", help=f"show all failures, not only the last {NUM_SHOWN}"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--json", action="store_true", help="everything as JSON (the fields are described in core_hpc/status/model.py)"
    )
    words = f"show again every so many seconds ({WATCH_S:.0f}), until all is finished"
    how.add_argument("--watch", type=float, nargs="?", const=WATCH_S, metavar="SECONDS", help=words)
    options = parser.parse_args(arguments)
    if options.watch is not None and not options.watch > 0:
        parser.error("--watch: give a positive number of seconds")
    return options


def _sweeps(paths: Sequence[Path]) -> list[tuple[Path, list[Path]]]:
    """The sweeps that are asked for; without any, all below ./outputs."""
    chosen = paths or sorted({p.parents[1] for p in Path("outputs").glob("*/*/run.json")})
    if not chosen:
        raise InputError("no sweep below ./outputs; name the folder or the YAML file of a sweep")
    return [locate(path) for path in chosen]


def watch(paths: Sequence[Path], interval_s: float, console: Console, *, show_all: bool) -> None:
    """Show the status until all runs are finished."""
    manifests = Manifests()
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        while True:
            found = read_status(_sweeps(paths), manifests)
            shown: RenderableType = Group(*(render(status, show_all=show_all) for status in found))
            if live is not None:
                live.update(Group(shown, Text(time.strftime("%H:%M:%S"), style="dim")), refresh=True)
            else:
                console.print(shown, soft_wrap=True)
            if all(run.state == FINISHED for status in found for run in status.runs):
                return
            time.sleep(interval_s)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
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
                console.print(render(status, show_all=options.show_all), soft_wrap=True)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
