"""The draft of a cluster profile: it is valid, asks for what the site has, and never replaces a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core_hpc.config.cluster import ClusterSection
from core_hpc.doctor import __main__ as doctor
from core_hpc.doctor.site import profile_text
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.commands import Partition
from core_hpc.slurm.parse import parse_partitions
from tests.unit.config.test_sweep import write

DESCRIBED = """\
PartitionName=cpu AllowGroups=ALL Default=YES GraceTime=0 MaxTime=2-00:00:00 State=UP PreemptMode=OFF QoS=N/A
PartitionName=gpu AllowGroups=ALL Default=NO GraceTime=0 MaxTime=02:00:00 State=UP PreemptMode=OFF QoS=N/A
PartitionName=spare AllowGroups=ALL Default=NO GraceTime=60 MaxTime=UNLIMITED State=UP PreemptMode=REQUEUE QoS=N/A
"""
NODES = "cpu|(null)|64|256000\ngpu|gpu:a100:4(S:0-1)|64|512000\nspare|gpu:h100:8|128|1024000\n"


def site(described: str = DESCRIBED, nodes: str = NODES) -> dict[str, Partition]:
    return parse_partitions(described, nodes, "preempt/partition_prio")


def profile_of(partitions: dict[str, Partition], tmp_path: Path, *accounts: str) -> tuple[str, ClusterSection]:
    text = profile_text("c1", partitions, accounts=accounts, default_account=accounts[0] if accounts else None)
    (tmp_path / "site.yaml").write_text(text)
    return text, load_sweep(write(tmp_path, cluster={"profile": "site.yaml"})).cluster


def test_jobs_ask_for_what_the_site_has(tmp_path: Path) -> None:
    text, cluster = profile_of(site(), tmp_path, "proj")
    slurm = cluster.slurm
    assert (cluster.driver, cluster.update_ranks) == ("arrays", 4)
    jobs = {group: slurm.job(group) for group in cluster.groups}
    assert {group: job["partition"] for group, job in jobs.items()} == {
        "generate": "gpu",
        "score": "cpu",
        "update": "gpu",
        "controller": "cpu",
    }
    assert {group: slurm.num_gpus(group) for group in cluster.groups} == {
        "generate": 1,
        "score": 0,
        "update": 4,
        "controller": 0,
    }
    limits = {"gpu": 120, "cpu": 2880}
    assert all(job["time_min"] <= limits[job["partition"]] for job in jobs.values())
    assert jobs["generate"]["mem_gb"] <= 512000 / 1024 / 4
    memory_gb = {"gpu": 500, "cpu": 250}
    assert all(job["mem_gb"] <= job["max_mem_gb"] < memory_gb[job["partition"]] for job in jobs.values())
    for words in ('# account: "proj"', "gpu:a100:4(S:0-1)", "#   cpu*: at most 2880 min", "preemptible"):
        assert words in text


@pytest.mark.parametrize(
    ("nodes", "ranks", "gpus"),
    [
        ("all|(null)|2|2000\n", 1, 0),
        ("all|gpu:1|8|16000\n", 1, 1),
        ("all|gpu:t4:2,lscratch:10|1|900\n", 2, 2),
        ("all|gpu:h100:8|128|2000000\n", 4, 4),
    ],
)
def test_one_partition_of_any_size(nodes: str, ranks: int, gpus: int, tmp_path: Path) -> None:
    described = "PartitionName=all Default=YES GraceTime=0 MaxTime=UNLIMITED State=UP PreemptMode=OFF QoS=N/A"
    partitions = site(described, nodes)
    _, cluster = profile_of(partitions, tmp_path)
    assert (cluster.update_ranks, cluster.slurm.num_gpus("update")) == (ranks, gpus)
    for group in cluster.groups:
        job = cluster.slurm.job(group)
        if group != "controller":
            assert 0 < job["mem_gb"] <= max(1, partitions["all"].mem_gb)
            assert 0 < job["cpus"] <= partitions["all"].cpus


def test_names_of_a_site_stay_texts(tmp_path: Path) -> None:
    described = "PartitionName=no Default=YES GraceTime=0 MaxTime=UNLIMITED State=UP PreemptMode=OFF QoS=N/A"
    _, cluster = profile_of(site(described, "no|(null)|2|2000\n"), tmp_path)
    assert cluster.slurm.partition == "no"


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sinfo and a scontrol that answer as the site above, first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    config = "ClusterName = c1\nPreemptType = preempt/partition_prio\n"
    answers = {
        "sinfo": f"cat <<'E'\n{NODES}E\n",
        "scontrol": f"case \"$*\" in *partition*) cat <<'E'\n{DESCRIBED}E\n;; *) cat <<'E'\n{config}E\n;; esac\n",
    }
    for name, body in answers.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return folder


def test_the_command_writes_a_new_file_only(
    fake_slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my_site.yaml"
    assert doctor.main(["--write-profile", str(path)]) == 0
    assert f"doctor --cluster {path}" in capsys.readouterr().out
    text = path.read_text()
    assert 'partition: "gpu"' in text
    assert load_sweep(write(tmp_path), profile=str(path)).cluster.slurm.partition == "gpu"
    path.write_text("mine")
    assert doctor.main(["--write-profile", str(path)]) == 2
    assert "exists and is not changed" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_without_slurm_the_message_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.main(["--write-profile", str(tmp_path / "x.yaml")]) == 1
    assert "scontrol is not on PATH" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()
