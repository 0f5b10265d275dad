"""python -m core_hpc.cancel SWEEP [--run RUN_ID ...]: ends the jobs of one sweep, or of some of its runs, and no others.

In: a sweep's folder or file. Out: its controllers and its jobs have ended, and the records tell what was cancelled, so
that the next start neither waits for these tasks nor counts them as failed. What is published stays. A controller is asked
to stop by a file, which it sees wherever it runs; jobs are known by the id on record and by their unique name.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from core_hpc.common.errors import ClaimError, CoreHpcError, InputError, StoreError
from core_hpc.common.terminal import show_error
from core_hpc.controller.detach import active_controllers
from core_hpc.runs.folder import locate
from core_hpc.slurm.commands import JobId, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.outcomes import ABANDONED, DONE, Outcome
from core_hpc.slurm.records import OPEN, Submission, SubmissionFolder
from core_hpc.store import manifests
from core_hpc.store.claims import claim, describe_holder, holder_lives
from core_hpc.store.paths import RunPaths, SweepPaths

WAIT_S = 60.0
POLL_S = 1.0


class Cancellation:
    """Cancels the jobs of open submissions, each once. With `run_ids` those of these runs; without, all of the sweep's."""

    def __init__(self, sweep: Path, run_ids: Sequence[str] | None, slurm: Slurm, console: Console) -> None:
        self._sweep = sweep
        self._run_ids = run_ids
        self._slurm = slurm
        self._console = console
        self._cancelled: dict[str, set[JobId]] = {}
        """By name of the submission: what was in the queue when it was cancelled."""

    def say(self, words: str) -> None:
        self._console.print(words, markup=False, soft_wrap=True)

    def num_cancelled(self) -> int:
        return sum(len(ids) for ids in self._cancelled.values())

    def _records(self) -> list[tuple[SubmissionFolder, Submission]]:
        """Open submissions, controllers first."""
        roots = [SweepPaths(self._sweep).slurm] if self._run_ids is None else []
        run_ids = [p.parent.name for p in self._sweep.glob("*/run.json")] if self._run_ids is None else self._run_ids
        folders = [
            SubmissionFolder(root)
            for root in (*roots, *(RunPaths(self._sweep / run_id).slurm for run_id in sorted(run_ids)))
        ]
        return [(folder, submission) for folder in folders for _, submission in folder.read_with_state(OPEN)]

    def active(self) -> list[tuple[Submission, list[QueueEntry]]]:
        """Open submissions that SLURM has jobs of. The name must be right even if the id is: SLURM may use ids again."""
        records = self._records()
        entries = [entry for entry in self._slurm.queue() if entry.active] if records else []
        found = [(s, [e for e in entries if e.name == s.name and s.job in (None, e.id.job)]) for _, s in records]
        return [(submission, own) for submission, own in found if own]

    def cancel_new(self) -> int:
        """Cancel what was not cancelled yet; returns how many jobs are still in the queue."""
        active = self.active()
        for submission, entries in active:
            known = self._cancelled.setdefault(submission.name, set())
            new = {entry.id for entry in entries} - known
            if new:
                # The array as a whole: elements that wait and are cancelled one by one vanish without a trace.
                job = entries[0].id.job
                self._slurm.cancel([job])
                known |= new
                states = ", ".join(
                    f"{num} {state.lower()}" for state, num in Counter(e.state for e in entries if e.id in new).items()
                )
                self.say(f"cancelled job {job} ({submission.name}): {states}")
        return sum(len(entries) for _, entries in active)

    def wait(self, controller: Callable[[], str | None]) -> list[str]:
        """Until no job is left and `controller` returns None; returns what is left after WAIT_S, in words."""
        deadline, said = time.monotonic() + WAIT_S, ""
        while True:
            try:
                num = self.cancel_new()
                left = [words for words in (controller(), f"{num} job(s) that are ending" if num else None) if words]
            except SlurmUnavailableError as e:
                left = [f"SLURM, which does not answer ({e})"]
            if not left or time.monotonic() > deadline:
                return left
            if (words := " and ".join(left)) != said:
                said = words
                self.say(f"waiting for {words} ...")
            time.sleep(POLL_S)

    def close_records(self) -> None:
        """Write into the records what was cancelled and has left the queue. For the holder of the claim."""
        active = {submission.name for submission, _ in self.active()}
        for folder, submission in self._records():
            ids = self._cancelled.get(submission.name, set())
            if not ids or submission.group == "controller" or submission.name in active:
                continue
            submission.job = next(iter(ids)).job
            paths = RunPaths(folder.root.parent)
            for index in submission.unresolved:
                rest = [key for key in submission.keys(index) if not paths.task_manifest(key).exists()]
                if not rest:
                    folder.resolve(submission, index, Outcome(DONE, "", counted=False))
                elif submission.job_id(index) in ids:
                    folder.resolve(
                        submission, index, Outcome(ABANDONED, "core_hpc.cancel", counted=False, task=str(rest[0]))
                    )
            if submission.is_resolved:
                folder.close(submission)
            else:
                folder.write(submission)  # some ended before; the next start finds out how


def cancel_sweep(sweep: Path, slurm: Slurm, console: Console) -> None:
    """End all controllers and jobs of a sweep."""
    paths, work = SweepPaths(sweep), Cancellation(sweep, None, slurm, console)

    def controller() -> str | None:
        try:
            holder = manifests.read_json(paths.claim)
        except StoreError:
            if not paths.claim.exists():
                return None
            raise
        return None if holder_lives(holder, slurm.has_ended) is False else f"the controller ({describe_holder(holder)})"

    if controller() is None and not work.active():
        work.say(f"nothing to cancel: no controller works on {sweep}, and SLURM has no jobs of it")
        return
    if not paths.stop_request.exists():
        manifests.write_json(paths.stop_request, manifests.writer_identity())
    left = work.wait(controller)
    if (who := controller()) is not None:
        raise CoreHpcError(
            f"{paths.claim}: {who} was asked to stop {WAIT_S:.0f} s ago and still holds the sweep. {work.num_cancelled()} job(s) were "
            "cancelled. Run the same command again in a minute; only if that process is surely dead, remove this file"
        )
    with claim(paths.claim, has_ended=slurm.has_ended):
        work.close_records()
        active_controllers(sweep, slurm, close=True)  # closes the records of the others
    _conclude(work, left, f"{sweep}: no controller works on it any more")


def cancel_runs(sweep: Path, run_ids: Sequence[str], slurm: Slurm, console: Console) -> None:
    """End the jobs of some runs, while no controller can submit them again."""
    unknown = [run_id for run_id in run_ids if not RunPaths(sweep / run_id).identity.is_file()]
    if unknown:
        known = ", ".join(sorted(p.parent.name for p in sweep.glob("*/run.json")))
        raise InputError(f"--run {unknown[0]}: no such run in {sweep}; its runs are: {known}")
    advice = f"and would submit their jobs again. Wait for its end, or cancel the whole sweep: python -m core_hpc.cancel {sweep}"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claim(SweepPaths(sweep).claim, has_ended=slurm.has_ended))
        except ClaimError as e:
            raise ClaimError(f"a controller works on these runs {advice}\n({e})") from e
        if jobs := [submission.job for submission in active_controllers(sweep, slurm, close=False)]:
            raise ClaimError(f"SLURM job {jobs[0]} is a controller of these runs {advice}")
        work = Cancellation(sweep, run_ids, slurm, console)
        if not work.active():
            work.say(f"nothing to cancel: SLURM has no jobs of {', '.join(run_ids)}")
            return
        left = work.wait(lambda: None)
        work.close_records()
    _conclude(work, left, f"{sweep}: {', '.join(run_ids)}")


def _conclude(work: Cancellation, left: Sequence[str], what: str) -> None:
    work.say(
        f"{what}; {work.num_cancelled()} job(s) were cancelled. What is published stays, and the next launch goes on from it"
    )
    if left:
        work.say(f"left: {' and '.join(left)}")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m core_hpc.cancel", description="End the jobs of a sweep. What is published stays."
    )
    parser.add_argument("sweep", type=Path, help="the sweep's folder or YAML file")
    parser.add_argument(
        "--run", action="append", metavar="RUN_ID", dest="run_ids", help="only the jobs of this run (repeatable)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    console = Console(highlight=False)
    try:
        sweep, runs = locate(options.sweep)
        if RunPaths(options.sweep).identity.is_file():
            raise InputError(
                f"{options.sweep}: is one run; write python -m core_hpc.cancel {sweep} --run {runs[0].name}"
            )
        if options.run_ids:
            cancel_runs(sweep, list(dict.fromkeys(options.run_ids)), Slurm(), console)
        else:
            cancel_sweep(sweep, Slurm(), console)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command goes on with what is left")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
