"""The command `core-hpc cancel`, also `python -m core_hpc.cancel`: end the SLURM jobs of a sweep or of its runs.

In: the folder or the YAML file of a sweep. Out: the sweep's controllers and jobs have ended. The records of
submissions name the cancelled tasks, so that the next start neither waits for them nor counts them as failed.
Published files stay. A controller on any host is asked to stop through a file in the sweep folder. The jobs are
cancelled in `controller/cancellation.py`.
"""

from __future__ import annotations

from core_hpc.common.startup import begin_command

if __name__ == "__main__":
    begin_command()

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from core_hpc.common.errors import ClaimError, CoreHpcError, InputError
from core_hpc.common.ownership import deny_writing_by_others
from core_hpc.common.packages import require_own_analysis
from core_hpc.common.terminal import PlainConsole, show_error

require_own_analysis()  # the controller imports `analysis`

from core_hpc.controller.cancellation import PROG, WAIT_S, Cancellation
from core_hpc.controller.detached_records import active_controllers
from core_hpc.runs.folder import locate, runs_in
from core_hpc.slurm.commands import Slurm
from core_hpc.store import manifests
from core_hpc.store.claims import claim, describe_holder, holder_lives, read_holder
from core_hpc.store.paths import RunPaths, SweepPaths


def cancel_sweep(sweep: Path, slurm: Slurm, console: Console) -> None:
    """End all controllers and jobs of a sweep.

    Raises:
        CoreHpcError: a controller still holds the sweep's claim after WAIT_S.
    """
    paths, work = SweepPaths(sweep), Cancellation(sweep, None, slurm, console)

    def controller() -> str | None:
        holder = read_holder(paths.claim)
        if holder is None or holder_lives(holder, slurm.has_ended) is False:
            return None
        return f"the controller ({describe_holder(holder)})"

    work.require_own()
    if controller() is None and not work.active():
        with claim(paths.claim, has_ended=slurm.has_ended):
            closed = _closed(work.close_records())
        work.report(f"nothing to cancel: no controller works on {sweep}, and SLURM has no jobs of it{closed}")
        return
    if not paths.stop_request.exists():
        manifests.write_json(paths.stop_request, manifests.writer_identity())
    left = work.wait(controller)
    if (who := controller()) is not None:
        raise CoreHpcError(
            f"{paths.claim}: {who} was asked to stop {WAIT_S:.0f} s ago and still holds the sweep. "
            f"{work.num_cancelled()} job(s) were cancelled. Run the same command again in a minute. "
            "Remove this file only if you are sure that the process is dead"
        )
    with claim(paths.claim, has_ended=slurm.has_ended):
        work.close_records()
        active_controllers(sweep, slurm, close=True)  # closes the records of controllers that have ended
    _report_end(work, left, f"{sweep}: no controller works on it any longer")


def cancel_runs(sweep: Path, run_ids: Sequence[str], slurm: Slurm, console: Console) -> None:
    """End the jobs of some runs. No controller may run meanwhile, because it would submit the jobs again.

    Raises:
        InputError: the sweep has no run with one of these ids.
        ClaimError: a controller works on the sweep.
    """
    unknown = [run_id for run_id in run_ids if not RunPaths(sweep / run_id).identity.is_file()]
    if unknown:
        known = ", ".join(run.name for run in runs_in(sweep))
        raise InputError(f"--run {unknown[0]}: no such run in {sweep}; its runs are: {known}")
    advice = (
        "and would submit their jobs again. Wait until it ends, or cancel the whole sweep: "
        f"python -m core_hpc.cancel {sweep}"
    )
    work = Cancellation(sweep, run_ids, slurm, console)
    work.require_own()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claim(SweepPaths(sweep).claim, has_ended=slurm.has_ended))
        except ClaimError as e:
            raise ClaimError(f"a controller works on these runs {advice}\n({e})") from e
        if jobs := [submission.job for submission in active_controllers(sweep, slurm, close=False)]:
            raise ClaimError(f"SLURM job {jobs[0]} is a controller of these runs {advice}")
        if not work.active():
            closed = _closed(work.close_records())
            work.report(f"nothing to cancel: SLURM has no jobs of {', '.join(run_ids)}{closed}")
            return
        left = work.wait(lambda: None)
        work.close_records()
    _report_end(work, left, f"{sweep}: {', '.join(run_ids)}")


def _closed(num: int) -> str:
    """The end of a message about records that were closed."""
    return f". Closed {num} record(s) of jobs that had ended" if num else ""


def _report_end(work: Cancellation, left: Sequence[str], subject: str) -> None:
    work.report(
        f"{subject}; {work.num_cancelled()} job(s) were cancelled. Published files stay. "
        "The next launch continues from them"
    )
    if left:
        work.report(f"still there: {' and '.join(left)}")


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(
        prog=prog, description="End the controller and the SLURM jobs of a sweep. Published files stay."
    )
    parser.add_argument("sweep", type=Path, help="the sweep's folder or YAML file")
    parser.add_argument(
        "--run",
        action="append",
        metavar="RUN_ID",
        dest="run_ids",
        help="only the jobs of this run, while no controller works on the sweep (repeatable)",
    )
    return parser


def main(arguments: Sequence[str], *, prog: str = PROG) -> int:
    """Run the command and return its exit status."""
    options = build_parser(prog).parse_args(arguments)
    deny_writing_by_others()
    console = PlainConsole(highlight=False)
    try:
        sweep, runs = locate(options.sweep)
        if RunPaths(options.sweep).identity.is_file():
            raise InputError(
                f"{options.sweep}: is one run, not a sweep. Use: python -m core_hpc.cancel {sweep} --run {runs[0].name}"
            )
        if options.run_ids:
            cancel_runs(sweep, list(dict.fromkeys(options.run_ids)), Slurm(), console)
        else:
            cancel_sweep(sweep, Slurm(), console)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("\ninterrupted; run the same command again to cancel the remaining jobs")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
