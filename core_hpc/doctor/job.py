"""The test job: one for each kind of job that the profile asks for, through the same submission as the real ones.

On the node (`examine`): what there is, whether the packages can be imported, whether ranks find each other. Here: submit,
wait, measure how long files take to be seen in both directions, and judge the reports. Publishes nothing; the folder of
the jobs is removed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core_hpc.config.cluster import ClusterSection, PhaseGroup
from core_hpc.doctor.checks import FAIL, OK, WARN, Finding, Subject, judge_gpus, model_folders
from core_hpc.doctor.node import HELLO, PING, PONG, ProbeSpec, examine, report_name
from core_hpc.doctor.storage import probe_folder
from core_hpc.slurm.commands import JobId, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.outcomes import OOM_WORDS
from core_hpc.slurm.submit import RefusedError, job_parameters, submit
from core_hpc.store import manifests

TIME_MIN = 10
WAITING_S, ENDING_S = 300.0, 40.0
LISTING_S, QUEUE_S = 0.1, 2.0
SILENCE_S, SILENCE_WITH_LOG_S = 90.0, 15.0
"""How long after a job's end its report may take to be seen: before, and after its log has been seen."""
SLOW_FILE_S, SLOW_IMPORT_S, SKEW_S = 10.0, 120.0, 30.0


@dataclass
class Probe:
    """One test job."""

    groups: list[PhaseGroup]
    cluster: ClusterSection
    packages: tuple[str, ...]
    folder: Path
    job: int = 0
    state: str = ""
    waiting_since: float | None = None
    ended: float | None = None
    pinged: float | None = None
    answered: float | None = None
    said: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"test job of {', '.join(f'`{g}`' for g in self.groups)}"

    @property
    def group(self) -> PhaseGroup:
        """The group whose job is submitted: update's, if it is among them, has the ranks' meeting point."""
        return self.groups[-1]

    @property
    def num_ranks(self) -> int:
        return self.cluster.update_ranks if self.group == "update" else 1


def check_nodes(subject: Subject, *, tell: Callable[[str], None]) -> Iterator[Finding]:
    """Submit the test jobs of every profile, wait for them, and judge what they report. `tell` is told what is waited for."""
    with probe_folder(subject.sweep.folder) as root:
        probes = plan_probes(subject, root)
        submitted: list[Probe] = []
        try:
            for probe in probes:
                try:
                    _submit(probe, tuple(str(p) for p in model_folders(subject)))
                except RefusedError as e:
                    yield Finding(FAIL, f"{probe.name}: sbatch refused it: {e}", "mend the cluster profile")
                    continue
                submitted.append(probe)
            for probe in _finished(submitted, subject.slurm, tell):
                yield from judge(probe, given=subject.given)
        finally:
            _end([p.job for p in submitted], subject.slurm)


def plan_probes(subject: Subject, root: Path) -> list[Probe]:
    """One test job for each different set of resources among the phase groups."""
    found: dict[str, Probe] = {}
    for cluster in subject.clusters:
        for group in (g for g in cluster.groups if g != "controller"):
            job = {
                name: value
                for name, value in cluster.slurm.job(group).items()
                if name not in ("time_min", "max_mem_gb")
            }
            shape = (cluster.slurm.update.nodes, cluster.update_ranks) if group == "update" else (1, 1)
            key = json.dumps([job | {"gpus_per_node": job["gpus_per_node"] or 0}, shape, cluster.slurm.python])
            probe = found.setdefault(key, Probe([], cluster, (), root / f"job-{len(found)}"))
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
    """Cancel what still waits or runs, and let it end before its folder is removed."""
    deadline = time.monotonic() + ENDING_S
    with contextlib.suppress(SlurmUnavailableError):
        slurm.cancel(jobs)
        while not all(slurm.has_ended(job) for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.5)


# --- waiting -------------------------------------------------------------------------------------


def _finished(probes: list[Probe], slurm: Slurm, tell: Callable[[str], None]) -> Iterator[Probe]:
    """Test jobs as they end, or are given up; answers their hellos in between."""
    asked, left = 0.0, list(probes)
    while left:
        for probe in list(left):
            names = {p.name for p in probe.folder.iterdir()}  # listing refreshes a network file system's view
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
            if complete or silent or waited:
                left.remove(probe)
                yield probe
        if left and time.monotonic() - asked > QUEUE_S:
            asked = time.monotonic()
            _look(left, slurm, tell)
        time.sleep(LISTING_S)


def _look(probes: list[Probe], slurm: Slurm, tell: Callable[[str], None]) -> None:
    try:
        queue: dict[JobId, QueueEntry] = {entry.id: entry for entry in slurm.queue()}
    except SlurmUnavailableError as e:
        tell(str(e))
        return
    for probe in probes:
        entry = queue.get(JobId(probe.job))
        probe.state = entry.state if entry is not None else probe.state or "unknown"
        if probe.state != "PENDING":
            probe.waiting_since = None
        elif probe.waiting_since is None:
            probe.waiting_since = time.monotonic()
        if (entry is None or not entry.active) and probe.ended is None:
            probe.ended = time.monotonic()
        words = f"{probe.name}: job {probe.job} is {probe.state}" + (
            f" ({entry.reason})" if entry and entry.state == "PENDING" else ""
        )
        if words not in probe.said:
            probe.said.add(words)
            tell(words)


# --- judging -------------------------------------------------------------------------------------


def judge(probe: Probe, *, given: bool) -> Iterator[Finding]:
    """Findings of one test job. Without a sweep (`given` False) no package is known to be needed."""
    reports = []
    for rank in range(probe.num_ranks):
        path = probe.folder / report_name(rank)
        if path.exists():
            reports.append(manifests.read_json(path))
    if not reports and probe.state == "PENDING":
        what = f"{probe.name}: job {probe.job} still waits after {WAITING_S:.0f} s"
        yield Finding(
            WARN, what, "it was cancelled; see squeue --start for when such a job may begin, and run this again then"
        )
        return
    if len(reports) < probe.num_ranks:
        yield _no_report(probe, len(reports))
    if reports:
        yield from judge_reports(probe.name, reports, cluster=probe.cluster, group=probe.group, given=given)
        yield _visibility(probe, reports[0])


def _no_report(probe: Probe, count: int) -> Finding:
    logs = sorted(probe.folder.glob("*_log.out"))
    words = "\n".join(path.read_text(encoding="utf-8", errors="replace")[-1500:] for path in logs[:1]).strip()
    what = f"{probe.name}: job {probe.job} ended ({probe.state}) with {count} of {probe.num_ranks} reports"
    if words:
        advice = "mend cluster.slurm.setup or cluster.slurm.python, then run this again"
        if "No module named 'core_hpc'" in words:
            advice = "start from the folder of the repository, or install core_hpc into the environment (pip install --no-deps -e .)"
        elif OOM_WORDS.search(words):
            advice = "raise mem_gb: not even the packages could be imported"
        return Finding(FAIL, f"{what}; its log ends with:\n{words}", advice)
    return Finding(
        FAIL,
        f"{what} and no log in {probe.folder}",
        "the nodes do not see this folder, or not under this name: give a folder on the shared file system as `output`",
    )


def _visibility(probe: Probe, report: dict[str, Any]) -> Finding:
    """How long a file takes to be seen on the other side, there and back; and whether the clocks agree."""
    if probe.pinged is None or probe.answered is None:
        what = f"{probe.name}: a file written here was not seen on {report['node']} within {SILENCE_S:.0f} s"
        return Finding(
            FAIL, what, "the nodes do not see new files of `output`: give a folder on the shared file system"
        )
    seconds = probe.answered - probe.pinged
    skew = report["answered_at"] - time.time() + (time.monotonic() - probe.answered)
    if abs(skew) > SKEW_S + seconds:
        what = f"{probe.name}: the clock of {report['node']} differs by {skew:.0f} s from this machine's"
        return Finding(WARN, what, "times in logs and status will disagree; ask the site to synchronise clocks")
    what = f"{probe.name}: a file is seen on {report['node']} and its answer here within {seconds:.1f} s"
    if seconds > SLOW_FILE_S:
        advice = f"set cluster.slurm.lost_after_s to {max(90, round(3 * seconds))} or more, so that published files are waited for"
        return Finding(WARN, what, advice)
    return Finding(OK, what)


def judge_reports(
    name: str, reports: list[dict[str, Any]], *, cluster: ClusterSection, group: PhaseGroup, given: bool
) -> Iterator[Finding]:
    """Findings on what the ranks of one test job reported."""
    first, job = reports[0], cluster.slurm.job(group)
    limit = "no limit set" if first["mem_limit_gb"] is None else f"limit {first['mem_limit_gb']:.1f} GB"
    gpus = f"{first['gpus_visible']} GPU(s) granted" if first["gpus_visible"] else "no GPU granted"
    nodes = ", ".join(dict.fromkeys(r["node"] for r in reports))
    what = (
        f"{name} on {nodes}: Python {first['python']}, {first['cpus']} cores, {first['mem_gb']:.0f} GB of memory ({limit}), {gpus}, "
        f"{first['tmp_free_gb']:.0f} GB free in {first['tmp']}"
    )
    if first["cpus"] < job["cpus"]:
        yield Finding(
            WARN,
            f"{what}: fewer cores than asked ({job['cpus']})",
            "tasks will be slow: see the site's rules for cpus-per-task",
        )
    elif first["mem_gb"] < job["mem_gb"]:
        yield Finding(
            WARN, f"{what}: less memory than asked ({job['mem_gb']:g} GB)", "lower mem_gb, or take other nodes"
        )
    else:
        yield Finding(OK, what)
    if not first["name_resolves"]:
        advice = "ranks on several nodes meet at the address that SLURM uses instead; add the node to DNS or /etc/hosts"
        yield Finding(
            WARN if cluster.slurm.update.nodes > 1 else OK,
            f"{name}: {first['node']} does not resolve its own name",
            advice,
        )
    for report in reports:
        yield from _imports(name, report, given=given)
        if report["meeting"]:
            advice = "ranks of an update could not work together: look at firewalls between nodes, or set cluster.slurm.update.nodes: 1"
            yield Finding(FAIL, f"{name}: {report['meeting']}", advice)
        if report["missing_models"]:
            advice = "put the models on the shared file system, under the same path"
            yield Finding(FAIL, f"{name}: {report['node']} does not see {', '.join(report['missing_models'])}", advice)
    yield from _gpus(name, first, wanted=cluster.slurm.num_gpus(group))


def _imports(name: str, report: dict[str, Any], *, given: bool) -> Iterator[Finding]:
    for package, (seconds, error) in report["imports"].items():
        where = f"{name}: import {package} on {report['node']}"
        if error:
            advice = f"run `{report['executable']} -c 'import {package}'` on a node; mend the environment or cluster.slurm.setup"
            yield Finding(FAIL if given else WARN, f"{where} failed: {error}", advice)
        elif seconds > SLOW_IMPORT_S:
            yield Finding(
                WARN,
                f"{where} took {seconds:.0f} s",
                "put the environment on a faster file system, or into a container",
            )
        else:
            yield Finding(OK, f"{where} took {seconds:.1f} s")


def _gpus(name: str, report: dict[str, Any], *, wanted: int) -> Iterator[Finding]:
    if report["gpus_visible"] < wanted:
        what = f"{name}: {wanted} GPU(s) asked for, {report['gpus_visible']} granted on {report['node']}"
        yield Finding(FAIL, what, "look at gres and gpus_per_node of the profile, and at `sinfo -o '%P %G'`")
        return
    if not wanted:
        return
    if report["gpu"] is None:
        advice = "if these are real GPUs, their driver is not in order there: tell the site"
        yield Finding(
            WARN, f"{name}: {wanted} GPU(s) granted, but nvidia-smi does not answer on {report['node']}", advice
        )
        return
    yield judge_gpus(f"{name}: {report['node']}", report["gpu"], report["torch_cuda"])
    seen = report["torch_gpus"]
    if seen is not None and seen < wanted:
        advice = "see whether a container hides them (cluster.slurm.srun_args), and whether the driver fits torch"
        yield Finding(FAIL, f"{name}: torch sees {seen} of {wanted} GPU(s) on {report['node']}", advice)
