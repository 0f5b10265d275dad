"""The dry run: batch scripts of every shipped sweep with every profile, and estimated hours."""

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import yaml
from analysis.stats.uncertainty import of_differences
from core_hpc import launch
from core_hpc.common.errors import ConfigError
from core_hpc.controller import estimate, plan_checks
from core_hpc.controller.plan import make_plan, most_work, planned_arrays, planned_scripts
from core_hpc.controller.prepare import splits_of
from core_hpc.runs.bases import PROFILES
from core_hpc.runs.graph import Graph
from core_hpc.runs.sweep import Sweep, load_sweep
from core_hpc.store.paths import TaskKey
from tests.support.fake_slurm import publish, run_of
from tests.support.harness import ROOT
from tests.support.second_user import COLLEAGUE_UID
from tests.support.slurm_commands import FakeCommands

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
    done = dry_run(quickstart, "--full", "--cluster", "multi_node", "--output", str(out), PATH="/nonexistent")
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
        ConfigError,
        match=r"no profile 'absent'.*shipped profiles: devcluster, large_models, multi_node, one_node, preemptible",
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


def test_an_engine_on_several_gpus_needs_a_job_with_as_many(tmp_path: Path) -> None:
    """2 models x 5 chains x 2 GPUs x 4 h + 2 models x 3 updates x 4 GPUs x 4 h."""
    quickstart = ROOT / "yaml" / "quickstart.yaml"
    sweep = load_sweep(quickstart, profile="large_models")
    arrays = planned_arrays(sweep.cluster, graph_of(sweep))
    assert sum(a.gpu_hours for a in arrays) == 2 * 5 * 2 * 4 + 2 * 3 * 4 * 4
    script = next(s for what, s in planned_scripts(sweep, graph_of(sweep)).items() if what.startswith("generate"))
    assert "#SBATCH --gpus-per-node=2\n" in script
    assert "#SBATCH --ntasks-per-node=1\n" in script
    few = r"cluster: engine_gpus \(4\) must not exceed the GPUs of a job of slurm.generate \(2\)"
    with pytest.raises(ConfigError, match=few):
        load_sweep(quickstart, ["cluster.engine_gpus=4"], profile="large_models")
    few = r"engine_gpus \(8\) must not exceed the GPUs of a job of slurm.resident \(4\)"
    with pytest.raises(ConfigError, match=few):
        load_sweep(quickstart, ["cluster.engine_gpus=8"], profile="resident")
    with pytest.raises(ConfigError, match=r"only vllm can split a model, but gemma3 has engine: transformers"):
        load_sweep(quickstart, ["cluster.engine_gpus=2", "team.gemma3.engine=transformers"])


def test_ranks_must_fill_their_nodes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a multiple of slurm.update.nodes"):
        load_sweep(ROOT / "yaml" / "quickstart.yaml", ["cluster.update_ranks=3"], profile="multi_node")


def test_each_rank_of_an_update_needs_a_gpu_of_its_own() -> None:
    """Otherwise NCCL refuses two ranks on one GPU in every attempt, after the queue. Without GPUs they use cores."""
    quickstart = ROOT / "yaml" / "quickstart.yaml"
    few = r"update_ranks \(16\) must not exceed the 8 GPUs of an update \(slurm\.update\)"
    with pytest.raises(ConfigError, match=few):
        load_sweep(quickstart, ["cluster.update_ranks=16"], profile="multi_node")
    few = r"update_ranks \(8\) must not exceed the 4 GPUs of the resident job \(slurm\.resident\)"
    with pytest.raises(ConfigError, match=few):
        load_sweep(quickstart, ["cluster.update_ranks=8"], profile="resident")
    load_sweep(quickstart, ["cluster.update_ranks=8", "cluster.slurm.update.gpus_per_node=0"], profile="one_node")


def test_every_run_of_a_grid_is_checked_against_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"base: {ROOT}/yaml/quickstart.yaml\ngrid: {{protocol.problems_per_iteration: [24, 100]}}\n")
    refused = dry_run(path)
    assert refused.returncode != 0
    message = " ".join(refused.stderr.split())
    assert "protocol.problems_per_iteration is 100, but problems.train has 72 problems" in message


@pytest.mark.parametrize("smallest", [0, 1])
def test_tokens_and_hours_by_hand(tmp_path: Path, smallest: float) -> None:
    """Two models, 5 iterations of 8 problems, K = 3, K' = 2, two evaluations of 10 problems x 4.

    The smaller model, of half a billion parameters, may sample fewer tokens.
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
    _, tokens, _ = most_work(sweep.runs[0], graph_of(sweep), {"": 10})
    sampled = {"a": 5 * 8 * 5 * 100 + 2 * 10 * 4 * 200, "b": 5 * 8 * 5 * 50 + 2 * 10 * 4 * 200}
    assert tokens == sum(sampled.values())
    device = estimate.Device("d", sampling=10, training=8, source="", smallest=smallest)
    expected = Fraction(0)
    for billions, name, longest in ((Fraction(3), "a", 100), (Fraction(1, 2), "b", 50)):
        billions = max(billions, Fraction(smallest))
        hints, prompts = 5 * 8 * 2 * Fraction(3, 4) * 40, 5 * 8 * 2 * estimate.PROMPT_TOKENS
        trained = Fraction(1, 2) * (5 * 8 * 5 * longest + hints) + prompts
        expected += billions * (Fraction(sampled[name], 2) / 10 + trained / 8) / 3600
    assert estimate.hours(sweep.runs[0].config, {"": 2 * 10}, 0.5, device) == pytest.approx(float(expected))


def test_with_hacpo_every_model_also_trains_on_the_cold_completions_of_its_peers() -> None:
    independent, hacpo, _ = load_sweep(ROOT / "yaml" / "ablations" / "hacpo.yaml").runs
    config = hacpo.config
    share, num = 0.5, config.iterations * config.protocol.problems_per_iteration * config.protocol.cold_samples
    for model in config.team:
        own = config.sampling_of(model, "cold").max_new_tokens
        peers = [min(own, config.sampling_of(p, "cold").max_new_tokens) for p in config.team if p.name != model.name]
        (sampled, trained), (_, without) = (
            estimate.tokens_of(c, model, {}, share) for c in (config, independent.config)
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
    done = dry_run(path, "--full", **offline)
    assert done.returncode == 0, done.stderr
    assert f" {2 * 32 * 2 + 2 * 40 * 8:,} " in done.stdout, "completions"
    assert "before a start: data set openai/gsm8k" in done.stdout
    assert "run `hf download openai/gsm8k" in done.stdout
    assert "assumed to have 4 billion parameters, because the name has no size: x/unnamed-size" in done.stdout
    warmup = {"problems": data["problems"]["train"]}
    made = {split: {"source": "generated", "count": 40} for split in ("train", "evaluation")}
    path.write_text(yaml.safe_dump({**data, "problems": made, "team": [{**data["team"][0], "warmup": warmup}]}))
    done = dry_run(path, **offline)
    assert done.returncode == 0, done.stderr
    assert "before a start: team.0.warmup: data set openai/gsm8k" in done.stdout
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


# --- what is printed -----------------------------------------------------------------------------


def small_sweep(tmp_path: Path, **changes: Any) -> Path:
    """Two models that a start can use, in folders that look like models."""
    team = [{"name": name, "model": model_folder(tmp_path / name), "engine": "fake"} for name in ("a", "b")]
    problems = {split: {"source": "generated", "count": 32} for split in ("train", "evaluation")}
    data: dict[str, Any] = {
        "name": "s",
        "iterations": 2,
        "team": team,
        "problems": problems,
        "protocol": {"hint_tokens": 100, "sampling": {"max_new_tokens": 100}},
        "evaluation": {"sampling": {"max_new_tokens": 100}},
        "reward": {"distance": {"embedder": "fake:hashing"}},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**data, **changes}))
    return path


def model_folder(folder: Path, context_tokens: int = 512) -> str:
    """A folder with the files of a model: one token per word."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context_tokens}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_it_is_short_by_default(tmp_path: Path) -> None:
    """A grid of 40 runs: one range of hours, one script, and no configuration."""
    path = small_sweep(tmp_path, grid={"seed": list(range(40))})
    short, full = (dry_run(path, "--cluster", "one_node", *more).stdout for more in ((), ("--full",)))
    assert len(short.splitlines()) < 70 < 400 < len(full.splitlines())
    assert short.count("GPU-hours: ") == 1
    assert (short.count("#SBATCH --array"), full.count("#SBATCH --array")) == (1, 2)
    assert "... and 28 more runs (all of them: --full)" in short
    assert '"iterations": 2' not in short
    assert '"iterations": 2' in full
    assert full.count("job arrays of seed-") == 40


def test_the_dry_run_names_the_runs_that_sample_with_older_weights(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    assert "staleness" not in dry_run(path).stdout
    printed = dry_run(path, "--set", "protocol.staleness=1").stdout
    assert "protocol.staleness: 1: an iteration is sampled with the weights before the last update" in printed
    grid = small_sweep(tmp_path, grid={"protocol.staleness": [0, 1], "seed": [1, 2]})
    assert "protocol.staleness: 1 (2 of 4 runs): an iteration is sampled" in dry_run(grid).stdout


def test_the_range_of_hours_is_that_of_the_estimate(tmp_path: Path) -> None:
    sweep = load_sweep(small_sweep(tmp_path, grid={"seed": [1, 2]}), profile="one_node")
    hours = make_plan(sweep).hours
    device = estimate.DEVICES[0]
    alone = [estimate.hours(sweep.runs[0].config, {"": 2 * 32}, share, device) for share in (0.1, 1.0)]
    assert [hours.low, hours.high] == pytest.approx([2 * one for one in alone])
    assert (hours.device, hours.unit) == ("H100", "GPU-hours")
    arrays = planned_arrays(sweep.runs[0].config.cluster, graph_of(sweep))
    assert hours.limit == pytest.approx(2 * sum(a.gpu_hours for a in arrays))


def test_jobs_that_are_too_short_for_the_work_are_named(tmp_path: Path) -> None:
    long = {"max_new_tokens": 30_000}
    path = small_sweep(tmp_path, protocol={"hint_tokens": 10, "sampling": long}, evaluation={"sampling": long})
    for name in ("a", "b"):
        model_folder(tmp_path / name, 100_000)
    options = ("--cluster", "one_node", "--set", "cluster.slurm.time_min=1", "--set", "cluster.slurm.update.time_min=1")
    found = dry_run(path, *options).stdout
    assert "Long completions would not fit into them: raise time_min" in found
    assert "would not fit" not in dry_run(path, "--cluster", "one_node").stdout


def test_json_has_everything(tmp_path: Path) -> None:
    path = small_sweep(tmp_path, grid={"seed": [1, 2]})
    done = dry_run(path, "--json", "--cluster", "one_node")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    plan = make_plan(load_sweep(path, profile="one_node"))
    assert [run["run_id"] for run in found["runs"]] == [run.run_id for run in plan.runs]
    assert found["runs"][0]["completions"] == (2 * 32 * 3 + 2 * 32 * 8) * 2
    assert set(found["hours"]) == {"device", "unit", "low", "high", "limit"}
    assert found["config"]["protocol"]["hint_tokens"] == 100
    assert len(found["scripts"]) == 3
    assert found["comparison"] is None


@pytest.mark.parametrize("option", ["--full", "--json"])
def test_options_of_a_dry_run_need_one(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([str(small_sweep(tmp_path)), option]) == 2
    assert f"{option} needs --dry-run" in capsys.readouterr().err


REFUSED = "allocation failure: Invalid qos specification"


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (REFUSED, 2, "a start is refused: SLURM would refuse these jobs"),
        (
            "allocation failure: Unspecified error",
            0,
            "before a start: cluster.slurm, jobs of `generate`: Unspecified error",
        ),
        ("sbatch: fatal: Could not establish a configuration source", 0, ""),
        ("", 0, ""),
    ],
)
def test_a_dry_run_has_the_answer_of_slurm(
    error: str, status: int, shown: str, fake: FakeCommands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where this machine belongs to a cluster. A start with this answer ends with the same status."""
    fake.command("sbatch", error=f"{error}\n", status=1 if error else 0)
    fake.command("sinfo", body="case \"$*\" in *-N*) echo 'n1|idle';; *) echo 'gpu|gpu:4|8|1024';; esac")
    fake.command("scontrol", "PartitionName=gpu State=UP\n")
    path = small_sweep(tmp_path)
    assert launch.main([str(path), "--dry-run", "--cluster", "one_node"]) == status
    out = capsys.readouterr().out
    assert shown in out
    assert ("Invalid qos" in out) == (error == REFUSED)
    assert set(fake.calls("sbatch")) == {"--test-only"}
    launch.main([str(path), "--dry-run", "--json", "--cluster", "one_node"])
    found = json.loads(capsys.readouterr().out)["checks"]
    assert any(check["refuses"] for check in found) == (status == 2)
    assert launch.main([str(path), "--dry-run", "--driver", "local"]) == 0


# --- what is checked -----------------------------------------------------------------------------


def checks(path: Path, *overrides: str, profile: str | None = None) -> dict[str, bool]:
    return {check.what: check.refuses for check in make_plan(load_sweep(path, overrides, profile=profile)).checks}


def test_a_sweep_that_fits_has_no_findings(tmp_path: Path) -> None:
    assert checks(small_sweep(tmp_path)) == {}


def test_model_folders_are_checked(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    (tmp_path / "a" / "model.safetensors").unlink()
    absent = "./absent"
    found = checks(path, f"team.b.model={absent}")
    assert list(found.values()) == [True, True]
    incomplete, missing = found
    assert "team.0 (a): " in incomplete
    assert "weights (*.safetensors)" in incomplete
    assert "team.1 (b): model ./absent: there is no such folder" in missing
    done = dry_run(path)
    assert done.returncode == 2
    assert "a start is refused: team.0 (a): " in done.stdout


def test_a_model_of_the_hub_that_is_not_here_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (message,) = (found := checks(small_sweep(tmp_path), "team.b.model=owner/model"))
    assert not found[message]
    assert "hf download owner/model" in message


def test_the_context_length_is_checked_with_the_longest_question(tmp_path: Path) -> None:
    """One token per word: the bound is exact up to the parts of the prompt that it leaves out."""
    path = small_sweep(tmp_path)
    splits = splits_of(load_sweep(path).runs[0])
    instruction = load_sweep(path).runs[0].config.problems.instruction
    longest = max(len(f"{q} {instruction}".split()) for q in splits.train["question"])
    for name in ("a", "b"):
        model_folder(tmp_path / name, longest + 200)
    assert checks(path) == {}
    model_folder(tmp_path / "a", longest + 199)
    (message,) = (found := checks(path))
    assert found[message]
    assert f"team.0 (a): needs at least {longest + 200} tokens of context" in message
    assert f"but the model has {longest + 199}" in message
    (message,) = checks(path, "team.0.model=" + str(tmp_path / "b"), "team.1.max_context_tokens=150")
    assert "but max_context_tokens has 150" in message
    (message,) = checks(path, "team.0.model=" + str(tmp_path / "b"), "team.1.max_context_tokens=10000")
    assert f"team.1 (b): max_context_tokens is 10000, but the model has {longest + 200} tokens of context" in message


def test_a_run_that_only_evaluates_needs_no_embedder_and_no_room_for_hints(tmp_path: Path) -> None:
    """As a start, which looks at neither."""
    problems = {"train": {"source": "none"}, "evaluation": {"source": "generated", "count": 32}}
    changes = {"iterations": 0, "reward": {"distance": {"embedder": str(tmp_path / "absent")}}}
    path = small_sweep(tmp_path, problems=problems, protocol={"hint_tokens": 10_000}, **changes)
    assert checks(path) == {}
    found = checks(path, "evaluation.sampling.max_new_tokens=512")
    assert list(found.values()) == [True, True]
    assert all("tokens of context (evaluation " in w and "hint" not in w for w in found)


def test_each_set_of_the_evaluation_has_its_own_questions_and_tokens(tmp_path: Path) -> None:
    """The longest question of the set plus the most new tokens of the main set would not fit."""
    question = {"id": "long", "question": "word " * 300 + "?", "answer": "1"}
    (tmp_path / "long.jsonl").write_text(json.dumps(question))
    problems = {"source": "jsonl", "path": str(tmp_path / "long.jsonl")}
    own = {"name": "long", "problems": problems, "sampling": {"max_new_tokens": 20}, "instruction": "one two three"}
    path = small_sweep(tmp_path, evaluation={"sampling": {"max_new_tokens": 300}, "sets": [own]})
    assert checks(path) == {}
    most = 512 - 301 - 3
    assert checks(path, f"evaluation.sets.long.sampling.max_new_tokens={most}") == {}
    found = checks(path, f"evaluation.sets.long.sampling.max_new_tokens={most + 1}")
    assert list(found.values()) == [True, True]
    assert all("needs at least 513 tokens of context" in w and f"evaluation 304 + {most + 1}" in w for w in found)


def test_a_rescue_phase_that_samples_nothing_is_reported(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    alone = "team=[{name: a, model: %s}]" % (tmp_path / "a")
    (found,) = checks(path, alone).items()
    assert found[0].startswith("a team of one model has no peer that gives hints, so its rescue phase samples nothing")
    assert not found[1]
    assert checks(path, alone, "protocol.even_budget=true") == checks(path, alone, "protocol.rescue_samples=0") == {}


def test_completions_that_are_equal_are_reported(tmp_path: Path) -> None:
    path, greedy = small_sweep(tmp_path), "protocol.sampling.temperature=0"
    found = checks(path, greedy, "protocol.cold_samples=2", "team.b.sampling.temperature=0.5")
    assert found == {
        "a samples at temperature 0, so its 2 completions of a problem are equal; set "
        "protocol.sampling.temperature above 0": False
    }
    assert checks(path, greedy, "protocol.cold_samples=1") == {}


def test_an_embedder_that_a_start_downloads_is_reported(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    (found,) = checks(path, "reward.distance.embedder=nobody/embedder").items()
    assert found[0].startswith("embedder nobody/embedder is not in the local cache of the hub; a start downloads it")
    assert not found[1]
    (found,) = checks(path, f"reward.distance.embedder={tmp_path}").items()
    assert "no modules.json" in found[0]
    assert found[1]


def test_what_runs_share_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs of two models with the same problems: one embedder, two tokenizers, two splits for each."""
    sweep = load_sweep(small_sweep(tmp_path, grid={"seed": [1, 2, 3, 4]}))
    embedders: list[str] = []
    loaded: list[str] = []
    encoded: list[int] = []

    class Counting:
        def __init__(self, path: str) -> None:
            loaded.append(path)
            self.encode = tokenizers.Tokenizer.from_file(path).encode_batch

        def encode_batch(self, texts: list[str], *, add_special_tokens: bool) -> list[tokenizers.Encoding]:
            encoded.append(len(texts))
            return self.encode(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(plan_checks, "load_fast_tokenizer", lambda folder: Counting(str(folder / "tokenizer.json")))
    monkeypatch.setattr(plan_checks, "missing_embedder", embedders.append)
    assert make_plan(sweep).checks == ()
    assert embedders == ["fake:hashing"]
    assert sorted(loaded) == [str(tmp_path / name / "tokenizer.json") for name in ("a", "b")]
    assert encoded == [32] * 4


@pytest.mark.parametrize(
    ("profile", "overrides", "expected"),
    [
        (
            "one_node",
            ["update_ranks=2"],
            "2 rank(s) (cluster.update_ranks) and 4 GPU(s) (slurm.update): the others",
        ),
        ("one_node", ["slurm.generate.gpus_per_node=2"], "slurm.generate asks for 2 GPUs, but an engine uses one"),
        (
            "large_models",
            ["slurm.generate.gpus_per_node=4"],
            "slurm.generate asks for 4 GPUs, but an engine uses 2 (cluster.engine_gpus); the others are idle. Set "
            "slurm.generate.gpus_per_node to 2",
        ),
        ("large_models", [], None),
        ("one_node", ["slurm.gpus_per_node=0", "slurm.update.gpus_per_node=0"], "the jobs ask for no GPU"),
        ("multi_node", [], None),
        ("one_node", [], None),
    ],
)
def test_numbers_of_gpus_are_checked(profile: str, overrides: list[str], expected: str | None, tmp_path: Path) -> None:
    found = checks(small_sweep(tmp_path), *(f"cluster.{o}" for o in overrides), profile=profile)
    assert len(found) == (expected is not None)
    assert all(expected is not None and expected in what for what in found)


# --- the declared comparison ---------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_dry_run_prints_what_the_declared_comparison_can_find(seeds: int, tmp_path: Path) -> None:
    """Against 400 drawn comparisons with the assumed variances; the standard error of the power is 2 %."""
    runs = [
        {"label": f"{arm}-seed-{seed}", "seed": seed, "protocol.hint_probability": probability}
        for arm, probability in (("core", 0.75), ("plain", 0))
        for seed in range(seeds)
    ]
    primary = {"arms": ["core", "plain"], "metric": "team_pass@2"}
    plan = make_plan(load_sweep(small_sweep(tmp_path, runs=runs, analysis={"primary": primary})))
    assert plan.comparison is not None
    assert (plan.comparison.seeds, plan.comparison.problems, plan.comparison.samples) == (seeds, 32, 8)
    deviations = [(2 * 0.7 * 0.25 * (1 - 0.9)) ** 0.5, 0.01 * 2**0.5 if seeds > 1 else 0.0, (2 * 0.3 * 0.25 / 8) ** 0.5]
    shapes = [(400, 1, 32), (400, seeds, 1), (400, seeds, 32)]
    rng = np.random.default_rng(seeds)
    studies = sum(rng.normal(0, *drawn) for drawn in zip(deviations, shapes, strict=True)) + plan.comparison.detectable
    found = np.mean([of_differences(study).interval()[0] > 0 for study in studies])
    assert found == pytest.approx(0.8, abs=0.06)
    done = dry_run(tmp_path / "sweep.yaml")
    assert f"finds a difference of {100 * plan.comparison.detectable:.1f} points with 80% power" in done.stdout
    assert ("One seed per arm shows nothing about other seeds" in done.stdout) == (seeds == 1)
    assert json.loads(dry_run(tmp_path / "sweep.yaml", "--json").stdout)["comparison"]["seeds"] == seeds


def test_a_sweep_that_is_no_arm_of_the_declared_comparison_has_nothing_to_find() -> None:
    """The arm of tier1.yaml itself is `core`; it declares the comparison of two files beside it."""
    assert make_plan(load_sweep(ROOT / "yaml" / "teaching" / "tier1.yaml")).comparison is None
    plan = make_plan(load_sweep(ROOT / "yaml" / "teaching" / "tier1_teach.yaml"))
    assert plan.comparison is not None
    assert (plan.comparison.seeds, plan.comparison.other_file) == (5, "independent")


def test_a_dry_run_finds_what_a_start_refuses_about_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = run_of(tmp_path, "arrays"), tmp_path / "sweep.yaml"

    def refusals(*overrides: str) -> str:
        return "\n".join(what for what, refuses in checks(path, *overrides).items() if refuses)

    assert str(tmp_path) not in refusals()
    publish(run, TaskKey(2, "update", "a"))
    assert "but iteration 2 is trained" in refusals("iterations=1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # tests may run as root, which may write everywhere
        assert f"{run.root.parent}: no permission to write here" in refusals()
    if os.geteuid() == 0:
        os.chown(run.root.parent, COLLEAGUE_UID, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: COLLEAGUE_UID)
    assert "Only its owner can continue this sweep" in refusals()
