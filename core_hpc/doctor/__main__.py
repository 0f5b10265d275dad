"""The command `core-hpc doctor`, also `python -m core_hpc.doctor`: look for what would stop a sweep here.

In: a sweep file, or nothing. Out: one line per check with its status (ok, warn or FAIL), the finding, and what to
do. The exit status is 1 if a check fails. `doctor/checks.py` lists the modules with the checks.
"""

from __future__ import annotations

from core_hpc.common.startup import begin_command

if __name__ == "__main__":
    begin_command()

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from rich.markup import escape

from core_hpc.common.errors import CoreHpcError
from core_hpc.common.new_file import write_new_file
from core_hpc.common.ownership import deny_writing_by_others
from core_hpc.common.terminal import PlainConsole, show_error
from core_hpc.config.cluster import Driver
from core_hpc.doctor.checks import FAIL, OK, WARN, Check, Finding, Subject, run_checks
from core_hpc.doctor.inputs import check_models, check_problems
from core_hpc.doctor.machine import check_gpu, check_machine, check_port
from core_hpc.doctor.packages import check_python
from core_hpc.doctor.sharing import check_sharing
from core_hpc.doctor.site import write_profile
from core_hpc.doctor.slurm import check_slurm
from core_hpc.doctor.storage import check_output
from core_hpc.runs.sweep import Sweep, load_sweep
from core_hpc.slurm.commands import Slurm

PROG = "python -m core_hpc.doctor"
STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
MACHINE_CHECKS: tuple[Check, ...] = (check_python, check_machine, check_gpu, check_port, check_models, check_problems)
JOB_NEEDS: tuple[Check, ...] = (check_output, check_sharing, check_slurm)
STAND_IN = """\
name: doctor
iterations: 1
team: [{name: any, model: any}]
problems:
  train: {source: generated, count: 32}
  evaluation: {source: generated, count: 1}
"""
"""The sweep that is examined when the user names none. Its models and problems are not checked."""


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Look for what would stop a sweep here. Changes nothing, and removes its own test files.",
    )
    parser.add_argument(
        "sweep", type=Path, nargs="?", help="YAML file; without one, only the machine and the profile are checked"
    )
    parser.add_argument("--cluster", metavar="PROFILE", help="cluster profile, instead of the file's `cluster.profile`")
    parser.add_argument("--driver", choices=get_args(Driver), help="instead of the profile's `driver` (cluster.driver)")
    parser.add_argument("--no-job", action="store_true", help="submit no test job")
    text = "check nothing; write a draft of a cluster profile for this site, from what SLURM reports, to a new file"
    parser.add_argument("--write-profile", type=Path, metavar="FILE", help=text)
    return parser


def main(arguments: Sequence[str], *, prog: str = PROG) -> int:
    """Run the command and return its exit status."""
    options = build_parser(prog).parse_args(arguments)
    deny_writing_by_others()
    os.environ["HF_HUB_OFFLINE"] = "1"  # so that nothing is downloaded; huggingface_hub reads it when it is imported
    console = PlainConsole(highlight=False, soft_wrap=True)
    if options.write_profile is not None:
        return _write_profile(options.write_profile, console)
    statuses = []
    try:
        for finding in examine(options, report=lambda message: console.print(f"      {escape(message)}")):
            console.print(render(finding))
            statuses.append(finding.status)
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return 130
    counts = [f"{statuses.count(s)} {s}" for s in (OK, WARN, FAIL) if s in statuses]
    console.print(f"[bold]{', '.join(counts)}[/bold]")
    return 1 if FAIL in statuses else 0


def _write_profile(path: Path, console: PlainConsole) -> int:
    try:
        taken = "exists and is not changed; name a new file"
        write_new_file(path, write_profile(Slurm()), option="--write-profile", taken=taken)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    console.print(
        f"written: {escape(str(path))}. Read it, then: python -m core_hpc.doctor --cluster {escape(str(path))}"
    )
    return 0


def render(finding: Finding) -> str:
    """A finding as a line of the report."""
    advice = f" [bold]->[/bold] {escape(finding.advice)}" if finding.advice else ""
    return f"[{STYLES[finding.status]}]{finding.status:<5}[/] {escape(finding.what)}{advice}"


def examine(options: argparse.Namespace, *, report: Callable[[str], None]) -> Iterator[Finding]:
    """Run all checks and yield each finding at once. `report` gets messages about the progress of test jobs."""
    try:
        sweep = load_subject(options.sweep, options.cluster, options.driver)
    except CoreHpcError as e:
        yield Finding(
            FAIL, str(e), "correct the file; `python -m core_hpc.launch FILE --dry-run` shows the resolved runs"
        )
        return
    subject = Subject(sweep, options.sweep is not None, Slurm())
    if subject.given:
        yield Finding(OK, f"sweep file {options.sweep}: {len(sweep.runs)} run(s), results in {sweep.folder}")
    yield from run_checks(MACHINE_CHECKS, subject)
    blocked = False
    for finding in run_checks(JOB_NEEDS, subject):
        blocked |= finding.status == FAIL
        yield finding
    yield from _nodes(subject, wanted=not options.no_job, blocked=blocked, report=report)


def load_subject(source: Path | None, profile: str | None, driver: Driver | None = None) -> Sweep:
    """The named sweep, or a small stand-in."""
    overrides = [f"cluster.driver={driver}"] if driver else []
    if source is not None:
        return load_sweep(source, overrides, profile=profile)
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder, "doctor.yaml")
        stand_in.write_text(STAND_IN, encoding="utf-8")
        return load_sweep(stand_in, overrides, profile=profile)


def _nodes(subject: Subject, *, wanted: bool, blocked: bool, report: Callable[[str], None]) -> Iterator[Finding]:
    """Findings of the test jobs, or why there is none."""
    from core_hpc.doctor.job import check_nodes

    if not subject.submits:
        yield Finding(OK, "test job: none, tasks run on this machine")
    elif not wanted:
        yield Finding(OK, "test job: skipped (--no-job); the compute nodes are not checked")
    elif blocked:
        yield Finding(
            WARN, "test job: not submitted, because SLURM or the output folder fails", "correct that and run this again"
        )
    else:
        yield from run_checks([lambda s: check_nodes(s, report=report)], subject)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
