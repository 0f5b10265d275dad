"""The dry run: batch scripts of every shipped sweep with every profile, and estimated hours."""

import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import yaml
from core_hpc.common.errors import ConfigError
from core_hpc.controller import estimate
from core_hpc.controller.plan import most_work, planned_arrays, planned_scripts
from core_hpc.controller.prepare import splits_of
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import PROFILES, Sweep, load_sweep
from tests.support.fake_slurm import run_of
from tests.support.harness import ROOT

SWEEPS = sorted((ROOT / "yaml").glob("*.yaml"))
PROFILE_NAMES = sorted(p.stem for p in PROFILES.glob("*.yaml"))


def dry_run(path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "core_hpc.launch", str(path), "--dry-run", *options]
    variables = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, env=variables, cwd=path.parent, capture_output=True, text=True, check=False)


def graph_of(sweep: Sweep) -> Graph:
    return Graph.of(sweep.runs[0].config, num_evaluation_problems=splits_of(sweep.runs[0]).evaluation.height)


@pytest.mark.parametrize("profile", PROFILE_NAMES)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_batch_scripts_of_every_shipped_sweep_are_valid(path: Path, profile: str) -> None:
    sweep = load_sweep(path, profile=profile)
    driver = sweep.runs[0].config.cluster.driver
    assert driver == ("resident" if profile == "resident" else "arrays")
    scripts = planned_scripts(sweep, graph_of(sweep))
    chained = sweep.runs[0].config.cluster.slurm.chain_wait_s is not None
    assert len(scripts) == (2 if driver == "resident" else 3 if chained else 4)
    for script in scripts.values():
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "--kill-on-bad-exit=1" in script
        assert "core_hpc.slurm.job /" in script, "a job may start in another folder"
    # Only jobs of updates have several ranks that SLURM starts, and these need an address.
    updates = [name for name in scripts if name.startswith("update")]
    assert [name for name, script in scripts.items() if "core_hpc.slurm.rendezvous" in script] == updates


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
    """Quickstart, one part per phase.

    2 models x (2 evaluations + 3 cold + 3 rescue) x 1 GPU x 4 h + 2 models x 3 updates x 4 GPUs x 4
    h
    """
    sweep = load_sweep(ROOT / "yaml" / "quickstart.yaml", ["cluster.slurm.chain_wait_s=null"], profile="one_node")
    arrays = planned_arrays(sweep.runs[0].config.cluster, graph_of(sweep))
    assert {a.phases: (a.times, a.num_elements) for a in arrays} == {
        ("evaluate",): (2, 2),
        ("cold",): (3, 2),
        ("hint",): (3, 1),
        ("rescue",): (3, 2),
        ("score",): (3, 1),
        ("update",): (3, 2),
    }
    assert sum(a.gpu_hours for a in arrays) == 2 * 8 * 1 * 4 + 2 * 3 * 4 * 4
    chained = load_sweep(ROOT / "yaml" / "quickstart.yaml", profile="one_node")
    arrays = planned_arrays(chained.runs[0].config.cluster, graph_of(chained))
    assert {a.phases: (a.group, a.times, a.num_elements, a.num_tasks) for a in arrays} == {
        ("evaluate",): ("generate", 2, 2, 2),
        ("cold", "hint", "rescue"): ("generate", 3, 2, 5),
        ("score", "update"): ("update", 3, 2, 3),
    }
    assert sum(a.gpu_hours for a in arrays) == 2 * 5 * 1 * 4 + 2 * 3 * 4 * 4


def test_dry_run_needs_no_slurm_and_creates_nothing(tmp_path: Path) -> None:
    quickstart, out = ROOT / "yaml" / "quickstart.yaml", tmp_path / "out"
    done = dry_run(quickstart, "--cluster", "multi_node", "--output", str(out), PATH="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=2" in done.stdout
    assert "at most 424.0 GPU-hours" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_section_of_the_sweep_wins_over_its_profile_and_unknown_names_are_explained(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        f"base: {ROOT}/yaml/quickstart.yaml\ncluster: {{slurm: {{account: mine, cpus: 3}}, profile: preemptible}}\n"
    )
    cluster = load_sweep(own).runs[0].config.cluster
    slurm = cluster.slurm
    assert (cluster.profile, slurm.account, slurm.cpus, slurm.time_min) == ("preemptible", "mine", 3, 120)
    assert slurm.generate.parts_per_job == 1
    assert slurm.update.gpus_per_node == 4  # from the base of the profile
    local = tmp_path / "cluster"
    local.mkdir()
    (local / "preemptible.yaml").write_text("driver: arrays\nslurm: {partition: here}\n")
    assert load_sweep(own).runs[0].config.cluster.slurm.partition == "here"
    with pytest.raises(
        ConfigError, match=r"no profile 'absent'.*shipped profiles: devcluster, multi_node, one_node, preemptible"
    ):
        load_sweep(own, profile="absent")
    (local / "preemptible.yaml").write_text("driver: arrays\nslurm: {partitoin: here}\n")
    with pytest.raises(ConfigError, match=r"cluster.slurm.partitoin: unknown key; did you mean `partition`"):
        load_sweep(own)


def test_the_driver_of_the_command_line_wins_and_its_job_comes_from_the_profile(tmp_path: Path) -> None:
    quickstart = ROOT / "yaml" / "quickstart.yaml"
    options = ["--driver", "resident", "--output", str(tmp_path), "--cluster"]
    done = dry_run(quickstart, *options, "devcluster", PATH="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert "one job per run" in done.stdout
    assert "#SBATCH --gpus-per-node=2" in done.stdout
    assert "job arrays" not in done.stdout
    # By default one_node gives a job one GPU, and it asks for four ranks.
    refused = dry_run(quickstart, *options, "one_node", PATH="/nonexistent")
    assert refused.returncode == 2
    assert "slurm.resident.gpus_per_node" in refused.stderr


def test_scientific_identity_does_not_depend_on_the_cluster() -> None:
    quickstart = ROOT / "yaml" / "quickstart.yaml"
    assert len({load_sweep(quickstart, profile=name).runs[0].run_id for name in (None, *PROFILE_NAMES)}) == 1


def test_ranks_must_fill_their_nodes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a multiple of slurm.update.nodes"):
        load_sweep(ROOT / "yaml" / "quickstart.yaml", ["cluster.update_ranks=3"], profile="multi_node")


def test_every_run_of_a_grid_is_checked_against_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"base: {ROOT}/yaml/quickstart.yaml\ngrid: {{protocol.problems_per_iteration: [24, 100]}}\n")
    refused = dry_run(path)
    assert refused.returncode != 0
    message = " ".join(refused.stderr.split())
    assert "protocol.problems_per_iteration is 100, but problems.train has 72 problems" in message


def test_tokens_and_hours_by_hand(tmp_path: Path) -> None:
    """Two models, 5 iterations of 8 problems, K = 3, K' = 2, two evaluations of 10 problems x 4.

    The smaller model may sample fewer tokens.
    """
    path = tmp_path / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "s",
                "iterations": 5,
                "team": [
                    {"name": "a", "model": "x/A-3B"},
                    {"name": "b", "model": "x/b-500m", "sampling": {"max_new_tokens": 50}},
                ],
                "problems": {
                    "train": {"source": "generated", "count": 8},
                    "evaluation": {"source": "generated", "count": 10},
                },
                "protocol": {
                    "problems_per_iteration": 8,
                    "cold_samples": 3,
                    "rescue_samples": 2,
                    "hint_probability": 0.75,
                    "hint_tokens": 40,
                    "sampling": {"max_new_tokens": 100},
                },
                "evaluation": {"samples": 4, "sampling": {"max_new_tokens": 200}},
            }
        )
    )
    sweep = load_sweep(path)
    _, tokens, _ = most_work(sweep.runs[0], graph_of(sweep), 10)
    sampled = {"a": 5 * 8 * 5 * 100 + 2 * 10 * 4 * 200, "b": 5 * 8 * 5 * 50 + 2 * 10 * 4 * 200}
    assert tokens == sum(sampled.values())
    device = estimate.Device("d", sampling=10, training=8, source="")
    expected = Fraction(0)
    for billions, name, longest in ((Fraction(3), "a", 100), (Fraction(1, 2), "b", 50)):
        hints, prompts = 5 * 8 * 2 * Fraction(3, 4) * 40, 5 * 8 * 2 * estimate.PROMPT_TOKENS
        trained = Fraction(1, 2) * (5 * 8 * 5 * longest + hints) + prompts
        expected += billions * (Fraction(sampled[name], 2) / 10 + trained / 8) / 3600
    assert estimate.hours(sweep.runs[0].config, 2 * 10, 0.5, device) == pytest.approx(float(expected))


def test_with_hacpo_every_model_also_trains_on_the_cold_completions_of_its_peers() -> None:
    independent, hacpo, _ = load_sweep(ROOT / "yaml" / "ablations" / "hacpo.yaml").runs
    config = hacpo.config
    share, num = 0.5, config.iterations * config.protocol.problems_per_iteration * config.protocol.cold_samples
    for model in config.team:
        own = config.sampling_of(model, "cold").max_new_tokens
        peers = [min(own, config.sampling_of(p, "cold").max_new_tokens) for p in config.team if p.name != model.name]
        (sampled, trained), (_, without) = (
            estimate.tokens_of(c, model, 0, share) for c in (config, independent.config)
        )
        assert sampled == share * num * own
        assert trained - without == pytest.approx(share * num * sum(peers))
        assert sum(peers) > 0


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B", 0.5),
        ("google/gemma-3-270m-it", 0.27),
        ("meta/Llama-3.2-1B-Instruct", 1),
        ("x/8bit-model", None),
        ("/models/7b-v2/final", None),
        ("microsoft/Phi-4-mini-reasoning", None),
        ("x/Qwen3-30B-A3B", 30),
    ],
)
def test_the_number_of_parameters_is_read_from_the_name(name: str, billions: float | None) -> None:
    assert estimate.billions_of(name) == billions


def test_a_dry_run_without_the_data_set_uses_the_count_of_the_file_and_reports_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    data: dict[str, Any] = {
        "name": "s",
        "iterations": 2,
        "team": [{"name": "a", "model": "x/unnamed-size"}],
        "protocol": {"rescue_samples": 0},
        "problems": {split: {"source": "gsm8k", "count": 40} for split in ("train", "evaluation")},
    }
    path.write_text(yaml.safe_dump(data))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = dry_run(path, **offline)
    assert done.returncode == 0, done.stderr
    assert f" {2 * 32 * 2 + 2 * 40 * 8:,} " in done.stdout, "completions"
    assert "before a start: data set openai/gsm8k" in done.stdout
    assert "run `hf download openai/gsm8k" in done.stdout
    assert "assumed to have 4 billion parameters, because the name has no size: x/unnamed-size" in done.stdout
    del data["problems"]["evaluation"]["count"]
    path.write_text(yaml.safe_dump(data))
    refused = dry_run(path, **offline)
    assert refused.returncode != 0
    assert "data set openai/gsm8k" in refused.stderr


def test_a_dry_run_shows_a_conflict_with_a_started_run(tmp_path: Path) -> None:
    """A start would be refused, so the run is not new and the status is that of the start."""
    run_of(tmp_path, "arrays")
    path = tmp_path / "sweep.yaml"
    path.write_text(path.read_text() + "seed: 7\n")
    done = dry_run(path)
    assert done.returncode == 2
    assert "conflict: see below" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if "conflict: see below" in line]
    assert "new" not in row
    assert "seed: 42 -> 7" in done.stderr
    assert "cannot change" in done.stderr
