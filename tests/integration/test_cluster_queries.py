"""Queries of a real SLURM (`core_hpc/slurm/commands.py`): how jobs end, and facts about the site.

The test job of `core_hpc/doctor/` is tested here as well, because it needs the same cluster.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.doctor import __main__ as doctor
from core_hpc.doctor import job as doctor_job
from core_hpc.slurm.acceptance import check_accepted
from core_hpc.slurm.commands import FINAL, AccountingEntry, JobId, QueueEntry, Slurm, SlurmUnavailableError
from tests.support.cluster import ClusterError
from tests.support.harness import wait_for
from tests.support.tiny import tiny_sweep

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def slurm(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")  # a user's own setting must change nothing
    monkeypatch.chdir(ROOT)  # so that the test job finds core_hpc if it is not installed
    return Slurm()


def submit(cluster: Any, script: str, *options: str) -> int:
    """Submit a job and return its id."""
    printed = cluster.run("sbatch", "--parsable", "--mem=50", "--output=/dev/null", *options, "--wrap", script)
    return int(printed.strip().partition(";")[0])


def entries(slurm: Slurm, job: int) -> dict[int | None, QueueEntry]:
    """The entries of a job in the queue, by array index."""
    return {e.id.index: e for e in slurm.queue() if e.id.job == job}


def comes_back(cluster: Any, node: str) -> bool:
    """Whether a node is idle; otherwise it is resumed, unless SLURM was faster, which refuses this."""
    if cluster.run("sinfo", "-h", "-n", node, "-o", "%t").strip() == "idle":
        return True
    with contextlib.suppress(ClusterError):
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    return False


def test_nodes_that_are_away_do_not_stop_a_start(slurm: Slurm, cluster: Any) -> None:
    """`sbatch --test-only` gives the same answer to jobs that wait for a node and to impossible ones."""
    section: dict[str, Any] = {
        "driver": "arrays",
        "slurm": {"mem_gb": 0.1, "cpus": 1, "partition": "main", "gres": "gpu:1"},
    }
    possible = ClusterSection.model_validate(section)
    impossible = ClusterSection.model_validate({**section, "slurm": {**section["slurm"], "gres": "gpu:77"}})
    assert check_accepted(possible, slurm) == []
    with pytest.raises(InputError, match="Requested node configuration is not available"):
        check_accepted(impossible, slurm)
    nodes = f"NodeName={','.join(cluster.node_names)}"
    for state in ("DRAIN", "DOWN"):
        found: list[str] = []

        def is_away(state: str = state, found: list[str] = found) -> bool:
            # A node that is down registers again within seconds, perhaps before the question.
            cluster.run("scontrol", "update", nodes, f"State={state}", "Reason=test")
            found[:] = check_accepted(possible, slurm)
            return bool(found)

        try:
            wait_for(is_away, f"a message about nodes in state {state}", timeout_s=60)
            job = submit(cluster, "true", "--gres=gpu:1")
            cluster.run("scancel", str(job))
        finally:
            for node in cluster.node_names:
                wait_for(partial(comes_back, cluster, node), f"{node} to come back", timeout_s=60)
        assert "Requested node configuration is not available. SLURM cannot place these jobs at present" in found[0]
    cluster.wait_idle()


ENDINGS = "case $SLURM_ARRAY_TASK_ID in 0) exit 0;; 1) exit 3;; 2) kill -9 $$;; *) sleep 300;; esac"


def test_endings_of_array_elements(slurm: Slurm, cluster: Any) -> None:
    began = time.time()
    job = submit(cluster, ENDINGS, "-a", "0-4", "-J", "odd|na\x1fme, two\nlines")
    held = submit(cluster, "true", "-H", "-a", "0-9%3")
    begun = {3: {"RUNNING"}, **dict.fromkeys(range(3), FINAL)}
    wait_for(
        lambda: all(i in (now := entries(slurm, job)) and now[i].state in states for i, states in begun.items()),
        "the states",
    )
    assert entries(slurm, job)[3].name == "odd|na\x1fme, two\nlines"
    assert not slurm.has_ended(job)

    # Element 0 has ended, and element 7 of the held job has not begun.
    slurm.cancel([JobId(job, 3), JobId(job, 4), JobId(job, 0), JobId(held, 7)])
    wait_for(lambda: slurm.has_ended(job), "the end")
    states = [entries(slurm, job)[i].state for i in range(5)]
    assert states == ["COMPLETED", "FAILED", "FAILED", "CANCELLED", "CANCELLED"]
    assert not any(e.active for e in entries(slurm, job).values())
    assert set(entries(slurm, held)) == set(range(10)) - {7}  # squeue no longer lists it
    assert {e.state for e in entries(slurm, held).values()} == {"PENDING"}

    slurm.cancel([held])
    slurm.cancel([held, job])
    assert {e.state for e in entries(slurm, held).values()} == {"CANCELLED"}
    rows: dict[JobId, AccountingEntry] = {}

    def all_recorded() -> bool:
        # Accounting is late: for a while it lists all elements of the held job as waiting, also the one
        # that was cancelled before it began, which may have no record of its own.
        rows.clear()
        rows.update(slurm.accounting([job, held], since=began) or {})
        ended = [*(JobId(job, i) for i in range(5)), JobId(held, 9)]
        first_cancelled = rows.get(JobId(held, 7))
        if first_cancelled is not None and first_cancelled.state != "CANCELLED":
            return False
        return all(i in rows and rows[i].end is not None for i in ended)

    wait_for(all_recorded, "the accounting")
    recorded = [rows[JobId(job, i)] for i in range(5)]
    assert [(r.state, r.exit_code, r.signal) for r in recorded[:3]] == [
        ("COMPLETED", 0, 0),
        ("FAILED", 3, 0),
        ("FAILED", 0, 9),
    ]
    assert [r.state for r in recorded[3:]] == ["CANCELLED", "CANCELLED"]
    assert abs((rows[JobId(job, 0)].start or 0) - began) < 60


def test_a_long_irregular_array_is_listed_in_full(slurm: Slurm, cluster: Any) -> None:
    wanted = sorted({i * i % 2003 for i in range(120)})
    began = time.time()
    job = submit(cluster, "true", "-H", "-a", ",".join(map(str, wanted)))
    try:
        assert sorted(i for i in entries(slurm, job) if i is not None) == wanted
        wait_for(lambda: JobId(job, wanted[-1]) in (slurm.accounting([job], since=began) or {}), "the accounting")
    finally:
        slurm.cancel([job])


def test_a_requeued_job_waits_again(slurm: Slurm, cluster: Any) -> None:
    job = submit(cluster, "sleep 300", "--requeue")
    try:
        wait_for(lambda: entries(slurm, job)[None].state == "RUNNING", "the start")
        cluster.run("scontrol", "requeue", str(job))
        wait_for(lambda: entries(slurm, job)[None].restarts == 1, "the requeue")
        assert entries(slurm, job)[None].active
        assert not slurm.has_ended(job)
    finally:
        slurm.cancel([job])


def test_limits_nodes_partitions_and_accounts(slurm: Slurm, cluster: Any) -> None:
    limits = slurm.limits(partition=None, qos=None, account=None)
    assert limits.max_array_size == int(slurm.config()["MaxArraySize"])
    # The largest array that the limit allows is accepted, and one more element is refused.
    job = submit(cluster, "true", "-H", "-a", f"0-{limits.max_array_size - 1}")
    slurm.cancel([job])
    command = ["sbatch", "-H", "-a", f"0-{limits.max_array_size}", "--wrap", "true"]
    assert "Invalid job array" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert set(slurm.nodes(None)) == set(cluster.node_names)
    assert slurm.nodes("no-such-partition") == {}
    partitions = slurm.partitions()
    assert [p.name for p in partitions.values() if p.is_default] == ["main"]
    assert (partitions["main"].preemptible, partitions["preempt"].preemptible) == (False, True)
    assert partitions["main"].state == "UP"
    assert partitions["main"].cpus > 0
    associations, qos = slurm.associations(), slurm.qos()
    assert associations
    assert qos
    assert "normal" in qos
    assert slurm.default_account() in {a.account for a in associations}
    assert slurm.has_ended(3)


def test_an_unreachable_slurmctld_is_reported_as_unavailable(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # No process listens on this port, so that slurmctld cannot be reached.
    lines = Path(os.environ["SLURM_CONF"]).read_text().splitlines(keepends=True)
    conf = tmp_path / "slurm.conf"
    conf.write_text("".join("SlurmctldPort=1\n" if s.startswith("SlurmctldPort=") else s for s in lines))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    unreachable = Slurm(timeout_s=1)
    queries = (unreachable.queue, lambda: unreachable.has_ended(3), unreachable.config, lambda: unreachable.cancel([3]))
    for query in queries:
        with pytest.raises(SlurmUnavailableError):
            query()


# --- the doctor ----------------------------------------------------------------------------------


def doctor_sweep(folder: Path, **slurm: Any) -> Path:
    """Write a sweep whose model is looked at but not loaded."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 512}')
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    cluster = {
        "driver": "arrays",
        "update_ranks": 2,
        "slurm": {"mem_gb": 2, "cpus": 1, "time_min": 30, "update": {"nodes": 2}, **slurm},
    }
    return tiny_sweep(folder / "sweep.yaml", [model], folder / "out", cluster=cluster)


def test_the_doctor_checks_the_nodes(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Importing fewer packages saves a few seconds.
    monkeypatch.setattr(doctor_job, "packages_of", lambda group, subject: ("torch",) if group == "update" else ())
    status = doctor.main([str(doctor_sweep(tmp_path, generate={"gpus_per_node": 1}))])
    printed = capsys.readouterr().out
    assert status == 0, printed
    for expected in (
        "SLURM would accept its jobs",
        "test job of `generate` on ",
        "test job of `score` on ",
        "test job of `update` on ",
        "import torch on ",
        "1 GPU(s) granted",
        "its answer here within",
    ):
        assert expected in printed
    assert "could not connect" not in printed.partition("test job of `update`")[2]
    assert not [e for e in slurm.queue() if e.name == "core_hpc-doctor" and e.active]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "sweep.yaml"]


def test_the_doctor_shows_the_log_of_a_failing_setup(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_job, "SILENCE_WITH_LOG_S", 1.0)
    assert doctor.main([str(doctor_sweep(tmp_path, setup=["echo no such module >&2", "exit 3"]))]) == 1
    assert "no such module" in capsys.readouterr().out


def test_the_doctor_does_not_wait_without_limit(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_job, "WAITING_S", 0.5)
    assert doctor.main([str(doctor_sweep(tmp_path, options={"hold": True}))]) == 0
    assert "still waits" in capsys.readouterr().out
    assert not [e for e in slurm.queue() if e.name == "core_hpc-doctor" and e.active]
