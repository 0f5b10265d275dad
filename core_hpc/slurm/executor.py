"""The executor on SLURM: submits jobs within the limits of site and user, and watches them.

In: tasks that are ready. Out: events. The drivers `arrays` and `resident` differ only in which
tasks go into a job; this is decided by a `Packing` strategy. Records are in `slurm/records.py`,
submissions in `slurm/submit.py`, sbatch in `slurm/sbatch.py`, looking at jobs in `slurm/watch.py`,
their ends in `slurm/endings.py`, and changes before another attempt in `slurm/remedies.py`. If this
process dies, its successor continues from the records.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from core_hpc.common.errors import FULL_DISK, InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.slurm import PhaseGroup
from core_hpc.runs.events import Done, Event, Failed, Progressed, TaskRef
from core_hpc.runs.folder import Run
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.schedule.base import Adopted
from core_hpc.slurm.commands import Slurm, SlurmUnavailableError, certainly_ended
from core_hpc.slurm.endings import Endings
from core_hpc.slurm.notices import Notices
from core_hpc.slurm.pace import Pace
from core_hpc.slurm.packing import Batch, Packing, Wanted
from core_hpc.slurm.parse import Place, QueueLimit
from core_hpc.slurm.records import FAILED, OPEN, Submission, SubmissionFolder, new_submission
from core_hpc.slurm.remedies import Remedies
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.slurm.submit import submit_elements
from core_hpc.slurm.watch import OpenSubmission, Sighting, SightingKind, Watch
from core_hpc.store.paths import TaskKey

REFUSED_WAIT_S = 30.0
MAX_ODD_REFUSALS = 5
"""After so many refusals in a row that are not understood or contradict the queue, a run stops."""
NO_LIMIT = 1_000_000
STOPPED_RUN = (OutcomeKind.ABANDONED, OutcomeKind.GAVE_UP)
"""Outcomes of jobs whose run was stopped; the message has the reason."""


class SlurmExecutor:
    """Implements `schedule.base.Executor` on SLURM with a packing strategy."""

    def __init__(
        self,
        cluster: ClusterSection,
        slurm: Slurm,
        packing: Packing,
        *,
        start_id: str,
        notify: Callable[[str], None],
        require_claim: Callable[[], str] = lambda: "",
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create an executor that knows no jobs.

        Args:
            packing: decides which tasks go into a job.
            start_id: names the start by the user; attempts of the same start are counted together.
            notify: shows a message to the user.
            require_claim: called before jobs are submitted, and before a look changes records or ends
                jobs. It returns the token of the claim, for the records; it raises ClaimLostError
                when another controller holds the sweep.
            stop_requested: asked before each submission, because many of them take minutes.
        """
        self._cluster = cluster
        self._slurm = slurm
        self._packing = packing
        self._start_id = start_id
        self._notify = notify
        self._require_claim = require_claim
        self._stop_requested = stop_requested
        self._notices = Notices(notify)
        self._watch = Watch(slurm, lost_after_s=cluster.slurm.lost_after_s, notices=self._notices)
        self._endings = Endings(slurm, packing, self._watch)
        self._remedies = Remedies(cluster.slurm, slurm, notify)
        self._pace = Pace(cluster.slurm.poll_s)
        self._events: list[Event] = []
        self._refused_until: dict[PhaseGroup, float] = {}
        self._most: dict[PhaseGroup, int] = {}
        """How many elements the next array may have, after a refusal because of a limit. How much room is left under a
        limit that others fill is not known, so it is halved then, and doubled when sbatch takes an array."""
        self._num_odd_refusals = 0

    # --- schedule.base.Executor ------------------------------------------------------------------

    def adopt(self, runs: Sequence[Run]) -> Adopted:
        """Take over the jobs of earlier controllers, with the failures of this start and the runs that it stopped."""
        self._pace.restart()
        failures: list[Failed] = []
        stopped: dict[str, str] = {}
        newest = 0.0
        for run in runs:
            folder = SubmissionFolder(run.paths.slurm)
            self._open_records(run, folder)
            for submission in folder.read(OPEN, FAILED):
                if submission.start_id == self._start_id:
                    if submission.submitted > newest:  # a node that is not in the newest list is used again
                        newest, self._remedies.excluded = submission.submitted, list(submission.excluded)
                    for index, outcome in submission.outcomes.items():
                        self._learn_memory(run, submission, index, outcome)
                        if outcome.kind in STOPPED_RUN:
                            stopped[run.run_id] = outcome.message
                        elif outcome.counted:
                            failures.append(Failed(TaskRef(run.run_id, TaskKey.parse(outcome.task)), outcome))
        failures.sort(key=lambda failed: failed.outcome.time)
        self._watch.count_jobs()
        tasks, inside, events = self._packing.adopted(self._watch.open, self._start_id)
        self._events += events
        if self._watch.open:
            num = len(self._watch.open)
            self._notify(f"{num} submission(s) of an earlier start are still with SLURM; taking them over")
        return Adopted(tasks, [*failures, *inside], stopped)

    def submit(self, wanted: Wanted) -> list[TaskRef]:
        """Submit within the limits; tasks that open jobs do in any case are taken as well."""
        taken, events = self._packing.covered(wanted, self._watch.open)
        self._events += events
        covered = set(taken)
        others = [(run, key) for run, key in wanted if TaskRef(run.run_id, key) not in covered]
        if others and not all(map(self._is_refused, self._cluster.groups)):
            taken += self._submit_batches(others)
        return taken

    def poll(self) -> list[Event]:
        """Look at published files and at the queue when it is time to."""
        if not self._events:
            self._pace.wait()
        if self._pace.is_due:
            self._require_claim()  # the wait was long enough for another controller to take the sweep
            for sighting in self._watch.look():
                self._handle(sighting)
            self._endings.settle()
            self._endings.tidy()
        events, self._events = self._events, []
        self._pace.adapt(moved=any(not isinstance(event, Progressed) for event in events))
        return events

    def abandon(self, run: Run, why: str) -> list[TaskRef]:
        """Cancel elements that are useless once the run has stopped.

        Other elements may end, and the next start adopts them. If SLURM does not answer, a later look cancels.
        """
        outcome = Outcome(OutcomeKind.ABANDONED, why.partition("\n")[0], counted=False)
        items = [item for item in self._watch.open if item.run.run_id == run.run_id]
        given_up = [task for item in items for i in item.submission.unresolved for task in item.tasks_left(i)]
        self._endings.abandon(items, outcome)
        return given_up

    def close(self) -> None:
        """Jobs continue without a controller."""

    # --- submitting ------------------------------------------------------------------------------

    def _submit_batches(self, wanted: Wanted) -> list[TaskRef]:
        taken: list[TaskRef] = []
        for batch in self._packing.batches(wanted, self._watch.open, self._remedies):
            if self._is_refused(batch.group):
                continue
            limits = self._limits(batch.group)
            if limits is None:
                break
            max_array, room = limits
            inside: set[TaskKey] = set()
            accepted, rest = True, batch.elements[:room]
            while rest:
                size = min(max_array, self._most.get(batch.group, NO_LIMIT))
                elements, rest = rest[:size], rest[size:]
                accepted = not self._must_stop() and self._submit(replace(batch, elements=elements))
                if not accepted:
                    break
                inside |= {key for element in elements for key in element}
                if self._is_refused(batch.group):
                    break
            own = [key for run, key in wanted if run.run_id == batch.run.run_id and key in inside]
            taken += [TaskRef(batch.run.run_id, key) for key in own]
            if not accepted and not self._is_refused(batch.group):
                break
            if len(batch.elements) > room:
                message = f"the queue has room for {room} more job(s) of `{batch.group}`; the other tasks wait here"
                self._notices.show(f"limit {batch.group}", message)
        return taken

    def _must_stop(self) -> bool:
        """Whether a stop was requested. If the file system reports an error, the scheduler asks again."""
        try:
            return self._stop_requested()
        except OSError:
            return True

    def _is_refused(self, group: PhaseGroup) -> bool:
        """Whether sbatch has refused jobs of this group, and the next attempt is not due yet."""
        return time.monotonic() < self._refused_until.get(group, 0.0)

    def _limits(self, group: PhaseGroup) -> tuple[int, int] | None:
        """How many elements an array may have, and how many more may be submitted.

        Returns:
            Both numbers; None when SLURM does not answer.
        """
        settings = self._cluster.slurm
        job = settings.job(group)
        try:
            limits = self._slurm.limits(partition=job["partition"], qos=job["qos"], account=job["account"])
        except SlurmUnavailableError as e:
            self._watch.unavailable(e)
            return None
        all_limits = [*limits.queue, *([QueueLimit(settings.max_submitted)] if settings.max_submitted else [])]
        active = self._watch.active
        rooms = [limit.most - sum(active[job] for job in active if limit.counts(job)) for limit in all_limits]
        return limits.max_array_size, max(0, min(rooms, default=NO_LIMIT))

    def _submit(self, batch: Batch) -> bool:
        """Submit an array, or a job of one element.

        Returns:
            False when sbatch refused it. True also when SLURM may have taken it: the watch then
            looks for it by its name, and meanwhile its tasks must not be submitted again.
        """
        token = self._require_claim()
        folder = SubmissionFolder(batch.run.paths.slurm)
        new = new_submission(
            batch.group,
            batch.name,
            batch.elements,
            start_id=self._start_id,
            mem_gb=batch.mem_gb,
            excluded=self._remedies.excluded,
            claim=token,
        )
        try:
            submission = submit_elements(folder, new, self._cluster, batch.run.root.absolute())
        except RefusedError as e:
            return self._refused(OpenSubmission(batch.run, folder, new), e)
        except OSError as e:  # of the files of the submission, perhaps after sbatch
            if e.errno in FULL_DISK:
                raise
            return self._refused(OpenSubmission(batch.run, folder, new), RefusedError(str(e), answered=False))
        job = self._cluster.slurm.job(batch.group)
        self._watch.active[Place(job["account"], job["partition"], job["qos"])] += len(batch.elements)
        if batch.group in self._most:
            self._most[batch.group] = max(self._most[batch.group], 2 * len(batch.elements))
        self._num_odd_refusals = 0
        self._notices.clear("sbatch")
        self._watch.open.append(OpenSubmission(batch.run, folder, submission))
        return True

    def _refused(self, item: OpenSubmission, error: RefusedError) -> bool:
        """React to a refusal. Returns whether SLURM may have taken the submission nevertheless."""
        # Without a job of this user in the queue, an own limit allows none. Others may have filled any other limit.
        num = len(item.submission.elements)
        is_odd = not error.understood or (error.own_limit and not self._watch.active and num == 1)
        self._num_odd_refusals = self._num_odd_refusals + 1 if is_odd else 0
        if error.passing and self._num_odd_refusals < MAX_ODD_REFUSALS:
            self._notices.show("sbatch", f"sbatch: {error}; next attempt in {REFUSED_WAIT_S:.0f} s")
            groups = [item.submission.group] if error.limit else self._cluster.groups
            if error.limit:
                self._most[item.submission.group] = max(1, num // 2)
            self._refused_until |= dict.fromkeys(groups, time.monotonic() + REFUSED_WAIT_S)
            if error.unsure:
                with contextlib.suppress(OSError):  # without its record, sbatch was not called
                    item.folder.write(item.submission)
                self._watch.open.append(item)
            return error.unsure
        self._num_odd_refusals = 0
        item.folder.discard(item.submission)
        if self._remedies.excluded:
            nodes = ", ".join(self._remedies.allow_all_nodes())
            self._notify(f"sbatch: {error}; using the excluded nodes {nodes} again")
        else:
            outcome = Outcome(OutcomeKind.FINAL, f"sbatch refused the job: {error}; {error.correction}")
            for index in item.submission.unresolved:
                task = self._packing.ended_at(item, index, outcome)
                self._events += self._packing.ended(item, index, replace(outcome, task=task))
        return False

    # --- what follows from a sighting ------------------------------------------------------------

    def _open_records(self, run: Run, folder: SubmissionFolder) -> None:
        waiting, messages = folder.read_unresolved()
        for message in messages:
            self._notify(message)
        for submission in waiting:
            job = submission.job or "(being submitted)"
            if submission.group not in self._cluster.groups:
                if certainly_ended(self._slurm, submission.job, submission.owner):
                    folder.abandon(submission, "ended before a start with another driver")
                    continue
                raise InputError(
                    f"{run.run_id}: job {job} of another driver ({submission.name}) may still be with SLURM. "
                    f"Start with that driver, or end its jobs first: python -m core_hpc.cancel {run.root.parent}"
                )
            if submission.is_foreign and not certainly_ended(self._slurm, submission.job, submission.owner):
                raise InputError(
                    f"{run.run_id}: job {job} ({submission.name}) of user "
                    f"{submission.owner} is still open. Only {submission.owner} can continue this sweep, or end its "
                    f"jobs: python -m core_hpc.cancel {run.root.parent}. Nothing was submitted"
                )
            self._watch.open.append(OpenSubmission(run, folder, submission))

    def _learn_memory(self, run: Run, submission: Submission, index: int, outcome: Outcome) -> None:
        """Raise the memory after an outcome that an earlier controller recorded, as that one did."""
        max_gb = self._cluster.slurm.job(submission.group)["max_mem_gb"]
        at = submission.elements[index].index(outcome.task) if outcome.task in submission.elements[index] else 0
        tasks = [TaskRef(run.run_id, key) for key in submission.keys(index)[at:]]
        self._remedies.raise_memory(outcome, tasks, had_gb=submission.mem_gb, max_gb=max_gb)

    def _handle(self, sighting: Sighting) -> None:
        item, index = sighting.item, sighting.index
        if sighting.kind == SightingKind.PUBLISHED:
            assert sighting.key is not None
            self._events.append(Done(TaskRef(item.run.run_id, sighting.key), str(item.log(index))))
        elif sighting.kind == SightingKind.COMPLETE:
            if self._remedies.counts_failures and (status := item.status(index)) is not None:
                self._remedies.succeeded(status.node)
            self._endings.record(item, index, Outcome(OutcomeKind.DONE, counted=False))
        elif sighting.kind == SightingKind.ENDED:
            assert sighting.outcome is not None
            if index not in item.submission.outcomes:  # a look that was repeated sees it again
                self._fail(item, index, sighting.outcome)
        else:
            self._events += self._packing.seen(sighting)

    def _fail(self, item: OpenSubmission, index: int, outcome: Outcome) -> None:
        """Record how an element ended, and report the tasks that it did not do."""
        max_gb = self._cluster.slurm.job(item.submission.group)["max_mem_gb"]
        tasks = item.tasks_left(index)
        outcome = self._remedies.raise_memory(outcome, tasks, had_gb=item.submission.mem_gb, max_gb=max_gb)
        task = self._packing.ended_at(item, index, outcome)
        ref = TaskRef(item.run.run_id, TaskKey.parse(task)) if task else None
        outcome = self._remedies.count_lost_node(ref, replace(outcome, task=task, log=str(item.log(index))))
        self._remedies.failed(ref, outcome)
        self._events += self._packing.ended(item, index, outcome)
        if item in self._watch.open:
            self._endings.record(item, index, outcome)
