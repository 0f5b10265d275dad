"""The detached controller: the controller of a sweep as a small SLURM job, with a successor.

In: a sweep. Out: a chain of jobs. When a controller starts, it submits its successor, which begins
after it has ended. If SLURM does not take it then, further attempts follow
(`controller/successor.py`). So the sweep continues, whatever ends a controller: its time limit, a
preemption, a lost node. A controller that finishes the sweep cancels its successor.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from core_hpc.common.environment import number_in
from core_hpc.common.errors import (
    FULL_DISK,
    ClaimError,
    ClaimLostError,
    CoreHpcError,
    InputError,
    StoreError,
    full_disk_message,
)
from core_hpc.common.terminal import standard_console
from core_hpc.config.cluster import ClusterSection
from core_hpc.controller.control import control, open_runs, stop_requested
from core_hpc.controller.detached_records import active_controllers, end_of
from core_hpc.controller.heartbeat import reported_life_s
from core_hpc.controller.results import conclude
from core_hpc.controller.start import Prepared, Start
from core_hpc.controller.successor import Successor
from core_hpc.runs import folder as runfolders
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.runs.sweep import Sweep
from core_hpc.schedule.progress import RunProgress
from core_hpc.slurm.commands import JobId, Slurm, SlurmUnavailableError
from core_hpc.slurm.records import OPEN, Submission, SubmissionFolder, new_submission
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.slurm.submit import find_job, job_parameters, submit
from core_hpc.store import manifests
from core_hpc.store.claims import claim
from core_hpc.store.paths import SweepPaths

QUICK_S = 60.0
"""A controller that reported for a shorter time has ended quickly, perhaps because it cannot run."""
MAX_QUICK_ENDS = 3
PATIENCE_S = 600.0
"""How long a controller waits for files of its sweep, and for an answer of SLURM that it needs before it can work."""
CLAIM_WAIT_S = 60.0
"""The claim of the launcher or of the previous controller may stay visible for so long."""
RETRY_S, CLAIM_RETRY_S, LOOK_RETRY_S = 10.0, 2.0, 2.0
LOOK_S = 20.0
"""How long to look for a job that SLURM may have taken."""


@dataclass(frozen=True)
class ControllerSpec:
    """What the job of a controller needs to know. A new field needs a default.

    Attributes:
        quick_ends: how many controllers before the previous one, in a row, ended quickly; -1: it is
            the first one.
        submitted: when the previous controller began, before its first report, in seconds since 1970.
            For the first controller: when the launcher submitted it.
        status: file in which it notes how it ends.
    """

    sweep_folder: str
    run_ids: tuple[str, ...]
    start_id: str
    quick_ends: int
    submitted: float
    status: str = ""


# --- outside the job -----------------------------------------------------------------------------


def detach(sweep: Sweep, start: Start, prepared: Prepared, console: Console) -> Path:
    """Create the folders of new runs, and submit the first controller. The caller holds the claim.

    Returns:
        The log of the controller.
    """
    open_runs(sweep, prepared, console, verify=start.verify)
    SweepPaths(sweep.folder).stop_request.unlink(missing_ok=True)
    spec = ControllerSpec(
        sweep_folder=str(sweep.folder.absolute()),
        run_ids=tuple(plan.run_id for plan in sweep.runs),
        start_id=start.start_id,
        quick_ends=-1,
        submitted=time.time(),
    )
    folder, submission = _submit_controller(spec, sweep.cluster, after=None)
    console.print(f"sweep {sweep.name}: its controller is SLURM job {submission.job}")
    return folder.log(submission, 0)


# --- inside the job ------------------------------------------------------------------------------


def run_controller(spec: ControllerSpec) -> None:
    """Run the controller of a sweep inside its job."""
    signal.signal(signal.SIGUSR2, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    console = standard_console()
    folder, slurm = Path(spec.sweep_folder), Slurm()
    paths = SweepPaths(folder)
    if _is_known_to_stop(paths):
        console.print("this sweep was asked to stop, so this controller ends")
        _note_end(spec, OutcomeKind.DONE, "asked to stop before it began")
        return
    mine, began = number_in("SLURM_JOB_ID"), time.time()
    if mine is None:
        raise InputError("the controller of a detached sweep runs in a SLURM job, and SLURM_JOB_ID is not set here")
    successor, continues = Successor(functools.partial(_report, console)), True
    try:
        sweep = _read_patiently(spec, console)
        quick_ends = _count_quick_ends(spec)
        if quick_ends > MAX_QUICK_ENDS:
            console.print(f"{quick_ends} controllers ended within {QUICK_S:.0f} s each; this one gets no successor")
        else:
            following = replace(spec, quick_ends=quick_ends, submitted=began)
            successor.allow(functools.partial(_submit_successor, following, sweep.cluster, slurm, mine=mine))
        progress, finished = _control_patiently(sweep, Start(spec.start_id, by_user=False), console, successor)
        continues = not finished and not stop_requested(paths)
        if finished:
            conclude(sweep, progress, console)
        _note_end(spec, OutcomeKind.DONE, "finished" if finished else "asked to stop")
    except (KeyboardInterrupt, SlurmUnavailableError) as e:
        is_stopped = _is_known_to_stop(paths)
        if not is_stopped:
            successor.ensure(now=True)
        continues = _chain_continues(e, successor, is_stopped=is_stopped)
        why = "asked to end" if isinstance(e, KeyboardInterrupt) else str(e)
        if is_stopped:
            then = "the sweep was asked to stop"
        elif successor.job is None:
            then = "there is no successor; start the sweep again to continue"
        else:
            then = f"the successor, job {successor.job}, continues"
        _report(console, f"{why}; {then}")
        _note_end(spec, OutcomeKind.DONE, why)
    except CoreHpcError as e:
        continues = _chain_continues(e, successor)
        _note_end(spec, OutcomeKind.DIED, str(e))
        raise
    except OSError as e:
        continues = _chain_continues(e, successor)
        if e.errno not in FULL_DISK:
            _note_end(spec, OutcomeKind.DIED, f"{type(e).__name__}: {e}")
            raise
        message = full_disk_message(e, folder)
        _note_end(spec, OutcomeKind.DIED, message)
        raise CoreHpcError(message) from e
    finally:
        if not continues:
            with contextlib.suppress(SlurmUnavailableError, ClaimError, OSError):  # the next start does it
                _end_chain(folder, slurm, successor.job)


def _is_known_to_stop(paths: SweepPaths) -> bool:
    """Whether a user asked the sweep to stop. No, if the folder cannot be listed now: that must not end the chain."""
    try:
        return stop_requested(paths)
    except OSError:
        return False


def _chain_continues(
    error: KeyboardInterrupt | CoreHpcError | OSError, successor: Successor, *, is_stopped: bool = False
) -> bool:
    """Whether another controller of the chain continues the sweep after this error.

    Args:
        is_stopped: whether a user asked the sweep to stop.
    """
    if isinstance(error, ClaimLostError):
        # The new holder may be the successor, or need it: SLURM may have started this job again elsewhere.
        return True
    if successor.job is None or is_stopped:
        return False
    if isinstance(error, KeyboardInterrupt | SlurmUnavailableError):
        return True
    if isinstance(error, CoreHpcError):
        # A file that cannot be read now may be readable for the successor. After any other error there is another
        # controller, or a successor would fail in the same way.
        return isinstance(error, StoreError) and not isinstance(error, manifests.DamagedError)
    return error.errno not in FULL_DISK


def _end_chain(sweep_folder: Path, slurm: Slurm, successor: int | None) -> None:
    """Cancel the successor, and close the records of the controllers: this is the last one."""
    folder, mine = SubmissionFolder(SweepPaths(sweep_folder).slurm), number_in("SLURM_JOB_ID")
    for submission in folder.read(OPEN):
        if submission.job == successor is not None:
            slurm.cancel_named(submission.name, [JobId(successor)])
    with claim(SweepPaths(sweep_folder).claim, has_ended=slurm.has_ended):
        active_controllers(sweep_folder, slurm, close=True)
        for submission in folder.read(OPEN):
            if submission.job == successor is not None:  # it has never begun, so nothing of it is worth keeping
                folder.discard(submission)
            elif submission.job == mine is not None:
                folder.resolve(submission, 0, end_of(folder, submission))
                folder.close(submission)
        folder.tidy()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _note_end(spec: ControllerSpec, kind: OutcomeKind, message: str) -> None:
    """Write how this controller ends, for its record (`detached_records.end_of` reads it)."""
    if not spec.status:  # submitted by an earlier version
        return
    with contextlib.suppress(OSError):
        end = Outcome(kind, message, node=os.environ.get("SLURMD_NODENAME", ""))
        manifests.write_json(Path(spec.status), end.to_json())


def _report(console: Console, message: str) -> None:
    console.print(escape(message), soft_wrap=True)


def _control_patiently(
    sweep: Sweep, start: Start, console: Console, successor: Successor
) -> tuple[list[RunProgress], bool]:
    """Call `control`; wait for the claim of the launcher or of the previous job to disappear.

    A claim whose job has ended counts until SLURM confirms that.
    """
    began = time.monotonic()
    while True:
        try:
            return control(sweep, start, {}, console, in_loop=successor.ensure)
        except ClaimLostError:
            raise  # another controller has taken the sweep from this one
        except ClaimError:
            if time.monotonic() - began > CLAIM_WAIT_S:
                raise
            time.sleep(CLAIM_RETRY_S)
        except SlurmUnavailableError as e:
            if time.monotonic() - began > PATIENCE_S or _is_known_to_stop(SweepPaths(sweep.folder)):
                raise
            _report(console, f"{e}; the controller waits for an answer")
            successor.ensure()
            time.sleep(RETRY_S)


def _read_patiently(spec: ControllerSpec, console: Console) -> Sweep:
    """Read the sweep. There is no successor yet, so a file that cannot be read now must not end the chain."""
    folder, deadline = Path(spec.sweep_folder), time.monotonic() + PATIENCE_S
    while True:
        try:
            return runfolders.started_sweep(folder, spec.run_ids)
        except (StoreError, OSError) as e:
            if time.monotonic() > deadline or _is_known_to_stop(SweepPaths(folder)):
                raise
            console.print(f"{e}; the controller reads it again")
            time.sleep(RETRY_S)


def _count_quick_ends(spec: ControllerSpec) -> int:
    """How many controllers before this one, in a row, ended quickly. This one has not reported yet."""
    heartbeat = SweepPaths(Path(spec.sweep_folder)).controller
    was_quick = spec.quick_ends >= 0 and reported_life_s(heartbeat, spec.start_id, since=spec.submitted) < QUICK_S
    return spec.quick_ends + 1 if was_quick else 0


def _submit_successor(following: ControllerSpec, cluster: ClusterSection, slurm: Slurm, *, mine: int) -> int | None:
    """Submit the next controller, if an earlier attempt or an earlier start of this job has not done it.

    Returns:
        Its job; None while it is not known whether SLURM has taken an earlier attempt.

    Raises:
        RefusedError: sbatch refused it.
        SlurmUnavailableError: SLURM does not answer.
    """
    active = active_controllers(Path(following.sweep_folder), slurm, close=False)
    waiting = [s.job for s in active if s.job is not None and s.job > mine]
    if waiting:
        return waiting[0]
    if any(s.job is None for s in active):
        return None
    return _submit_controller(following, cluster, after=mine)[1].job


def _submit_controller(
    spec: ControllerSpec, cluster: ClusterSection, *, after: int | None
) -> tuple[SubmissionFolder, Submission]:
    folder = SubmissionFolder(SweepPaths(Path(spec.sweep_folder)).slurm)
    mem_gb = cluster.slurm.job("controller")["mem_gb"]
    submission = new_submission("controller", "controller-0001", [[]], start_id=spec.start_id, mem_gb=mem_gb)
    parameters = job_parameters(
        cluster,
        "controller",
        name=submission.name,
        comment=f"core_hpc {Path(spec.sweep_folder).name}",
        dependency=f"afterany:{after}" if after is not None else None,
    )
    folder.write(submission)
    spec = replace(spec, status=str(folder.status_file(submission, 0)))
    try:
        submission.job = submit(
            cluster, folder.folder(submission), parameters, [functools.partial(run_controller, spec)]
        )
    except RefusedError as e:
        if not e.unsure:
            folder.discard(submission)
            raise
        submission.job = _look_for(submission)
        if submission.job is None:
            raise
    folder.write(submission)
    return folder, submission


def _look_for(submission: Submission) -> int | None:
    """The job of a submission whose fate is not known, by its name; None if it does not appear."""
    slurm, deadline = Slurm(), time.monotonic() + LOOK_S
    while time.monotonic() < deadline:
        with contextlib.suppress(SlurmUnavailableError):
            if (job := find_job(slurm.queue(), submission)) is not None:
                return job
        time.sleep(LOOK_RETRY_S)
    return None
