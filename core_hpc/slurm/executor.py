"""What the drivers `arrays` and `resident` share: an executor that submits SLURM jobs and says what became of their tasks.

In: tasks that are ready. Out: events. It keeps within what the site and the user's limits allow, and looks less often when
nothing happens. It decides what counts as a try, what gets more memory and which nodes are avoided. Which tasks go into
a job is arrays.py's and resident.py's, records and sbatch are submissions.py's, looking is watch.py's, SLURM's commands
commands.py's.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection, PhaseGroup
from core_hpc.runs.folder import Run
from core_hpc.schedule.base import Event, TaskRef
from core_hpc.schedule.scheduler import cpu_seconds
from core_hpc.slurm.commands import Slurm, SlurmUnavailableError
from core_hpc.slurm.outcomes import ABANDONED, DONE, NODE_KINDS, OUT_OF_MEMORY, Outcome
from core_hpc.slurm.records import FAILED, OPEN, SubmissionFolder, new_submission
from core_hpc.slurm.submit import RefusedError, submit_elements
from core_hpc.slurm.watch import OpenSubmission, Sighting, Watch
from core_hpc.store.paths import TaskKey

REFUSED_WAIT_S = 30.0
BACK_OFF = 1.5
CPU_SHARE, CPU_CREDIT_S = 0.008, 5.0
"""What the controller may take of a core, and how many CPU-seconds of that it may use early: a login node is shared."""


class SlurmExecutor(ABC):
    """Implements schedule.Executor on SLURM. Whatever happens to it, the next one goes on from the records."""

    def __init__(
        self,
        cluster: ClusterSection,
        slurm: Slurm,
        runs: Sequence[Run],
        *,
        start_id: str,
        notify: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._settings = cluster.slurm
        self._slurm = slurm
        self._start_id = start_id
        self._notify = notify
        self._folders = {run.run_id: SubmissionFolder(run.paths.slurm) for run in runs}
        self._watch = Watch(slurm, lost_after_s=cluster.slurm.lost_after_s, say=self._say)
        self._events: list[Event] = []
        self._asked: set[TaskRef] = set()
        """What the scheduler has in flight."""
        self._unwritten: list[OpenSubmission] = []
        self._attempts: dict[str, dict[TaskKey, int]] = {}
        self._mem_gb: dict[TaskRef, float] = {}
        self._streaks: dict[str, int] = {}
        self._excluded: list[str] = []
        self._num_submitted = 0
        """Elements submitted since the last look, which the watch cannot have counted."""
        self._interval = self._settings.poll_s[0]
        self._began, self._cpu_before = time.time(), cpu_seconds()
        self._next_look = 0.0
        self._refused_until = 0.0
        self._said: dict[str, str] = {}

    # --- schedule.Executor -----------------------------------------------------------------------

    def adopt(self, runs: Sequence[Run]) -> list[TaskRef]:
        """Take over what earlier controllers submitted."""
        self._began, self._cpu_before = time.time(), cpu_seconds()
        for run in runs:
            folder = self._folders[run.run_id]
            for submission in folder.read(OPEN):
                if submission.is_resolved:  # a controller was killed while it closed the record
                    folder.close(submission)
                    continue
                if submission.group not in self._cluster.groups:
                    raise InputError(
                        f"{run.run_id}: job {submission.job} of another driver ({submission.name}) is still with SLURM. Start with that "
                        f"driver, or end its jobs first: python -m core_hpc.cancel {run.root.parent}"
                    )
                self._watch.open.append(OpenSubmission(run, folder, submission))
            counts: dict[TaskKey, int] = {}
            for submission in folder.read(OPEN, FAILED):
                if submission.start_id == self._start_id:
                    self._excluded += [node for node in submission.excluded if node not in self._excluded]
                    for outcome in submission.outcomes.values():
                        if outcome["counted"]:
                            key = TaskKey.parse(outcome["task"])
                            counts[key] = counts.get(key, 0) + 1
            self._attempts[run.run_id] = counts
        self._watch.count_jobs()
        return self._take_over()

    def attempts(self, run: Run) -> dict[TaskKey, int]:
        return dict(self._attempts.get(run.run_id, {}))

    @abstractmethod
    def submit(self, wanted: Sequence[tuple[Run, TaskKey]]) -> list[TaskRef]: ...

    def poll(self) -> list[Event]:
        """Look at published files and at the queue, when it is time to."""
        if not self._events:
            time.sleep(max(0.0, min(self._next_look - time.time(), self._settings.poll_s[1])))
        if time.time() >= self._next_look:
            for sighting in self._watch.look():
                self._handle(sighting)
            self._write_records()
            self._num_submitted = 0
        events, self._events = self._events, []
        self._set_interval(moved=any(e.kind != "progress" for e in events))
        return events

    def _set_interval(self, *, moved: bool) -> None:
        """Soon when something moves, but so seldom that the controller keeps to its share of a core in the long run."""
        shortest, longest = self._settings.poll_s
        used, elapsed = cpu_seconds() - self._cpu_before, time.time() - self._began
        repaid = (used - CPU_CREDIT_S) / CPU_SHARE - elapsed  # until what was used is within the share
        self._interval = min(longest, max(shortest, repaid, 0 if moved else self._interval * BACK_OFF))
        self._next_look = time.time() + self._interval

    def abandon(self, run: Run) -> list[TaskRef]:
        """Cancel what is of no use any more; the rest may end, and the next start takes it over."""
        dropped = self._dropped(run)
        for item in [o for o in self._watch.open if o.run.run_id == run.run_id]:
            useless = [i for i in item.submission.unresolved if self._ends_with_its_run(item, i)]
            with contextlib.suppress(SlurmUnavailableError):
                self._slurm.cancel([job for i in useless if (job := item.submission.job_id(i)) is not None])
                for index in useless:
                    self._record(item, index, Outcome(ABANDONED, "its run was stopped", counted=False))
            self._write_records()
            if item in self._watch.open:
                self._watch.open.remove(item)
        return dropped

    def close(self) -> None:  # noqa: B027 - the same for all
        """Nothing: jobs go on without a controller."""

    # --- submitting ------------------------------------------------------------------------------

    def _limits(self, group: PhaseGroup) -> tuple[int, int] | None:
        """(elements of one array, elements that may still be submitted) for a phase group; None when SLURM does not answer."""
        job = self._settings.job(group)
        try:
            limits = self._slurm.limits(partition=job["partition"], qos=job["qos"], account=job["account"])
        except SlurmUnavailableError as e:
            self._watch.unavailable(e)
            return None
        allowed = [n for n in (limits.max_submitted, self._settings.max_submitted) if n is not None]
        in_queue = self._watch.num_active + self._num_submitted
        return limits.max_array_size, max(0, min(allowed) - in_queue) if allowed else 1_000_000

    def _say_full(self, room: int) -> None:
        self._say("limit", f"the queue has room for {room} more job(s) of yours; the rest waits here")

    def _submit(self, run: Run, group: PhaseGroup, what: str, elements: list[list[TaskKey]], mem_gb: float) -> bool:
        """Submit an array, or a job of one element; `what` is like cold-0001. False when it was refused."""
        folder = self._folders[run.run_id]
        new = new_submission(group, what, elements, start_id=self._start_id, mem_gb=mem_gb, excluded=self._excluded)
        try:
            submission = submit_elements(folder, new, self._cluster, run.root.absolute())
        except RefusedError as e:
            self._refused(OpenSubmission(run, folder, new), e)
            return False
        self._num_submitted += len(elements)
        self._said.pop("sbatch", None)
        self._watch.open.append(OpenSubmission(run, folder, submission))
        return True

    def _refused(self, item: OpenSubmission, error: RefusedError) -> None:
        if error.passing and (not error.limit or self._watch.num_active):
            self._say("sbatch", f"sbatch: {error}; trying again in {REFUSED_WAIT_S:.0f} s")
            self._refused_until = time.time() + REFUSED_WAIT_S
            if not error.limit:  # it may have been taken all the same: looked for by its name
                item.folder.write(item.submission)
                self._watch.open.append(item)
        elif self._excluded:
            self._notify(f"sbatch: {error}; using the excluded nodes {', '.join(self._excluded)} again")
            self._excluded = []
        else:
            words = f"sbatch refused the job: {error}; mend the cluster profile"
            for index in item.submission.unresolved:
                outcome = Outcome("final", words)
                self._tell(item, index, replace(outcome, task=self._task_of(item, index, outcome)), log="")

    # --- what the drivers do differently ---------------------------------------------------------

    @abstractmethod
    def _take_over(self) -> list[TaskRef]:
        """Tasks in flight of the open submissions, which an earlier controller made."""

    @abstractmethod
    def _dropped(self, run: Run) -> list[TaskRef]:
        """Tasks in flight of a run that is being abandoned."""

    @abstractmethod
    def _ends_with_its_run(self, item: OpenSubmission, index: int) -> bool:
        """Whether an element is of no use once its run has stopped."""

    @abstractmethod
    def _under_way(self, sighting: Sighting) -> None:
        """Tell what is seen of an element that waits or runs (sightings started, waiting, status)."""

    @abstractmethod
    def _tell(self, item: OpenSubmission, index: int, outcome: Outcome, *, log: str) -> None:
        """Tell of the tasks that an ended element did not do."""

    @abstractmethod
    def _task_of(self, item: OpenSubmission, index: int, outcome: Outcome) -> str:
        """At which of its tasks an element ended."""

    # --- what follows from a sighting ------------------------------------------------------------

    def _handle(self, sighting: Sighting) -> None:
        item, index = sighting.item, sighting.index
        if sighting.kind == "published":
            assert sighting.key is not None
            task = TaskRef(item.run.run_id, sighting.key)
            self._asked.discard(task)
            self._events.append(Event(task, "done", {"log": str(item.log(index))}))
        elif sighting.kind == "complete":
            if self._streaks:
                for status in item.status_files(index)[:1]:
                    self._streaks.pop(status["node"], None)
            self._record(item, index, Outcome(DONE, "", counted=False))
        elif sighting.kind == "ended":
            assert sighting.outcome is not None
            self._fail(item, index, sighting.outcome)
        else:
            self._under_way(sighting)

    def _fail(self, item: OpenSubmission, index: int, outcome: Outcome) -> None:
        """Record how an element ended, and tell of the tasks that it did not do."""
        outcome = replace(self._more_memory(item, index, outcome), task=self._task_of(item, index, outcome))
        if outcome.kind in NODE_KINDS and outcome.node:
            self._blame(outcome.node)
        self._tell(item, index, outcome, log=str(item.log(index)))
        if item in self._watch.open:
            self._record(item, index, outcome)

    def _record(self, item: OpenSubmission, index: int, outcome: Outcome) -> None:
        item.folder.resolve(item.submission, index, outcome)
        if outcome.kind != DONE or item.submission.is_resolved:  # what is published needs no record of its own
            self._unwritten.append(item)

    def _write_records(self) -> None:
        """Once for all elements that one look found: an array of a thousand may fail at one stroke."""
        for item in dict.fromkeys(self._unwritten):
            if not item.submission.is_resolved:
                item.folder.write(item.submission)
            else:
                item.folder.close(item.submission)
                self._watch.open.remove(item)
        self._unwritten = []

    def _more_memory(self, item: OpenSubmission, index: int, outcome: Outcome) -> Outcome:
        """A task that ran out of memory is tried once with more, if the profile allows it."""
        most, had = self._settings.job(item.submission.group)["max_mem_gb"], item.submission.mem_gb
        if outcome.kind != OUT_OF_MEMORY or most is None or had >= most:
            return outcome
        for task in item.tasks_left(index):
            self._mem_gb[task] = most
        return outcome.with_note(f"trying once with {most:g} GB in place of {had:g} GB", counted=False)

    def _blame(self, node: str) -> None:
        """Exclude a node that failed several times in a row, as long as most nodes remain."""
        self._streaks[node] = self._streaks.get(node, 0) + 1
        if self._streaks[node] < self._settings.exclude_after or node in self._excluded:
            return
        with contextlib.suppress(SlurmUnavailableError):
            if 2 * (len(self._excluded) + 1) <= len(self._slurm.nodes(self._settings.partition)):
                self._excluded.append(node)
                self._notify(f"node {node} failed {self._streaks[node]} times in a row and is excluded from now on")

    def _say(self, topic: str, words: str | None) -> None:
        """Tell something once, until it changes or (None) is over."""
        if words is None:
            if self._said.pop(topic, None) and topic == "slurm":
                self._notify("SLURM answers again")
        elif self._said.get(topic) != words:
            self._said[topic] = words
            self._notify(words)


def failure_fields(outcome: Outcome, *, log: str) -> dict[str, Any]:
    """The fields of an event `failed`."""
    return {
        "kind": outcome.kind,
        "message": outcome.message,
        "traceback": outcome.traceback,
        "log": log,
        "counted": outcome.counted,
        **({"manifest": outcome.manifest} if outcome.manifest else {}),
    }
