"""The development cluster behaves like a real Slurm: GPUs, limits, memory, power cuts, daemons that are down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import SCRIPT, ClusterError, DevCluster
from tests.support.harness import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CONTROLLER = SCRIPT.parent / "controller.sbatch"
SMALL_LIMIT = 8


@pytest.fixture(autouse=True)
def _leave_it_idle(cluster: DevCluster) -> Iterator[None]:
    yield
    cluster.run("scancel", "--user", cluster.run("id", "-un").strip())
    cluster.wait_idle(timeout_s=30)


def submit(cluster: DevCluster, *arguments: str) -> str:
    return cluster.run("sbatch", "--parsable", "--output=/dev/null", *arguments).strip()


def states(cluster: DevCluster, job: str) -> list[str]:
    return cluster.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").split()


def test_an_array_gets_gpus_and_resolvable_node_names(cluster: DevCluster, tmp_path: Path) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES $SLURM_JOB_ACCOUNT $SLURMD_NODENAME; sleep 1"
    submit(cluster, "--wait", "--array=0-7", "--gres=gpu:1", "--mem=100", f"--output={tmp_path}/%a", "--wrap", script)
    seen = [tuple((tmp_path / str(i)).read_text().split()) for i in range(8)]
    # 4 nodes with 2 GPUs, all in use at once: every task has its own
    assert sorted(seen) == sorted((gpu, "research", node) for node in cluster.node_names for gpu in "01")


def test_a_submit_limit_is_enforced(cluster: DevCluster) -> None:
    too_many = ("--qos=small", "--hold", f"--array=0-{SMALL_LIMIT}", "--wrap", "true")
    with pytest.raises(ClusterError, match="QOSMaxSubmitJobPerUserLimit"):
        submit(cluster, *too_many)
    job = submit(cluster, "--qos=small", "--hold", f"--array=0-{SMALL_LIMIT - 1}", "--wrap", "true")
    with pytest.raises(ClusterError, match="QOSMaxSubmitJobPerUserLimit"):
        submit(cluster, "--qos=small", "--wrap", "true")
    other = submit(cluster, "--hold", f"--array=0-{SMALL_LIMIT}", "--wrap", "true")
    cluster.run("scancel", job, other)
    assert states(cluster, job) == ["CANCELLED"] * SMALL_LIMIT


def test_memory_above_the_request_kills_the_job(cluster: DevCluster, tmp_path: Path) -> None:
    code = "python3 -c 'import time; x = bytearray(300 << 20); time.sleep(60)'"
    job = submit(cluster, "--mem=100", f"--output={tmp_path}/log", "--wrap", code)
    wait_for(lambda: states(cluster, job) == ["FAILED"], "the failure", timeout_s=20)
    assert "exceeded memory limit" in (tmp_path / "log").read_text()


def test_the_controller_template_runs_the_launcher(cluster: DevCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ClusterError, match="status 2"):  # argparse's exit status, passed on by the template
        submit(
            cluster,
            "--wait",
            f"--output={log}",
            f"--chdir={SCRIPT.parents[1]}",
            str(CONTROLLER),
            "two words.yaml",
            "--no-such-option",
        )
    assert "unrecognized arguments: --no-such-option" in log.read_text()


def test_slurm_goes_away_and_comes_back(cluster: DevCluster) -> None:
    job = submit(cluster, "--wrap", "sleep 4")
    wait_for(lambda: states(cluster, job) == ["RUNNING"], "the start", timeout_s=10)
    cluster.stop_dbd()
    with pytest.raises(ClusterError):
        cluster.run("sacct", "-j", job)
    cluster.stop_ctld()
    with pytest.raises(ClusterError):
        cluster.run("scontrol", "ping")  # answers at once; squeue repeats for 9 s
    cluster.start_dbd()
    cluster.start_ctld()
    wait_for(lambda: states(cluster, job) == ["COMPLETED"], "the end", timeout_s=20)


@pytest.mark.full(reason="test_cluster_faults.py cuts the power of a node")
def test_a_power_cut_is_noticed_and_the_node_comes_back(cluster: DevCluster) -> None:
    node = cluster.node_names[-1]
    again = submit(cluster, "--requeue", f"--nodelist={node}", "--mem=100", "--wrap", "sleep 300")
    lost = submit(cluster, "--no-requeue", f"--nodelist={node}", "--mem=100", "--wrap", "sleep 300")
    wait_for(lambda: states(cluster, again) == states(cluster, lost) == ["RUNNING"], "both starts", timeout_s=10)
    cluster.kill_node(node)
    wait_for(
        lambda: states(cluster, again) == ["PENDING"] and states(cluster, lost) == ["NODE_FAIL"],
        "the loss of the node",
        timeout_s=40,
    )
    cluster.start_node(node)
    submit(cluster, "--wait", f"--nodelist={node}", "--mem=100", "--wrap", "true")
