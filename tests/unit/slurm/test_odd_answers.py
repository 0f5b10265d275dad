"""Answers of SLURM that are odd: notices, missing ids, empty lists, denials, and commands that hang.

Nothing may be concluded from what is not understood, and work that SLURM has taken is not submitted
again.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.runs.folder import Run
from core_hpc.slurm import executor as slurm_executor
from core_hpc.slurm import submit, watch
from core_hpc.slurm.acceptance import check_accepted
from core_hpc.slurm.commands import AccountingEntry, JobId, Limits, QueueEntry, Slurm, SlurmUnavailableError
from core_hpc.slurm.element import ElementSpec, run_element
from core_hpc.slurm.executor import SlurmExecutor
from core_hpc.slurm.records import CALLS, OPEN, SubmissionFolder, new_submission
from core_hpc.slurm.sbatch import RefusedError, job_of, run_sbatch
from core_hpc.store import manifests
from core_hpc.store.paths import TaskKey
from tests.support.fake_slurm import FakeSlurm, executor_of, failures, run_of
from tests.support.slurm_commands import HEADER, FakeCommands, squeue_record

NOTICE = "*** Maintenance on Monday | see the wiki = news ***\nYour project has 4711 hours left.\n\n"
Make = Callable[..., tuple[SlurmExecutor, Run, list[str]]]


@pytest.fixture
def make(tmp_path: Path, slurm: FakeSlurm) -> Make:
    def build(start_id: str = "start001", **changes: Any) -> tuple[SlurmExecutor, Run, list[str]]:
        run, messages = run_of(tmp_path, "arrays", **changes), list[str]()
        return executor_of(run, slurm, start_id=start_id, notify=messages.append), run, messages

    return build


def cold(model: str, part: int = 0) -> TaskKey:
    return TaskKey(1, "cold", model, part)


# --- reading -------------------------------------------------------------------------------------


def test_notices_before_the_output_change_nothing(fake: FakeCommands) -> None:
    """Every command that is read, with and without a notice of the site before its answer."""
    answers = {
        "squeue": HEADER + squeue_record("7", "N/A", "RUNNING", "None", "0", "n1", "cold"),
        "sacct": "7|FAILED|1:0|n1|5|6\n8_[1-2]|PENDING|0:0|None assigned|Unknown|Unknown\n",
        "sinfo": "gpu|gpu:4|8|1024\n",
        "scontrol": "MaxArraySize = 500\nClusterName = c\nPartitionName=gpu Default=YES State=UP\n",
        "sacctmgr": "proj||normal|normal|40|\n",
    }

    def everything(notice: str) -> list[object]:
        for command, output in answers.items():
            fake.command(command, notice + output)
        slurm = Slurm()
        site = (slurm.config()["MaxArraySize"], slurm.partitions(), slurm.associations())
        return [slurm.queue(), slurm.accounting([7, 8], since=0), *site]

    plain, noticed = everything(""), everything(NOTICE)
    assert noticed == plain
    queue, accounting, *_ = plain
    assert isinstance(queue, list)
    assert isinstance(accounting, dict)
    assert (len(queue), len(accounting)) == (1, 4)  # 7 in both; 8, 8_1 and 8_2 in the accounting


def test_an_empty_answer_is_not_an_empty_queue(fake: FakeCommands) -> None:
    for output in ("", "\n", NOTICE):
        fake.command("squeue", output)
        with pytest.raises(SlurmUnavailableError, match=r"header|understood"):
            Slurm().queue()
        with pytest.raises(SlurmUnavailableError, match=r"header|understood"):
            Slurm().has_ended(7)
    fake.command("squeue", HEADER)
    assert Slurm().queue() == []


def test_a_configuration_that_is_not_shown_leaves_slurms_default(fake: FakeCommands) -> None:
    denied = "slurm_load_ctl_conf error: Access/permission denied\n"
    fake.command("scontrol", error=denied, status=1)
    fake.command("sinfo", "gpu|gpu:4|8|1024\n")
    fake.command("sacctmgr", status=1)
    assert Slurm().limits(partition=None, qos=None, account=None) == Limits(1001)
    assert Slurm().partitions() == {}
    # The limits of the user hold although it is not shown whether SLURM enforces them.
    fake.command(
        "sacctmgr", body='case "$*" in *assoc*) echo "proj||normal|normal|40|";; *qos*) echo "normal|||";; esac'
    )
    assert Slurm().limits(partition=None, qos=None, account="proj").max_submitted == 40
    assert "cluster=" not in " ".join(fake.calls("sacctmgr"))


def test_a_user_without_a_name(fake: FakeCommands, monkeypatch: pytest.MonkeyPatch) -> None:
    from core_hpc.slurm import commands

    def no_entry(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    commands._user.cache_clear()
    monkeypatch.setattr(commands.pwd, "getpwuid", no_entry)
    fake.command("sacctmgr", f"{os.getuid()}|proj\n")
    assert Slurm().default_account() == "proj"
    commands._user.cache_clear()


# --- sbatch --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "job"),
    [
        ("Submitted batch job 77\n", 77),
        ("Submitted batch job 77 on cluster big\n", 77),
        (f"{NOTICE}Submitted batch job 77\nGood luck\n", 77),
        ("You have submitted job 4711 of 5000 this month\nSubmitted batch job 77\n", 77),
        ("", None),
        ("Submitted batch job\n", None),
        ("job 4711 is your oldest one\n", None),
        ("Submitted batch job 77\nSubmitted batch job 78\n", None),
    ],
)
def test_a_job_id_is_read_only_from_its_own_line(fake: FakeCommands, output: str, job: int | None) -> None:
    assert job_of(output) == job
    fake.command("sbatch", output)
    if job is not None:
        assert run_sbatch("#!/bin/sh\n") == job
        return
    with pytest.raises(RefusedError) as caught:
        run_sbatch("#!/bin/sh\n")
    assert caught.value.unsure


@pytest.mark.parametrize(
    ("message", "unsure", "understood"),
    [
        ("Batch job submission failed: Unspecified error", True, False),
        ("Batch job submission failed: Socket timed out on send/recv operation", True, True),
        ("Batch job submission failed: Required partition not available (inactive or drain)", True, True),
        ("Batch job submission failed: Invalid qos specification", False, True),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", False, True),
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit)", False, True),
    ],
)
def test_what_a_refusal_means(fake: FakeCommands, message: str, unsure: bool, understood: bool) -> None:
    fake.command("sbatch", error=f"{message}\n", status=1)
    with pytest.raises(RefusedError) as caught:
        run_sbatch("#!/bin/sh\n")
    assert (caught.value.unsure, caught.value.understood) == (unsure, understood)
    assert message in str(caught.value)


def test_sbatch_that_hangs_is_ended(fake: FakeCommands) -> None:
    fake.command("sbatch", body="exec /bin/sleep 60")
    began = time.monotonic()
    with pytest.raises(RefusedError, match="no answer within") as caught:
        run_sbatch("#!/bin/sh\n", limit_s=0.3)
    assert caught.value.unsure
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("output", ["", "Submitted batch job 77\n"])
def test_the_calls_of_a_job_stay_until_its_fate_is_known(
    fake: FakeCommands, tmp_path: Path, output: str, num: int
) -> None:
    cluster = ClusterSection.model_validate({"driver": "arrays", "slurm": {"mem_gb": 1}})
    parameters = submit.job_parameters(cluster, "generate", name="x", comment="")
    spec = ElementSpec(run="r", tasks=(), status="s", threads=1, time_min=1, signal_delay_s=1, preemption_grace_s=1.0)
    calls = [functools.partial(run_element, spec)] * num
    fake.command("sbatch", output)
    folder = tmp_path / "job"
    if output:
        assert submit.submit(cluster, folder, parameters, calls) == 77
    else:
        with pytest.raises(RefusedError):
            submit.submit(cluster, folder, parameters, calls)
    assert len(json.loads((folder / CALLS).read_text())["specs"]) == num
    fake.command("sbatch", error="Invalid qos specification\n", status=1)
    with pytest.raises(RefusedError):
        submit.submit(cluster, tmp_path / "refused", parameters, calls)
    assert not (tmp_path / "refused").exists()


# --- what the executor concludes -----------------------------------------------------------------


def poll_for(executor: SlurmExecutor, seconds: float) -> list[Any]:
    events, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        events += executor.poll()
    return events


def test_a_job_that_was_taken_without_an_id_is_found_by_its_name_and_not_submitted_again(
    make: Make, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_executor, "REFUSED_WAIT_S", 0.05)
    monkeypatch.setattr(watch, "UNSURE_WAIT_S", 5.0)
    executor, run, messages = make()
    slurm.refusals = ["Batch job submission failed: Socket timed out on send/recv operation"]
    wanted = [(run, cold("a"))]
    assert [task.key for task in executor.submit(wanted)] == [cold("a")]
    folder = SubmissionFolder(run.paths.slurm)
    (record,) = folder.read(OPEN)
    assert record.job is None
    manifests.make_folder(folder.folder(record))
    (folder.folder(record) / CALLS).write_text("{}")
    poll_for(executor, 0.1)
    slurm.entries[JobId(77)] = QueueEntry(JobId(77), record.name, "PENDING", "Resources", "", 0)
    assert failures(poll_for(executor, 0.3)) == []
    assert [s.job for s in folder.read(OPEN)] == [77]
    assert (folder.folder(record) / CALLS).exists()
    assert slurm.submitted == []
    assert slurm.cancelled == []
    assert any("looking for a job of this name" in message for message in messages)


def test_a_stopped_run_keeps_the_record_of_a_job_that_slurm_may_have_taken(make: Make, slurm: FakeSlurm) -> None:
    """Otherwise nobody could find the job when it appears."""
    executor, run, _ = make()
    slurm.refusals = ["Batch job submission failed: Socket timed out on send/recv operation"]
    executor.submit([(run, cold("a"))])
    assert [task.key for task in executor.abandon(run, "another task failed 3 times")] == [cold("a")]
    folder = SubmissionFolder(run.paths.slurm)
    (record,) = folder.read(OPEN)
    assert (record.job, record.outcomes) == (None, {})
    manifests.make_folder(folder.folder(record))
    (folder.folder(record) / CALLS).write_text("{}")
    slurm.entries[JobId(77)] = QueueEntry(JobId(77), record.name, "PENDING", "Resources", "", 0)
    later, run, _ = make()
    assert [task.key for task in later.adopt([run]).tasks] == [cold("a")]
    poll_for(later, 0.1)
    assert [s.job for s in folder.read(OPEN)] == [77]


def test_one_unspecified_error_passes_and_many_stop_the_run(
    make: Make, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_executor, "REFUSED_WAIT_S", 0.02)
    monkeypatch.setattr(watch, "UNSURE_WAIT_S", 0.02)
    executor, run, _ = make()
    wanted = [(run, cold("a"))]
    error = "sbatch: error: Batch job submission failed: Unspecified error"

    def attempt() -> list[Any]:
        """Submit, and wait until it is known what became of it."""
        taken: list[Any] = []
        for _ in range(400):
            taken = taken or executor.submit(wanted)
            if slurm.submitted:
                return []
            if failed := failures(executor.poll()):
                return failed
        raise AssertionError("nothing happened")

    slurm.refusals = [error]
    (failed,) = attempt()
    assert (failed.outcome.kind, failed.outcome.counted) == ("interrupted", False)
    assert attempt() == []
    slurm.submitted.clear()  # the job itself stays in the queue, or it would count as lost on a slow machine
    slurm.refusals = [error] * 10
    kinds = [attempt()[0].outcome.kind for _ in range(slurm_executor.MAX_ODD_REFUSALS)]
    assert kinds == ["interrupted"] * (slurm_executor.MAX_ODD_REFUSALS - 1) + ["final"]


@pytest.mark.parametrize("ahead_s", [7200.0, -7200.0])
def test_a_record_without_a_job_from_a_clock_that_is_hours_off(
    ahead_s: float, make: Make, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "UNSURE_WAIT_S", 0.2)
    executor, run, messages = make()
    record = new_submission("generate", "cold-0001", [[cold("a")]], start_id="start001", mem_gb=10)
    record.submitted += ahead_s
    SubmissionFolder(run.paths.slurm).write(record)
    executor.adopt([run])
    assert failures(poll_for(executor, 0.1)) == [], "SLURM may still show it"
    assert any("looking for a job of this name" in message for message in messages)
    (failed,) = failures(poll_for(executor, 0.5))
    assert failed.outcome.kind == "interrupted"


def test_a_job_that_accounting_calls_running_is_not_lost_because_the_queue_is_empty(
    make: Make, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, run, messages = make()
    executor.submit([(run, cold("a"))])
    (submission,) = slurm.submitted
    job = submission.job_id(0)
    assert job is not None
    running, listed = dict(slurm.entries), True
    slurm.entries.clear()
    accounting = {job: AccountingEntry("RUNNING", 0, 0, "n1", 1.0, None)}
    monkeypatch.setattr(slurm, "accounting", lambda jobs, since: accounting)

    def active_elements(job: int) -> set[JobId]:
        if listed:
            return {id for id in running if id.job == job}
        raise SlurmUnavailableError("squeue reported nothing")

    monkeypatch.setattr(slurm, "active_elements", active_elements)
    assert failures(poll_for(executor, 0.6)) == []
    listed = False
    assert failures(poll_for(executor, 0.3)) == []
    assert sum("may still run" in message for message in messages) == 1
    monkeypatch.setattr(slurm, "active_elements", lambda job: set())  # SLURM denies that it exists
    (lost,) = failures(poll_for(executor, 0.5))
    assert lost.outcome.kind == "lost"


# --- before the start ----------------------------------------------------------------------------

TEST_ONLY = "allocation failure: Requested node configuration is not available"
"""What `sbatch --test-only` prints while nodes are drained, down or registering, and for requests that no node has
(recorded on the development cluster; sbatch takes the job in the first three cases)."""


def test_a_start_is_refused_on_a_machine_without_a_cluster(fake: FakeCommands) -> None:
    """Recorded where SLURM is installed and not configured. Such a start waited for ever."""
    cluster = ClusterSection.model_validate({"driver": "arrays", "slurm": {"partition": "gpu"}})
    answer = "sbatch: error: fetch_config: lookup failed\nsbatch: fatal: Could not establish a configuration source"
    fake.command("sbatch", error=f"{answer}\n", status=1)
    with pytest.raises(InputError, match=r"belongs to no cluster .* start the sweep on a login node"):
        check_accepted(cluster, Slurm())


POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("message", "nodes", "partition", "starts"),
    [
        (TEST_ONLY, "n1|idle\nn2|mixed\n", "UP", False),
        (TEST_ONLY, "n1|idle\nn2|drained\n", "UP", True),
        (TEST_ONLY, "n1|unknown\n", "UP", True),
        (TEST_ONLY, "n1|idle*\n", "UP", True),
        (TEST_ONLY, "n1|idle\n", "DOWN", True),
        ("allocation failure: Required partition not available (inactive or drain)", "n1|idle\n", "DRAIN", True),
        ("allocation failure: Unspecified error", "n1|idle\n", "UP", True),
        ("allocation failure: Invalid qos specification", "n1|drained\n", "UP", False),
        (f"QOSMaxWallDurationPerJobLimit allocation failure: {POLICY}", "n1|idle\n", "UP", False),
        (f"QOSGrpSubmitJobsLimit allocation failure: {POLICY}", "n1|idle\n", "UP", True),
    ],
)
def test_only_a_refusal_that_cannot_pass_stops_a_start(
    fake: FakeCommands, message: str, nodes: str, partition: str, starts: bool
) -> None:
    cluster = ClusterSection.model_validate({"driver": "arrays", "slurm": {"mem_gb": 1, "partition": "gpu"}})
    fake.command("sbatch", error=f"{message}\n", status=1)
    fake.command("sinfo", body=f"case \"$*\" in *-N*) printf '{nodes}';; *) echo 'gpu|gpu:4|8|1024';; esac")
    fake.command("scontrol", f"MaxArraySize = 5\nPartitionName=gpu State={partition}\n")
    if starts:
        found = check_accepted(cluster, Slurm())
        assert found
        assert message.removeprefix("allocation failure: ") in found[0]
        assert "wait in the queue" in found[0]
    else:
        with pytest.raises(InputError, match="nothing was submitted") as caught:
            check_accepted(cluster, Slurm())
        assert ("lower time_min" in str(caught.value)) == ("WallDuration" in message)
