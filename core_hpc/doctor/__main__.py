"""python -m core_hpc.doctor [SWEEP.yaml]: look for what would stop a sweep here, before anything is started.

One line a check: ok, warn or FAIL, what was found, and what to do. The exit status is 1 when something FAILs. The checks
are in checks.py (this machine), storage.py (the output folder), slurm.py and job.py (nodes).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape

from core_hpc.common.errors import CoreHpcError
from core_hpc.config.cluster import Driver
from core_hpc.doctor.checks import FAIL, MACHINE_CHECKS, OK, WARN, Check, Finding, Subject, run_checks
from core_hpc.doctor.slurm import check_slurm
from core_hpc.doctor.storage import check_output
from core_hpc.runs.sweep import Sweep, load_sweep
from core_hpc.slurm.commands import Slurm

STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
JOB_NEEDS: tuple[Check, ...] = (check_output, check_slurm)
STAND_IN = """\
name: doctor
iterations: 1
team: [{name: any, model: any}]
problems:
  train: {source: generated, count: 32}
  evaluation: {source: generated, count: 1}
"""
"""Stands in for a sweep when none is named: its models and problems are not looked at."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m core_hpc.doctor",
        description="Look for what would stop a sweep here. Changes nothing; removes its own traces.",
    )
    parser.add_argument(
        "sweep", type=Path, nargs="?", help="YAML file; without one, the machine and the profile are looked at"
    )
    parser.add_argument("--cluster", metavar="PROFILE", help="cluster profile, instead of the file's `cluster.profile`")
    parser.add_argument("--driver", choices=get_args(Driver), help="instead of the profile's `driver` (cluster.driver)")
    parser.add_argument("--no-job", action="store_true", help="submit no test job")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded; must be set before huggingface_hub is imported
    console = Console(highlight=False, soft_wrap=True)
    statuses = []
    try:
        for finding in examine(options, tell=lambda words: console.print(f"      {escape(words)}")):
            console.print(render(finding))
            statuses.append(finding.status)
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return 130
    counts = [f"{statuses.count(s)} {s}" for s in (OK, WARN, FAIL) if s in statuses]
    console.print(f"[bold]{', '.join(counts)}[/bold]")
    return 1 if FAIL in statuses else 0


def render(finding: Finding) -> str:
    """A finding as a line of the report."""
    advice = f" [bold]->[/bold] {escape(finding.advice)}" if finding.advice else ""
    return f"[{STYLES[finding.status]}]{finding.status:<5}[/] {escape(finding.what)}{advice}"


def examine(options: argparse.Namespace, *, tell: Callable[[str], None]) -> Iterator[Finding]:
    """All findings, as they are made."""
    try:
        sweep = load_subject(options.sweep, options.cluster, options.driver)
    except CoreHpcError as e:
        yield Finding(FAIL, str(e), "mend the file; `python -m core_hpc.launch FILE --dry-run` shows what it means")
        return
    subject = Subject(sweep, options.sweep is not None, Slurm())
    if subject.given:
        yield Finding(OK, f"sweep file {options.sweep}: {len(sweep.runs)} run(s), results in {sweep.folder}")
    yield from run_checks(MACHINE_CHECKS, subject)
    blocked = False
    for finding in run_checks(JOB_NEEDS, subject):
        blocked |= finding.status == FAIL
        yield finding
    yield from _nodes(subject, wanted=not options.no_job, blocked=blocked, tell=tell)


def load_subject(source: Path | None, profile: str | None, driver: Driver | None = None) -> Sweep:
    """The named sweep, or one that stands in for it."""
    overrides = [f"cluster.driver={driver}"] if driver else []
    if source is not None:
        return load_sweep(source, overrides, profile=profile)
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder, "doctor.yaml")
        stand_in.write_text(STAND_IN, encoding="utf-8")
        return load_sweep(stand_in, overrides, profile=profile)


def _nodes(subject: Subject, *, wanted: bool, blocked: bool, tell: Callable[[str], None]) -> Iterator[Finding]:
    """The test job, where there is one to submit."""
    from core_hpc.doctor.job import check_nodes

    if not subject.submits:
        yield Finding(OK, "test job: none, tasks run on this machine")
    elif not wanted:
        yield Finding(OK, "test job: skipped (--no-job); nothing is known about the compute nodes")
    elif blocked:
        yield Finding(
            WARN, "test job: not submitted, because SLURM or the output folder fails", "mend that and run this again"
        )
    else:
        yield from run_checks([lambda s: check_nodes(s, tell=tell)], subject)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
