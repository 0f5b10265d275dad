"""The dry run: every shipped sweep with every shipped profile, its batch scripts, and the GPU-hours that they mean."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

from core_hpc.errors import ConfigError
from core_hpc.plan import planned_arrays, planned_scripts, splits_of
from core_hpc.state import Graph
from core_hpc.sweep import PROFILES, Sweep, load_sweep

SWEEPS = sorted((ROOT / "yaml").glob("*.yaml"))
PROFILE_NAMES = sorted(p.stem for p in PROFILES.glob("*.yaml"))


def graph_of(sweep: Sweep) -> Graph:
    return Graph.of(sweep.runs[0].config, num_evaluation_problems=splits_of(sweep.runs[0]).evaluation.height)


@pytest.mark.parametrize("profile", PROFILE_NAMES)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_batch_scripts_of_every_shipped_sweep_are_sound(path: Path, profile: str) -> None:
    sweep = load_sweep(path, profile=profile)
    assert sweep.runs[0].config.cluster.driver == "arrays"
    scripts = planned_scripts(sweep, graph_of(sweep))
    assert len(scripts) == 4
    for script in scripts.values():
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "--kill-on-bad-exit=1" in script
        assert "submitit.core._submit /" in script, "a job may begin in another folder"
    (update,) = (s for name, s in scripts.items() if name.startswith("update"))
    assert "core_hpc.slurm.rendezvous" in update


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_batch_scripts_pass_shellcheck(profile: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed here (CI installs it)")
    for path in SWEEPS:
        sweep = load_sweep(path, profile=profile)
        for name, script in planned_scripts(sweep, graph_of(sweep)).items():
            checked = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True, check=False)
            assert checked.returncode == 0, f"{name}\n{checked.stdout}"


def test_array_sizes_and_gpu_hours_by_hand() -> None:
    """Quickstart, one part a phase: 2 models x (2 evaluations + 3 cold + 3 rescue) x 1 GPU x 4 h + 2 x 3 updates x 4 GPUs x 4 h."""
    sweep = load_sweep(ROOT / "yaml" / "quickstart.yaml", profile="one_node")
    arrays = planned_arrays(sweep.runs[0].config.cluster, graph_of(sweep))
    assert {a.phase: (a.times, a.num_elements) for a in arrays} == {
        "evaluate": (2, 2), "cold": (3, 2), "hint": (3, 1), "rescue": (3, 2), "score": (3, 1), "update": (3, 2),
    }  # fmt: skip
    assert sum(a.gpu_hours for a in arrays) == 2 * 8 * 1 * 4 + 2 * 3 * 4 * 4


def test_dry_run_needs_no_slurm_and_creates_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "core_hpc.launch", str(ROOT / "yaml" / "quickstart.yaml"), "--cluster", "multi_node", "--dry-run"]
    environment = {**os.environ, "PATH": "/nonexistent", "COLUMNS": "200"}
    command += ["--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=2" in done.stdout
    assert "at most 448.0 GPU-hours" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_profile_lies_below_the_sweeps_own_section_and_unknown_names_are_explained(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {ROOT}/yaml/quickstart.yaml\ncluster: {{slurm: {{account: mine, cpus: 3}}, profile: preemptible}}\n")
    cluster = load_sweep(own).runs[0].config.cluster
    assert (cluster.profile, cluster.slurm.account, cluster.slurm.cpus, cluster.slurm.time_min) == ("preemptible", "mine", 3, 120)
    assert cluster.slurm.generate.parts_per_job == 1
    assert cluster.slurm.update.gpus_per_node == 4  # from the profile's own base
    local = tmp_path / "cluster"
    local.mkdir()
    (local / "preemptible.yaml").write_text("driver: arrays\nslurm: {partition: here}\n")
    assert load_sweep(own).runs[0].config.cluster.slurm.partition == "here"
    with pytest.raises(ConfigError, match=r"no profile 'absent'.*shipped profiles: devcluster, multi_node, one_node, preemptible"):
        load_sweep(own, profile="absent")
    (local / "preemptible.yaml").write_text("driver: arrays\nslurm: {partitoin: here}\n")
    with pytest.raises(ConfigError, match=r"cluster.slurm.partitoin: unknown key; did you mean `partition`"):
        load_sweep(own)


def test_scientific_identity_does_not_depend_on_the_cluster() -> None:
    ids = {load_sweep(ROOT / "yaml" / "quickstart.yaml", profile=name).runs[0].run_id for name in (None, *PROFILE_NAMES)}
    assert len(ids) == 1


def test_ranks_must_fill_their_nodes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a multiple of slurm.update.nodes"):
        load_sweep(ROOT / "yaml" / "quickstart.yaml", ["cluster.update_ranks=3"], profile="multi_node")
