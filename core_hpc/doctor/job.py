"""Test jobs: one for each kind of job that the profile asks for, submitted in the same way as real jobs.

This module submits the jobs, waits for them, and notes when files become visible in both directions. What a job does
on its node is in `doctor/node.py`, and how its report is judged in `doctor/probe.py`. Nothing is published, and the
folder of the jobs is removed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core_hpc.config.slurm import PhaseGroup
from core_hpc.doctor.checks import FAIL, Finding, Subject
from core_hpc.doctor.inputs import model_folders
from core_hpc.doctor.node import HELLO, PING, PONG, ProbeSpec, examine, report_name
from core_hpc.doctor.probe import SILENCE_S, WAITING_S, Probe, judge
from core_hpc.doctor.storage import probe_folder
from core_hpc.slurm.commands import JobId, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.reasons import why_never
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.slurm.submit import job_parameters, submit
from core_hpc.store import manifests

TIME_MIN = 10
ENDING_S = 40.0
LISTING_S, QUEUE_S = 0.1, 2.0
SILENCE_WITH_LOG_S = 15.0
"""As `SILENCE_S`, for a job whose log is visible."""


def check_nodes(subject: Subject, *, report: Callable[[str], None]) -> Iterator[Finding]:
    """Submit the test jobs of every profile, wait for them, and judge their reports.

    Args:
        report: gets a message when the state of a job changes.
    """
    with probe_folder(subject.sweep.folder) as root:
        probes = plan_probes(subject, root)
        submitted: list[Probe] = []
        try:
            for probe in probes:
                try:
                    _submit(probe, tuple(str(p) for p in model_folders(subject)))
                except RefusedError as e:
                    yield Finding(FAIL, f"{probe.name}: sbatch refused it: {e}", e.correction)
                    continue
                submitted.append(probe)
            for probe in _finished(submitted, subject.slurm, report):
                yield from judge(probe, given=subject.given)
        finally:
            _end([p.job for p in submitted], subject.slurm)


def plan_probes(subject: Subject, root: Path) -> list[Probe]:
    """Plan one test job per different set of resources among the phase groups."""
    found: dict[str, Probe] = {}
    cluster = subject.cluster
    for group in (g for g in cluster.groups if g != "controller"):
        job = {
            name: value for name, value in cluster.slurm.job(group).items() if name not in ("time_min", "max_mem_gb")
        }
        shape = (cluster.slurm.update.nodes, cluster.update_ranks) if group == "update" else (1, 1)
        key = json.dumps([job | {"gpus_per_node": job["gpus_per_node"] or 0}, shape, cluster.slurm.python])
        new = Probe(groups=[], cluster=cluster, packages=(), folder=root / f"job-{len(found)}")
        probe = found.setdefault(key, new)
        probe.groups.append(group)
        probe.packages = tuple(dict.fromkeys([*probe.packages, *packages_of(group, subject)]))
    return list(found.values())


def packages_of(group: PhaseGroup, subject: Subject) -> tuple[str, ...]:
    """Packages that the tasks of a group import."""
    if group == "resident":
        return tuple(dict.fromkeys(p for g in ("generate", "score", "update") for p in packages_of(g, subject)))
    if group == "update":
        return ("torch", "peft", "deepspeed")
    if group == "score":
        return () if all(e.startswith("fake:") for e in subject.embedders) else ("torch", "sentence_transformers")
    engines = {"vllm": ("torch", "vllm"), "transformers": ("torch", "transformers"), "fake": ()}
    return tuple(p for engine in sorted(subject.engines) for p in engines[engine])


def _submit(probe: Probe, models: tuple[str, ...]) -> None:
    cluster = probe.cluster
    parameters = job_parameters(cluster, probe.group, name="core_hpc-doctor", comment="core_hpc doctor")
    parameters |= {"time": min(TIME_MIN, parameters["time"]), "signal_delay_s": 30}
    spec = ProbeSpec(str(probe.folder), probe.packages, models, cluster.slurm.job(probe.group)["cpus"])
    probe.job = submit(cluster, probe.folder, parameters, [functools.partial(examine, spec)])


def _end(jobs: list[int], slurm: Slurm) -> None:
    """Cancel the jobs that wait or run, and wait until they have ended, before their folder is removed."""
    deadline = time.monotonic() + ENDING_S
    with contextlib.suppress(SlurmUnavailableError):
        slurm.cancel(jobs)
        while not all(slurm.has_ended(job) for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.5)


# --- waiting -------------------------------------------------------------------------------------


def _finished(probes: list[Probe], slurm: Slurm, report: Callable[[str], None]) -> Iterator[Probe]:
    """Yield test jobs when they end or have waited too long. Answers their first files in between."""
    asked, left = 0.0, list(probes)
    while left:
        for probe in list(left):
            names = {p.name for p in probe.folder.iterdir()}  # listing makes a network file system look for new files
            now = time.monotonic()
            if HELLO in names and probe.pinged is None:
                manifests.write_json(probe.folder / PING, {})
                probe.pinged = now
            if PONG in names and probe.answered is None:
                probe.answered = now
            complete = all(report_name(rank) in names for rank in range(probe.num_ranks))
            patience = SILENCE_WITH_LOG_S if any(name.endswith("_log.out") for name in names) else SILENCE_S
            silent = probe.ended is not None and now - probe.ended > patience
            waited = probe.waiting_since is not None and now - probe.waiting_since > WAITING_S
            if complete or silent or waited or probe.never is not None:
                left.remove(probe)
                yield probe
        if left and time.monotonic() - asked > QUEUE_S:
            asked = time.monotonic()
            _update_states(left, slurm, report)
        time.sleep(LISTING_S)


def _update_states(probes: list[Probe], slurm: Slurm, report: Callable[[str], None]) -> None:
    """Query the queue once and note the state of every test job."""
    try:
        queue: dict[JobId, QueueEntry] = {entry.id: entry for entry in slurm.queue()}
    except SlurmUnavailableError as e:
        report(str(e))
        return
    for probe in probes:
        entry = queue.get(JobId(probe.job))
        probe.state = entry.state if entry is not None else probe.state or "unknown"
        if probe.state != "PENDING":
            probe.waiting_since = None
        elif probe.waiting_since is None:
            probe.waiting_since = time.monotonic()
        never = why_never(entry) if entry is not None and entry.state == "PENDING" else None
        if entry is not None and never is not None and never.is_useless_again:
            probe.never = f"{never.why} ({entry.reason})"
        if (entry is None or not entry.active) and probe.ended is None:
            probe.ended = time.monotonic()
        reason = f" ({entry.reason})" if entry is not None and entry.state == "PENDING" else ""
        message = f"{probe.name}: job {probe.job} is {probe.state}{reason}"
        if message not in probe.reported:
            probe.reported.add(message)
            report(message)
