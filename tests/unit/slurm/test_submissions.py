"""Parameters and scripts of jobs, the environment of sbatch, records, and signals inside a job."""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import StoreError
from core_hpc.config.cluster import ClusterSection
from core_hpc.runs.job_status import StopReason
from core_hpc.runs.outcome import Outcome, OutcomeKind
from core_hpc.slurm import element
from core_hpc.slurm.element import ElementSpec, Stop, rank_environment
from core_hpc.slurm.records import ENDED, FAILED, OPEN, SubmissionFolder, new_submission
from core_hpc.slurm.rendezvous import address_of_node
from core_hpc.slurm.sbatch import RefusedError
from core_hpc.slurm.submit import batch_script, job_parameters, submission_environment
from core_hpc.store.paths import TaskKey


def cluster(**slurm: Any) -> ClusterSection:
    return ClusterSection.model_validate({"driver": "arrays", "update_ranks": 4, "slurm": slurm})


# --- parameters and scripts ----------------------------------------------------------------------


def test_a_group_inherits_fields_that_it_does_not_set() -> None:
    section = cluster(
        partition="gpu",
        gpus_per_node=1,
        time_min=60,
        update={"nodes": 2, "gres": "gpu:a100:2"},
        score={"partition": "cpu"},
    )
    generate, update, score = (
        job_parameters(section, g, name="n", comment="c") for g in ("generate", "update", "score")
    )
    assert (generate["partition"], generate["gpus_per_node"], generate["time"], generate["nodes"]) == ("gpu", 1, 60, 1)
    assert (update["gres"], update["nodes"], update["ntasks_per_node"]) == ("gpu:a100:2", 2, 2)
    assert "gpus_per_node" not in update, "gres has the GPUs already"
    assert score["partition"] == "cpu"
    assert "gpus_per_node" not in score, "hints and scores need no GPU"


def test_the_script_has_every_configured_field(tmp_path: Path) -> None:
    section = cluster(
        account="a",
        qos="q",
        constraint="c",
        reservation="r",
        exclude=["n9"],
        setup=["module load x"],
        requeue=False,
        cpus=3,
        mem_gb=1.5,
        options={"mail-type": "FAIL", "exclusive": True, "hold": False},
        srun_args=["--mpi=none"],
        array_parallelism=7,
        signal_delay_s=33,
    )
    parameters = job_parameters(
        section, "update", name="update-0001-0000abcd", comment="c", mem_gb=2.0, excluded=["n1", "n9"]
    )
    script = batch_script(section, tmp_path, parameters, num_elements=20)
    for line in (
        "--account=a",
        "--qos=q",
        "--constraint=c",
        "--reservation=r",
        "--exclude=n9,n1",
        "--no-requeue",
        "--cpus-per-task=3",
        "--mem=2048MB",
        "--mail-type=FAIL",
        "--exclusive",
        "--array=0-19%7",
        "--signal=USR2@33",
        "--job-name=update-0001-0000abcd",
        "--ntasks-per-node=4",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "hold" not in script
    assert "\nmodule load x\n" in script
    srun = next(line for line in script.splitlines() if line.startswith("srun"))
    assert all(word in srun for word in ("--kill-on-bad-exit=1", "--cpus-per-task=3", "--mpi=none"))


def test_variables_of_the_outer_job_are_hidden_from_sbatch_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = {
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_NODE": "2",
        "SLURMD_NODENAME": "n",
        "PMI_RANK": "0",
        "RANK": "3",
        "CUDA_VISIBLE_DEVICES": "0",
        "CORE_HPC_JOB_START": "1",
        "SUBMITIT_EXECUTOR": "slurm",
    }
    kept = {
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_CONF_SERVER": "ctl:6817",
        "SLURM_JWT": "token",
        "SBATCH_ACCOUNT": "mine",
        "CORE_HPC_CACHE": "/cache",
    }
    for name, value in {**outer, **kept}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with submission_environment():
        assert not set(outer) & set(os.environ)
        assert kept.items() <= os.environ.items()
    assert dict(os.environ) == before


def test_sbatch_variables_do_not_replace_what_the_script_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM gives the variables priority over the lines of the script."""
    hidden = [
        *("JOB_NAME", "TIMELIMIT", "ARRAY_INX", "SIGNAL", "CLUSTERS", "WAIT", "OPEN_MODE", "OUTPUT", "ERROR", "INPUT"),
        *("REQUEUE", "NO_REQUEUE", "DEPENDENCY", "MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU", "CPUS_PER_GPU"),
        *("PARTITION", "QOS", "GRES", "GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "REQ_SWITCH", "EXCLUSIVE"),
    ]
    defaults = [
        "ACCOUNT",
        "CONSTRAINT",
        "RESERVATION",
        "GPU_BIND",
        "GRES_FLAGS",
        "EXPORT",
        "MEM_BIND",
        "WAIT_ALL_NODES",
    ]
    for name in (*hidden, *defaults):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    section = cluster(partition="gpu", qos="q", gpus_per_node=4, options={"switches": 1, "exclusive": True})
    parameters = job_parameters(section, "generate", name="cold-0001-0000abcd", comment="c")
    before = dict(os.environ)
    with submission_environment(batch_script(section, tmp_path, parameters, num_elements=2)):
        assert {k for k in os.environ if k.startswith("SBATCH_")} == {f"SBATCH_{name}" for name in defaults}
    assert dict(os.environ) == before
    parameters = job_parameters(cluster(), "score", name="score-0001-0000abcd", comment="c")
    with submission_environment(batch_script(cluster(), tmp_path, parameters, num_elements=1)):
        assert {"SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_GRES"} <= os.environ.keys(), "defaults of the site remain"
        assert not {"SBATCH_ARRAY_INX", "SBATCH_TIMELIMIT", "SBATCH_MEM_PER_CPU"} & os.environ.keys()


FAILED_SUBMISSION = "sbatch: error: Batch job submission failed: "
TEMPORARY = [
    FAILED_SUBMISSION + "Socket timed out on send/recv operation",
    FAILED_SUBMISSION + "Unable to contact slurm controller (connect failure)",
    'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory '
    "sbatch: error: slurm_send_node_msg: auth_g_create: REQUEST_SUBMIT_BATCH_JOB has authentication error "
    f"{FAILED_SUBMISSION}Protocol authentication error",
    "sbatch: error: s_p_parse_file: unable to status file /etc/slurm/slurm.conf: No such file or directory, retrying",
    "sbatch: error: s_p_parse_file: cannot stat file /etc/slurm/slurm.conf: No such file or directory, retrying",
    FAILED_SUBMISSION + "Invalid user id",
]
QUEUE_LIMIT = (
    f"sbatch: error: QOSMaxSubmitJobPerUserLimit {FAILED_SUBMISSION}Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)
PERMANENT = [
    "sbatch: error: invalid partition specified: nowhere",
    FAILED_SUBMISSION + "Requested node configuration is not available",
    FAILED_SUBMISSION + "Invalid qos specification",
    "sbatch: error: /etc/slurm/slurm.conf: ignoring obsolete option 'X' sbatch: error: invalid partition specified: y",
    FAILED_SUBMISSION + "Invalid account or account/partition combination specified",
]


@pytest.mark.parametrize("message", [*TEMPORARY, QUEUE_LIMIT, *PERMANENT])
def test_temporary_refusals_are_distinguished_from_others(message: str) -> None:
    error = RefusedError(message)
    assert error.passing == (message not in PERMANENT)
    assert error.limit == (message == QUEUE_LIMIT)


def test_a_record_goes_from_open_to_ended_or_failed(tmp_path: Path) -> None:
    folder = SubmissionFolder(tmp_path)
    for kind, state in (("done", ENDED), ("died", FAILED)):
        submission = new_submission("generate", "cold-0001", [[TaskKey(1, "cold", "a")]], start_id="s", mem_gb=1)
        folder.write(submission)
        assert folder.names(OPEN) == [(submission.name, OPEN)]
        submission.outcomes[0] = Outcome(OutcomeKind(kind), counted=False)
        folder.close(submission)
        assert folder.read(state) == [submission]
    folder.folder(submission).mkdir()
    for name in ("1_0_result.pkl", "element-0000.json", "1_0_log.out"):
        (folder.folder(submission) / name).touch()
    folder.tidy()
    assert [p.name for p in folder.folder(submission).iterdir()] == ["1_0_log.out"]


def test_a_record_that_was_copied_under_another_name_is_named(tmp_path: Path) -> None:
    """It would be a second submission with the job of the first."""
    folder = SubmissionFolder(tmp_path)
    submission = new_submission("generate", "cold-0001", [[TaskKey(1, "cold", "a")]], start_id="s", mem_gb=1)
    folder.write(submission)
    copy = tmp_path / "cold-0001-00000000.open.json"
    copy.write_bytes((tmp_path / f"{submission.name}.open.json").read_bytes())
    with pytest.raises(StoreError, match=rf"{copy.name}: is a copy of the record of {submission.name}"):
        folder.read(OPEN)


# --- inside the job ------------------------------------------------------------------------------


@pytest.fixture
def stop_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = {
        number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
    }

    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)

    def build(*, ran_s: float, time_min: int = 60, grace_s: float = 30) -> Stop:
        monkeypatch.setenv("CORE_HPC_JOB_START", str(time.time() - ran_s))
        spec = ElementSpec(
            run="",
            tasks=(),
            status="",
            threads=1,
            time_min=time_min,
            signal_delay_s=120,
            preemption_grace_s=grace_s,
        )
        return Stop(spec)

    yield build
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_warning_shortly_before_the_limit_is_the_time_limit(stop_of: Any) -> None:
    stop = stop_of(ran_s=60 * 58)
    assert stop.reason is None
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop.reason == StopReason.TIME_LIMIT
    assert 60 < stop.deadline - time.time() < 120


def test_a_warning_long_before_the_limit_is_a_preemption(stop_of: Any) -> None:
    stop = stop_of(ran_s=60)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop.reason == StopReason.PREEMPTED
    assert stop.deadline - time.time() < 30
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == StopReason.PREEMPTED


def test_the_end_that_slurm_names_has_priority(stop_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user, an option or a slow prolog may have made the time shorter than the profile's."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 120))
    stop = stop_of(ran_s=60 * 58, time_min=240)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop.reason == StopReason.TIME_LIMIT
    assert 60 < stop.deadline - time.time() < 120


def test_a_job_whose_limit_was_raised_has_the_time_after_the_warning(stop_of: Any) -> None:
    stop = stop_of(ran_s=60 * 70)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop.reason == StopReason.TIME_LIMIT
    assert 60 < stop.deadline - time.time() < 120


@pytest.mark.parametrize(
    ("ran_s", "grace_s", "left_s"),
    [
        (60, 300, 240),  # SLURM's default: a preemption without another signal
        (60, 5, element.TERM_GRACE_S),  # it may be scancel
        (60 * 59, 300, element.TERM_GRACE_S),  # the time limit: the grace time of preemptions does not hold
    ],
)
def test_sigterm_alone_leaves_the_grace_time_of_a_preemption(
    stop_of: Any, ran_s: float, grace_s: float, left_s: float
) -> None:
    stop = stop_of(ran_s=ran_s, grace_s=grace_s)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == StopReason.TERMINATED
    assert stop.deadline - time.time() == pytest.approx(left_s, abs=2)


def test_a_rank_takes_its_own_gpu_of_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_HPC_RENDEZVOUS", "n1 15001")
    for visible, local, expected in (("0,1", "1", "1"), ("3", "1", "0"), ("", "1", "0")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setenv("SLURM_LOCALID", local)
        found = rank_environment(1, 2)
        assert (found["LOCAL_RANK"], found["MASTER_ADDR"], found["MASTER_PORT"], found["WORLD_SIZE"]) == (
            expected,
            "n1",
            "15001",
            "2",
        )
    assert rank_environment(0, 1)["MASTER_ADDR"] == "127.0.0.1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for num_devices, expected in ((0, "0"), (4, "1")):
        monkeypatch.setattr(element, "visible_gpus", lambda n=num_devices: tuple(map(str, range(n))))
        assert rank_environment(1, 2)["LOCAL_RANK"] == expected, "without the variable a rank sees all GPUs of its node"


def test_a_node_has_an_address_also_in_a_container_without_the_commands_of_slurm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert address_of_node("localhost") == "localhost"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert address_of_node("node.that.does.not.resolve.invalid") == socket.gethostname()
