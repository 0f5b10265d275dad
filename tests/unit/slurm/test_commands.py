"""Parsing of recorded output of SLURM 22.05. Missing or unknown output proves nothing."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from core_hpc.common.errors import CoreHpcError
from core_hpc.common.ownership import user_name
from core_hpc.slurm.commands import (
    ACTIVE,
    FINAL,
    AccountingEntry,
    JobId,
    Limits,
    Slurm,
    SlurmUnavailableError,
    certainly_ended,
    clean_environment,
    slurm_installed,
)
from core_hpc.slurm.parse import (
    Place,
    QueueLimit,
    expand_indices,
    parse_accounting,
    parse_associations,
    parse_config,
    parse_minutes,
    parse_partitions,
    parse_queue,
)
from tests.support.slurm_commands import HEADER, FakeCommands, squeue_record

# Recorded on the development cluster: every way in which a job ends.
QUEUE = "".join(
    [
        HEADER,
        squeue_record("5439905", "2", "CANCELLED", "None", "0", "b1", 'odd|na\x1fme with "q", tab\there'),
        squeue_record("5439905", "1", "FAILED", "NonZeroExitCode", "0", "b1", "two\nlines\x1e|here"),
        squeue_record("5439905", "3", "FAILED", "JobLaunchFailure", "0", "b1", ""),
        squeue_record("5439906", "N/A", "CANCELLED", "JobHeldUser", "0", "", "held"),
        squeue_record("5439908", "N/A", "TIMEOUT", "TimeLimit", "0", "b1", "tl"),
        squeue_record("5439925", "1", "NODE_FAIL", "NodeDown", "0", "b2", "nodefail"),
        squeue_record("5439926", "N/A", "PENDING", "ReqNodeNotAvail, UnavailableNodes:b2", "1", "", "noderequeue"),
        squeue_record("5439930", "0", "RUNNING", "None", "0", "b[1-2]", "r"),
    ]
)
ACCOUNTING = """\
5439907|COMPLETED|0:0|b1|1795438931|1795438932
5439905_1|FAILED|3:0|b1|1795438931|1795438931
5439905_2|CANCELLED by 0|0:15|b1|1795438931|1795438935
5439905_3|FAILED|0:9|b1|1795438931|1795438932
5439908|RUNNING|0:0|b1|1795438931|Unknown
5439906_[0-1,7-9:2%3]|PENDING|0:0|None assigned|Unknown|Unknown
5439923|CANCELLED by 0|0:0|None assigned|1795439178|1795439178
5439931_[12,17,46,...]|PENDING|0:0|None assigned|Unknown|Unknown
"""


def test_queue_entries_with_any_job_name() -> None:
    entries = {e.id: e for e in parse_queue(QUEUE)}
    assert len(entries) == 8
    assert entries[JobId(5439905, 2)].name == 'odd|na\x1fme with "q", tab\there'
    assert entries[JobId(5439905, 1)].name == "two\nlines\x1e|here"
    assert entries[JobId(5439905, 3)].name == ""
    assert (entries[JobId(5439906)].state, entries[JobId(5439906)].active) == ("CANCELLED", False)
    waiting = entries[JobId(5439926)]
    assert (waiting.reason, waiting.nodes, waiting.restarts, waiting.active) == (
        "ReqNodeNotAvail, UnavailableNodes:b2",
        "",
        1,
        True,
    )
    assert entries[JobId(5439930, 0)].nodes == "b[1-2]"
    assert entries[JobId(5439930, 0)].place == Place("proj", "gpu", "normal")
    assert parse_queue(HEADER) == []


@pytest.mark.parametrize("text", ["slurm_load_jobs: something new\n", QUEUE[:-60], QUEUE.replace("5439925", "job")])
def test_output_that_is_cut_off_or_unknown_is_an_error(text: str) -> None:
    with pytest.raises(SlurmUnavailableError, match="not understood"):
        parse_queue(text)


def test_no_state_is_active_and_final() -> None:
    assert not ACTIVE & FINAL
    assert {"PENDING", "COMPLETING", "REQUEUED"} <= ACTIVE
    assert {"COMPLETED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY"} <= FINAL


def test_accounting_rows() -> None:
    rows = parse_accounting(ACCOUNTING)
    assert rows[JobId(5439907)] == AccountingEntry("COMPLETED", 0, 0, "b1", 1795438931.0, 1795438932.0)
    assert (rows[JobId(5439905, 1)].exit_code, rows[JobId(5439905, 3)].signal) == (3, 9)
    assert rows[JobId(5439905, 2)].state == "CANCELLED"
    assert (rows[JobId(5439908)].state, rows[JobId(5439908)].end) == ("RUNNING", None)
    assert {id.index for id in rows if id.job == 5439906} == {None, 0, 1, 7, 9}
    assert (rows[JobId(5439906, 7)].nodes, rows[JobId(5439906, 7)].start) == ("", None)
    assert rows[JobId(5439923)].state == "CANCELLED"
    assert {id.index for id in rows if id.job == 5439931} == {None, 12, 17, 46}


def test_the_own_row_of_an_element_wins_over_a_shared_row() -> None:
    own, rest = "7_2|FAILED|1:0|b1|5|6\n", "7_[0-5]|PENDING|0:0|None assigned|Unknown|Unknown\n"
    for text in (own + rest, rest + own):
        rows = parse_accounting(text)
        assert (rows[JobId(7, 2)].state, rows[JobId(7, 3)].state) == ("FAILED", "PENDING")


def test_index_expressions() -> None:
    assert list(expand_indices("5")) == [5]
    assert list(expand_indices("0-6,8-9%3")) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert list(expand_indices("1-898:3")) == list(range(1, 899, 3))
    assert list(expand_indices("")) == []


def test_configuration_and_partitions() -> None:
    config = parse_config(
        "Configuration data as of 2026-11-23T13:02:10\n"
        "MaxArraySize            = 20001\nMinJobAge               = 300 sec\n"
        "SchedulerParameters     = batch_sched_delay=0,max_array_tasks=500\n\nSlurmctld(primary) at vm is UP\n"
    )
    assert config == {
        "MaxArraySize": "20001",
        "MinJobAge": "300 sec",
        "SchedulerParameters": "batch_sched_delay=0,max_array_tasks=500",
    }
    described = (
        "PartitionName=gpu AllowGroups=ALL Default=YES QoS=gpu-limits MaxTime=2-00:00:00 PreemptMode=OFF State=UP "
        "TRES=cpu=8,mem=16000M\n"
        "PartitionName=spare Default=NO GraceTime=5 QoS=N/A MaxTime=UNLIMITED PreemptMode=REQUEUE State=DRAIN\n"
    )
    nodes = "gpu|gpu:a100:4(S:0-1)|64|512000+\ngpu|gpu:h100:8|128|1024000\nspare|(null)|4|8192\n"
    found = parse_partitions(described, nodes, "preempt/partition_prio")
    gpu, spare = found["gpu"], found["spare"]
    assert (gpu.is_default, gpu.time_limit_min, gpu.qos, gpu.preemptible) == (True, 2880, "gpu-limits", False)
    assert (gpu.gres, gpu.cpus, gpu.mem_gb) == (("gpu:a100:4(S:0-1)", "gpu:h100:8"), 128, 1000)
    assert (spare.is_default, spare.time_limit_min, spare.qos, spare.preemptible) == (False, None, None, True)
    assert (spare.state, spare.gres, spare.grace_s) == ("DRAIN", (), 5)
    assert not parse_partitions(described, nodes, "preempt/none")["spare"].preemptible


@pytest.mark.parametrize(
    ("text", "minutes"), [("01:00:00", 60), ("1-00:00:00", 1440), ("00:00:30", 0.5), ("INFINITE", None), ("", None)]
)
def test_time_limits(text: str, minutes: float | None) -> None:
    assert parse_minutes(text) == minutes


def test_associations() -> None:
    whole, part = parse_associations("root||normal,tight||77|1000\nroot|gpu|normal|normal||\n")
    assert (whole.account, whole.partition, whole.qos) == ("root", None, ("normal", "tight"))
    assert (whole.default_qos, whole.max_submitted) == (None, 77)
    assert (part.partition, part.default_qos, part.max_submitted) == ("gpu", "normal", None)


# --- with scripts instead of the commands --------------------------------------------------------


def test_environment_variables_of_the_user_do_not_change_the_output(
    fake: FakeCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    fake.command("squeue", QUEUE)
    slurm = Slurm()
    assert len(slurm.queue()) == 8
    seen = fake.environment("squeue")
    assert "SQUEUE_FORMAT" not in seen
    assert "SLURM_CLUSTERS" not in seen
    assert (seen["SLURM_CONF"], seen["SLURM_TIME_FORMAT"], seen["LC_ALL"]) == ("/etc/mine.conf", "%s", "C")
    assert slurm.calls == {"squeue": 1}
    assert f"-u {os.getuid()}" in fake.calls("squeue")[0]
    connection = {"HOME": "/h", "SLURM_CONF_SERVER": "ctl:6817", "SLURM_JWT": "token"}
    cleaned = clean_environment({**connection, "SLURM_JOB_ID": "1", "SLURM_CONFIG": "/c", "SCANCEL_QUIET": "1"})
    assert connection.items() <= cleaned.items()
    assert not {"SLURM_JOB_ID", "SLURM_CONFIG", "SCANCEL_QUIET"} & cleaned.keys()


@pytest.mark.parametrize(
    "message",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "squeue: error: Zero Bytes were transmitted or received",
        "an unknown message",
    ],
)
def test_the_error_has_the_message_of_slurm(fake: FakeCommands, message: str) -> None:
    fake.command("squeue", error=f"{message}\n", status=1)
    with pytest.raises(SlurmUnavailableError) as caught:
        Slurm().queue()
    assert message in str(caught.value)
    with pytest.raises(SlurmUnavailableError):
        Slurm().has_ended(5)


def test_a_command_that_hangs_is_ended(fake: FakeCommands) -> None:
    fake.command("squeue", body="exec /bin/sleep 60")
    started = time.monotonic()
    with pytest.raises(SlurmUnavailableError, match="did not answer within"):
        Slurm(timeout_s=0.3).queue()
    assert time.monotonic() - started < 30


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm_installed()
    with pytest.raises(CoreHpcError, match="squeue is not on PATH") as caught:
        Slurm().queue()
    assert not isinstance(caught.value, SlurmUnavailableError)
    assert Slurm().accounting([1], since=0) is None


@pytest.mark.parametrize(
    ("state", "ended"), [("RUNNING", False), ("COMPLETING", False), ("COMPLETED", True), ("A_NEW_STATE", False)]
)
def test_a_job_has_ended_only_if_slurm_confirms_it(fake: FakeCommands, state: str, ended: bool) -> None:
    others = squeue_record("7", "0", "FAILED", "None", "0", "n1", "x")
    fake.command("squeue", HEADER + others + squeue_record("7", "1", state, "None", "0", "n1", "x"))
    assert Slurm().has_ended(7) is ended


def test_a_job_that_slurm_does_not_know_any_more_has_ended(fake: FakeCommands) -> None:
    fake.command("squeue", error="slurm_load_jobs error: Invalid job id specified\n", status=1)
    assert Slurm().has_ended(7)
    fake.command("squeue", HEADER)
    with pytest.raises(SlurmUnavailableError, match="reported nothing"):
        Slurm().has_ended(7)


@pytest.mark.parametrize(
    ("shown", "is_certain"),
    [
        ("PrivateData             = none\n", True),
        ("PrivateData             = accounts,users\n", True),
        ("PrivateData             = accounts,jobs\n", False),
        ("PrivateData             = all\n", False),
        (None, False),  # the configuration is not shown to users
    ],
)
def test_a_job_of_another_user_may_be_hidden(fake: FakeCommands, shown: str | None, is_certain: bool) -> None:
    """With PrivateData=jobs, SLURM 22.05 answers "Invalid job id" for a job that another user has in the queue."""
    fake.command("squeue", error="slurm_load_jobs error: Invalid job id specified\n", status=1)
    if shown is None:
        fake.command("scontrol", error="slurm_load_ctl_conf error: Access/permission denied\n", status=1)
    else:
        fake.command("scontrol", shown)
    assert certainly_ended(Slurm(), 7, "ann") is is_certain
    assert Slurm().has_ended(7), "the own jobs are never hidden"
    assert certainly_ended(Slurm(), 7, user_name(os.getuid()))


@pytest.mark.parametrize(
    "message",
    [
        "Slurm accounting storage is disabled",
        "sacct: error: Problem talking to the database: Connection refused",
    ],
)
def test_no_accounting(fake: FakeCommands, message: str) -> None:
    fake.command("sacct", error=f"{message}\n", status=1)
    assert Slurm().accounting([7], since=time.time()) is None


def test_accounting_is_one_call(fake: FakeCommands) -> None:
    fake.command("sacct", ACCOUNTING)
    slurm = Slurm()
    found = slurm.accounting([5439907, 5439905], since=time.time())
    assert found is not None
    assert found[JobId(5439907)].state == "COMPLETED"
    assert slurm.accounting([], since=0) == {}
    assert slurm.calls == {"sacct": 1}
    assert "-j 5439905,5439907 " in fake.calls("sacct")[0]


def test_jobs_are_cancelled_in_chunks_and_ended_jobs_are_no_error(fake: FakeCommands) -> None:
    ended = "scancel: error: Kill job error on job id 7_1: Job/step already completing or completed\n"
    fake.command("scancel", error=ended, status=1)
    Slurm().cancel([JobId(7, i) for i in range(1200)] + [9])
    calls = fake.calls("scancel")
    assert len(calls) == 3
    assert (calls[0].split()[0], calls[-1].split()[-1]) == ("7_0", "9")
    assert sum(len(c.split()) for c in calls) == 1201
    fake.command(
        "scancel", error=f"{ended}scancel: error: Kill job error on job id 8: Access/permission denied\n", status=1
    )
    with pytest.raises(SlurmUnavailableError, match="permission denied"):
        Slurm().cancel([7, 8])


def _site(
    fake: FakeCommands, *, enforce: str, associations: str = "", qos: str = "", parameters: str = "(null)"
) -> Slurm:
    config = (
        f"MaxArraySize = 1001\\nClusterName = c\\nAccountingStorageEnforce = {enforce}\\n"
        f"SchedulerParameters = {parameters}\\n"
    )
    partition = "PartitionName=gpu Default=YES QoS=part MaxTime=UNLIMITED State=UP\\n"
    fake.command("scontrol", body=f"case \"$*\" in *config*) printf '{config}';; *) printf '{partition}';; esac")
    fake.command("sinfo", "gpu|gpu:4|8|1024\n")
    user = pwd.getpwuid(os.getuid()).pw_name
    default = f"Welcome, {user}\\n{user}|proj\\n"
    body = f"case \"$*\" in *assoc*) printf '{associations}';; *qos*) printf '{qos}';; *) printf '{default}';; esac"
    fake.command("sacctmgr", body=body, status=0 if associations else 1)
    return Slurm()


ASSOCIATIONS = "proj||normal,tight||100|\\nproj|gpu|normal||40|\\nother||normal||3|\\n"


@pytest.mark.parametrize(
    ("partition", "qos", "account", "most"),
    [
        (None, None, None, 40),
        ("gpu", "tight", "proj", 12),
        (None, None, "other", 3),
        ("cpu", None, "proj", 100),
        (None, None, "stranger", 60),
    ],
)
def test_the_smallest_limit_applies(
    fake: FakeCommands, partition: str | None, qos: str | None, account: str | None, most: int
) -> None:
    slurm = _site(
        fake, enforce="associations,limits,qos", associations=ASSOCIATIONS, qos="normal|||\\ntight|12||\\npart||60|\\n"
    )
    limits = slurm.limits(partition=partition, qos=qos, account=account)
    assert (limits.max_array_size, limits.max_submitted) == (1001, most)
    asked = slurm.calls.copy()
    assert slurm.limits(partition=partition, qos=qos, account=account) == limits
    assert slurm.calls == asked


def test_a_limit_counts_the_jobs_of_its_own_account_qos_or_partition(fake: FakeCommands) -> None:
    qos = "normal|||\\ntight|12||\\npart||60|\\n"
    slurm = _site(fake, enforce="limits", associations=ASSOCIATIONS, qos=qos)
    limits = slurm.limits(partition="gpu", qos="tight", account="proj")
    assert limits.queue == (
        QueueLimit(40, Place("proj", "gpu", None)),
        QueueLimit(12, Place(None, None, "tight")),
        QueueLimit(60, Place(None, "gpu", None)),
    )
    tight = limits.queue[1]
    assert tight.counts(Place("other", "cpu", "tight"))
    assert not tight.counts(Place("proj", "gpu", "normal"))
    assert tight.counts(Place("proj", "gpu", None)), "what is not known counts"
    assert limits.queue[2].counts(Place("proj", "cpu,gpu", "normal")), (
        "a job that waits for the first of two partitions"
    )


def test_limits_that_are_not_enforced_or_not_known(fake: FakeCommands) -> None:
    slurm = _site(
        fake,
        enforce="none",
        associations=ASSOCIATIONS,
        qos="normal|5||\\n",
        parameters="bf_interval=1,max_array_tasks=500",
    )
    assert slurm.limits(partition=None, qos=None, account=None) == Limits(500)
    assert "sacctmgr" not in slurm.calls
    fake.command("scontrol", "MaxArraySize = 0\nAccountingStorageEnforce = none\n")
    assert Slurm().limits(partition=None, qos=None, account=None) == Limits(1), "arrays are switched off"


def test_accounting_that_does_not_answer_is_asked_once_in_some_minutes_and_its_last_answer_holds(
    fake: FakeCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("core_hpc.slurm.commands.time", SimpleNamespace(monotonic=lambda: now[0]))
    slurm = _site(fake, enforce="limits")
    assert slurm.limits(partition=None, qos=None, account=None) == Limits(1001)
    asked = slurm.calls["sacctmgr"]
    assert asked == 2
    assert slurm.limits(partition=None, qos=None, account=None) == Limits(1001)
    assert slurm.calls["sacctmgr"] == asked
    answering = _site(fake, enforce="limits", associations=ASSOCIATIONS, qos="normal|||\\n")
    known = answering.limits(partition=None, qos=None, account="other")
    assert (known.max_array_size, known.max_submitted) == (1001, 3)
    _site(fake, enforce="limits")  # from now on it does not answer
    now[0] += 301
    assert answering.limits(partition=None, qos=None, account="other") == known


def test_nodes(fake: FakeCommands) -> None:
    fake.command("sinfo", "b1|mixed\nb2|down*\nb2|down*\n")
    assert Slurm().nodes("main") == {"b1": "mixed", "b2": "down*"}
    assert fake.calls("sinfo")[0].endswith("-p main")
