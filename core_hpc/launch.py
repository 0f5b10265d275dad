"""The command `core-hpc launch`, also `python -m core_hpc.launch`: start a sweep, or continue it.

The module reads the sweep file, checks what can be checked before anything is created, and passes the
sweep to `controller/`, which prepares new runs, schedules their tasks and prints the results. The
controller and what it needs are loaded after the sweep file is found to be valid, so that a mistake
is reported at once.
"""

from __future__ import annotations

from core_hpc.common.startup import begin_command

if __name__ == "__main__":
    begin_command()

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.markup import escape

from core_hpc.common.errors import FULL_DISK, CoreHpcError, InputError, full_disk_message
from core_hpc.common.ownership import deny_writing_by_others
from core_hpc.common.packages import require_own_analysis
from core_hpc.common.shipped import shipped_folder
from core_hpc.common.terminal import show_error, standard_console

require_own_analysis()  # the controller imports `analysis`

from core_hpc.config.cluster import Driver
from core_hpc.runs.sweep import Sweep, load_sweep

if TYPE_CHECKING:
    from core_hpc.controller.start import Prepared, Start

PROG = "python -m core_hpc.launch"
EXIT_INTERRUPTED = 130


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run a sweep. If it was started before, continue it.",
        epilog=f"Example sweeps and cluster profiles: {shipped_folder('yaml')}. "
        f"Set-up scripts for SLURM jobs: {shipped_folder('slurm')}.",
    )
    parser.add_argument("sweep", type=Path, help="YAML file")
    add_launch_arguments(parser)
    return parser


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that launches a sweep."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="overrides",
        help="override a field, for example iterations=6 or team.gemma3.lora.rank=8 (repeatable)",
    )
    parser.add_argument("--output", help="folder of all sweeps, instead of the file's `output`")
    parser.add_argument("--cluster", metavar="PROFILE", help="cluster profile, instead of the file's `cluster.profile`")
    parser.add_argument("--driver", choices=get_args(Driver), help="instead of the profile's `driver` (cluster.driver)")
    parser.add_argument("--detach", action="store_true", help="run the controller as a small SLURM job, and return")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the sweep, print its runs, work and GPU-hours; create nothing"
    )
    parser.add_argument(
        "--full", action="store_true", help="with --dry-run: also the configuration, all jobs and all batch scripts"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: everything as one JSON object")
    parser.add_argument(
        "--verify", action="store_true", help="check the checksums of all published files before continuing"
    )


def main(arguments: Sequence[str], *, prog: str = PROG) -> int:
    """Run the command and return its exit status."""
    options = build_parser(prog).parse_args(arguments)
    return launch_with(
        options,
        lambda overrides: load_sweep(options.sweep, overrides, output=options.output, profile=options.cluster),
    )


def launch_with(options: argparse.Namespace, read: Callable[[Sequence[str]], Sweep]) -> int:
    """Launch a sweep as the arguments of `add_launch_arguments` ask for, with messages for the user.

    Args:
        options: The parsed arguments.
        read: Returns the sweep, from values of `--set`.

    Returns:
        The exit status of the command.
    """
    deny_writing_by_others()
    console = standard_console()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored: the command was started with nohup
        signal.signal(signal.SIGHUP, _interrupt)  # the login shell has ended: release the claim; jobs keep running
    sweep = None
    try:
        if (options.full or options.json) and not options.dry_run:
            raise InputError(f"{'--full' if options.full else '--json'} needs --dry-run")
        if options.cluster == "":
            raise InputError("--cluster: is empty; write a profile, or leave it out")
        overrides = [*options.overrides, *([f"cluster.driver={options.driver}"] if options.driver else [])]
        sweep = read(overrides)
        from core_hpc.runs import conflicts  # loads Polars, which a refused file does not need

        sweep = conflicts.with_started_ids(sweep)
        if options.dry_run:
            return _dry_run(sweep, console, full=options.full, as_json=options.json)
        return launch(sweep, console, verify=options.verify, detached=options.detach)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    except OSError as e:
        if e.errno not in FULL_DISK:
            raise
        show_error(full_disk_message(e, sweep.folder if sweep is not None else options.output or "output folder"))
        return CoreHpcError.exit_code
    except KeyboardInterrupt:
        console.print(
            "\ninterrupted; published files are kept. Run the same command again to continue.", soft_wrap=True
        )
        if sweep is not None and sweep.cluster.uses_slurm:
            console.print(
                f"SLURM jobs that were submitted continue. To end them: python -m core_hpc.cancel {sweep.folder}",
                soft_wrap=True,
            )
        return EXIT_INTERRUPTED


def _dry_run(sweep: Sweep, console: Console, *, full: bool, as_json: bool) -> int:
    """Print what a start would do. The exit status is that of a start that is refused, or 0."""
    from core_hpc.controller.plan import make_plan
    from core_hpc.controller.plan_checks import slurm_checks
    from core_hpc.controller.plan_text import print_plan

    plan = make_plan(sweep)
    plan = replace(plan, checks=(*plan.checks, *slurm_checks(sweep.cluster)))
    if as_json:
        print(json.dumps(plan.as_json(), indent=1))
    else:
        print_plan(plan, console, full=full)
    return InputError.exit_code if plan.is_refused else 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def launch(sweep: Sweep, console: Console, *, verify: bool = False, detached: bool = False) -> int:
    """Run a sweep to its end, or submit a detached controller for it.

    Returns:
        0 when every run finished, or when the detached controller was submitted.
    """
    from core_hpc.controller.control import control
    from core_hpc.controller.results import conclude
    from core_hpc.controller.start import Start, prepare_new_runs
    from core_hpc.controller.wandb_copy import check_tracking
    from core_hpc.local.executor import LocalLimits
    from core_hpc.runs import conflicts
    from core_hpc.runs.inputs import changed_files

    cluster = sweep.cluster
    conflicts.check_conflicts(sweep)
    for section in dict.fromkeys(plan.config.tracking for plan in sweep.runs):
        check_tracking(section)
    for check in conflicts.folder_checks(sweep):
        check()
    if cluster.uses_slurm:
        _check_slurm(sweep, console)
    elif detached:
        raise InputError(
            "--detach: needs SLURM. Name a cluster profile with `driver: arrays` or `resident` "
            "(--cluster, or cluster.profile in the file)"
        )
    else:
        LocalLimits.of(cluster, sweep.largest_team)  # raises InputError if GPUs are missing
    for note in changed_files(sweep):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    prepared = prepare_new_runs(sweep, console)
    start = Start.new(verify=verify)
    if detached:
        return _detach(sweep, start, prepared, console)
    progress, finished = control(sweep, start, prepared, console)
    if not finished:
        console.print("stopped by core_hpc.cancel; published files are kept. Run the same command again to continue.")
        return EXIT_INTERRUPTED
    return conclude(sweep, progress, console)


def _check_slurm(sweep: Sweep, console: Console) -> None:
    """Raise the errors that SLURM can report before anything is prepared or submitted."""
    from core_hpc.controller.detached_records import require_no_other
    from core_hpc.local.gpus import check_gpus
    from core_hpc.slurm.acceptance import check_accepted
    from core_hpc.slurm.commands import Slurm, slurm_installed

    if not slurm_installed():
        driver = sweep.cluster.driver
        raise InputError(
            f"cluster.driver: {driver} needs SLURM, and sbatch is not on PATH. "
            "Load the site's module, or use `driver: local`"
        )
    if sweep.folder.exists():
        require_no_other(sweep.folder, Slurm())
    if sweep.cluster.driver == "resident":
        check_gpus(sweep.cluster, sweep.largest_team, sweep.cluster.slurm.num_gpus("resident"))
    for message in check_accepted(sweep.cluster, Slurm()):
        console.print(f"[yellow]{escape(message)}[/yellow]", soft_wrap=True)


def _detach(sweep: Sweep, start: Start, prepared: Prepared, console: Console) -> int:
    """Submit a controller as a SLURM job."""
    from core_hpc.controller.detach import detach
    from core_hpc.controller.detached_records import active_controllers, require_no_other
    from core_hpc.slurm.commands import Slurm
    from core_hpc.store.claims import claim
    from core_hpc.store.paths import SweepPaths

    slurm = Slurm()
    with claim(SweepPaths(sweep.folder).claim, has_ended=slurm.has_ended):
        require_no_other(sweep.folder, slurm)
        active_controllers(sweep.folder, slurm, close=True)
        log = detach(sweep, start, prepared, console)
    console.print(f"  log: {log}", soft_wrap=True)
    console.print(f"  python -m core_hpc.status {sweep.folder}", soft_wrap=True)
    console.print(f"  python -m core_hpc.cancel {sweep.folder}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
