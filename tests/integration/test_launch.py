"""The launcher as a user sees it, with the fake engine on tiny random models and real updates."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.counts import cache
from analysis.counts.counts import ANSWER_KEYS, KEYS
from analysis.counts.load import load_run, problems_of
from analysis.counts.tasks import count_tasks
from core_hpc.common.errors import RunConflictError
from core_hpc.controller import samples
from core_hpc.controller.points import FINAL, GROUPS
from core_hpc.runs.folder import read_run_config
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, GENERATION_PHASES, HINTS, PHASES, RESCUE, ROLLOUTS, SCORES, STEPS
from tests.support.harness import (
    ROOT,
    differences,
    equal_content,
    launch,
    launched_and_held,
    leftovers,
    published_content,
    refused,
    the_run,
)
from tests.support.shared_runs import NUM_KILLED, NUM_ROLES
from tests.support.tiny import PROTOCOL, tiny_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(undisturbed_sweep: Callable[[int], Path]) -> Path:
    """The file of a finished sweep, to which other files compare their results as well."""
    return undisturbed_sweep(2)


@pytest.fixture(scope="module")
def finished(sweep: Path) -> tuple[Path, str]:
    """Return the folder of the finished sweep, and what its first start printed."""
    return sweep.parent / "out" / "tiny", sweep.with_name("printed.txt").read_text()


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the modification time and the size of every file."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


def test_it_prints_progress_results_and_the_next_commands(finished: tuple[Path, str]) -> None:
    _, printed = finished
    for expected in (
        "40 tasks",
        "completions (",
        "% truncated",
        "without an answer in the latest evaluation (percent)",
        " left",
        "Pass@1",
        "tensorboard --logdir",
        "python -m analysis report",
        "run folder:",
    ):
        assert expected in printed


def test_rows_are_complete_and_consistent(finished: tuple[Path, str]) -> None:
    run = the_run(finished[0])
    rollouts = shards.read_rows(run, ROLLOUTS, phases=GENERATION_PHASES)
    # iterations x models x problems x samples
    assert rollouts.filter(phase=COLD).height == 2 * 2 * 4 * 3
    assert rollouts.filter(phase="evaluate").height == 2 * 2 * 6 * 2
    assert rollouts["seed"].n_unique() == rollouts.height
    assert (rollouts["completion_token_ids"].list.len() == rollouts["logprobs"].list.len()).all()
    scores = shards.read_rows(run, SCORES, phases=["score"])
    assert scores.height == rollouts.filter(pl.col("phase").is_in([COLD, RESCUE])).height
    sums = scores.group_by("iteration", "problem_id").agg(pl.col("advantage").sum())["advantage"]
    assert (sums.abs() < 1e-9).all()
    # Both iterations belong to epoch 1.
    weights = {"exploit": 1.0, "explore": 0.2, "rescue": 0.15, "trace_accuracy": 0.2, "cross": 0.0}
    expected = sum(scores[part] * w for part, w in weights.items())
    assert ((scores["reward"] - expected).abs() < 1e-12).all()
    steps = shards.read_rows(run, STEPS, phases=["update"])
    assert steps.sort("model", "global_step")["global_step"].to_list() == [1, 2, 3, 4] * 2


def test_counts_are_kept_for_analysis(finished: tuple[Path, str]) -> None:
    run = the_run(finished[0])
    assert cache.iterations(run) == {0, 1, 2}
    fresh, _ = count_tasks(
        run,
        [k for k in shards.published_keys(run) if k.phase in GENERATION_PHASES],
        problems_of(run, None),
        read_run_config(run),
        answers=True,
        lenient=False,
    )
    data = load_run(run)
    for name, keys in (("counts", KEYS), ("answers", ANSWER_KEYS)):
        frame = getattr(fresh, name)
        assert getattr(data, name).select(frame.columns).sort(keys).equals(frame.sort(keys))


def test_rescue_follows_the_protocol(finished: tuple[Path, str]) -> None:
    run = the_run(finished[0])
    rollouts = shards.read_rows(run, ROLLOUTS, phases=[COLD, RESCUE])
    hints = shards.read_rows(run, HINTS, phases=["hint"])
    cold, rescue = rollouts.filter(phase=COLD), rollouts.filter(phase=RESCUE)
    assert rescue.height > 0, "the fake engine must leave some problems unsolved"
    for row in hints.iter_rows(named=True):
        here = cold.filter(iteration=row["iteration"], problem_id=row["problem_id"])
        own, peers = here.filter(model=row["model"]), here.filter(pl.col("model") != row["model"])
        assert row["cold_failed"] == (not own["correct"].any())
        expected = "solved" if own["correct"].any() else "rescue" if peers["correct"].any() else "no_teacher"
        assert row["reason"] in (expected, "no_hint" if expected == "rescue" else expected)
        again = rescue.filter(iteration=row["iteration"], problem_id=row["problem_id"], model=row["model"])
        assert again.height == (2 if row["reason"] == "rescue" else 0)
        assert again.sort("sample_index")["hint_given"].to_list() == row["hint_draws"]
        if row["reason"] == "rescue":
            assert row["teacher_model"] != row["model"]
            plain = own["prompt_token_ids"][0].to_list()
            for prompt, shown in again.select("prompt_token_ids", "hint_given").iter_rows():
                assert (prompt == plain) != shown


def test_second_start_changes_nothing(sweep: Path, finished: tuple[Path, str]) -> None:
    before = snapshot(finished[0])
    done = launch(sweep)
    assert done.returncode == 0
    assert "everything is done" in done.stdout
    assert snapshot(finished[0]) == before


def test_no_leftovers_and_no_base_weights(finished: tuple[Path, str]) -> None:
    run = the_run(finished[0])
    assert leftovers(run, PHASES) == []
    manifest = manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(2, "update", "m0")))
    names = sorted(f.name.rpartition("/")[2] for f in manifest.files)
    wanted = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "state.safetensors",
        "steps.parquet",
        "trainer_state.json",
    }
    assert wanted <= set(names)
    assert not any(n.endswith((".bin", ".pt", ".pkl")) for n in names)
    assert not [p for p in run.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_a_changed_learning_rate_is_an_error_that_names_it(sweep: Path, finished: tuple[Path, str]) -> None:
    before = snapshot(finished[0])
    done = refused("launch", sweep, "--set", "update.learning_rate=0.002")
    assert done.returncode == 2
    assert "update.learning_rate: 0.001 -> 0.002" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(finished[0]) == before


def test_tensorboard_has_each_point_once(finished: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = the_run(finished[0])
    events = {name: EventAccumulator(str(run / "tensorboard" / name)) for name in ("m0", "m1", "team")}
    for accumulator in events.values():
        accumulator.Reload()
    expected = {"4_reward/reward", "4_reward/explore", "2_learning/correct/cold", "1_evaluation/pass/k1"}
    expected |= {"4_reward/advantage/zero_signal_share", "5_health/length/truncated_share"}
    for name, accumulator in events.items():
        missing = expected - set(accumulator.Tags()["scalars"])
        assert not missing, (name, missing)
    assert {
        "2_learning/loss/kl",
        "5_health/mismatch/mean",
        "2_learning/policy/entropy",
        "6_time/speed/cold_tokens_per_s",
    } <= set(events["m1"].Tags()["scalars"])
    groups = {tag.partition("/")[0] for accumulator in events.values() for tag in accumulator.Tags()["scalars"]}
    assert groups == {*GROUPS, FINAL}
    assert [e.step for e in events["team"].Scalars("4_reward/reward")] == [1, 2]
    assert [e.step for e in events["m0"].Scalars("2_learning/loss/total")] == [1, 2, 3, 4]
    assert [e.step for e in events["m0"].Scalars("1_evaluation/pass/k1")] == [0, 2]
    assert [e.step for e in events["m0"].Tensors(samples.TAG)] == [0, 2]
    scores = shards.read_rows(run, SCORES, phases=["score"])
    means = scores.group_by("iteration").agg(pl.col("reward").mean()).sort("iteration")["reward"].to_list()
    assert [e.value for e in events["team"].Scalars("4_reward/reward")] == pytest.approx(means, abs=1e-6)


def test_a_finished_sweep_continues_with_more_iterations(
    sweep: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "tiny"
    shutil.copytree(finished[0], folder)
    before = published_content(the_run(folder))
    done = launch(sweep, "--set", "iterations=3", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    after = published_content(the_run(folder))
    assert [name for name in before if name not in after] == []
    for name, content in before.items():
        assert equal_content(content, after[name]), name
    new = {TaskKey.parse(name.split()[0]).iteration for name in after if name not in before}
    assert new == {3}
    assert json.loads((the_run(folder) / "horizon.json").read_text()) == [
        {"from_iteration": 1, "iterations": 2},
        {"from_iteration": 3, "iterations": 3},
    ]


def test_fewer_iterations_than_are_trained_are_refused(sweep: Path, finished: tuple[Path, str]) -> None:
    before = snapshot(finished[0])
    done = refused("launch", sweep, "--set", "iterations=1")
    assert done.returncode == RunConflictError.exit_code
    assert "iterations: 1, but iteration 2 is trained" in " ".join((done.stdout + done.stderr).split())
    assert snapshot(finished[0]) == before


@pytest.mark.full(reason="test_recorded_run.py repeats a sweep")
def test_the_same_sweep_in_another_folder_gives_the_same_results(
    sweep: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    """The parts of this run share an engine, and its completions depend on no other requests."""
    done = launch(
        sweep, "--output", str(tmp_path), "--set", "cluster.num_running=1", "--set", "cluster.parts_in_engine=3"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = the_run(tmp_path / "tiny")
    assert differences(the_run(finished[0]), run) == []
    first, second = (
        manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(0, EVALUATE, "m0", part))) for part in (0, 1)
    )
    assert first.writer["pid"] == second.writer["pid"]
    second_began = second.writer["time"] - sum(second.stats["seconds"].values())
    assert second_began < first.writer["time"], "the two parts did not share the engine"


@pytest.mark.full(reason="test_zero2.py and test_slurm_sweep.py train with two ranks")
def test_two_ranks_give_the_same_adapters_within_rounding(
    sweep: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    from safetensors.numpy import load

    done = launch(sweep, "--output", str(tmp_path), "--set", "cluster.update_ranks=2", "--set", "iterations=1")
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = published_content(the_run(finished[0])), published_content(the_run(tmp_path / "tiny"))
    name = "update/0001/m0/000 adapter_model.safetensors"
    first, second = load(one[name]), load(two[name])
    assert first.keys() == second.keys()
    assert max(abs(first[k] - second[k]).max() for k in first) < 1e-5
    largest = max(abs(v).max() for k, v in first.items() if "lora_B" in k)
    assert largest > 1e-4, "the update must change the adapter"


ONE_MODEL: dict[str, Any] = {
    "iterations": 1,
    "protocol": {**PROTOCOL, "rescue_samples": 0},
    "evaluation": {"samples": 1, "every": 0, "before": False, "sampling": {"max_new_tokens": 48}},
    "cluster": {"num_running": 1, "threads": 1},
}
"""Sections of a run of one model that begins with its cold task, so that only one worker starts."""


def test_a_second_launcher_names_the_process_of_the_first(tiny_models: list[Path], tmp_path: Path) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models[:1], tmp_path / "out", **ONE_MODEL)
    with launched_and_held(sweep, "task.started@cold/0001/m0", tmp_path / "hold", env={}) as first:
        second = launch(sweep)
        assert second.returncode == 3
        assert f"process {first.pid}" in second.stderr
        first.terminate()
        assert first.wait(30) == 130
        assert not (tmp_path / "out" / "tiny" / "claim.json").exists()


def test_a_task_that_keeps_failing_stops_its_run_with_the_traceback(tiny_models: list[Path], tmp_path: Path) -> None:
    import shutil

    models = [shutil.copytree(m, tmp_path / m.name) for m in tiny_models[:1]]
    sweep = tiny_sweep(tmp_path / "tiny.yaml", models, tmp_path / "out", **ONE_MODEL)
    fault = {"CORE_HPC_FAULT": f"kill publish.started@/cold/:{tmp_path / 'marker'}"}
    kill = launch(sweep, "--set", "cluster.max_attempts=1", env=fault)
    assert kill.returncode == 1
    assert "signal SIGKILL" in kill.stdout
    assert "log:" in kill.stdout
    # Files that changed under the same path are an error; they are not used.
    (models[0] / "tokenizer.json").write_text("{}")
    altered = launch(sweep, "--set", "cluster.max_attempts=1")
    assert altered.returncode == 1
    assert "are not those of the run" in altered.stdout


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"team.m0.model": "/no/such/folder", "team.m1.lora.targets": "[qqq_proj]"}, ["team.0 (m0)", "qqq_proj"]),
        ({"protocol.hint_tokens": 5000}, ["of context"]),
        ({"protocol.problems_per_iteration": 99}, ["problems.train has 8"]),
        ({"output": "/dev/null/nothing"}, ["is a file"]),
    ],
)
def test_bad_input_creates_nothing(
    tiny_models: list[Path], tmp_path: Path, changes: dict[str, object], expected: list[str]
) -> None:
    """Mistakes of several models are listed together."""
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out")
    overrides = [argument for path, value in changes.items() for argument in ("--set", f"{path}={value}")]
    done = refused("launch", sweep, *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert [text for text in expected if text not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [sweep]


def test_dry_run_creates_nothing_and_imports_no_large_package(tiny_models: list[Path], tmp_path: Path) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out")
    code = (
        "import sys; from core_hpc.launch import main; status = main([sys.argv[1], '--dry-run']); "
        "heavy = {'torch', 'transformers', 'vllm', 'deepspeed', 'peft', 'submitit', 'tensorboard'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sweep)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "40" in done.stdout
    assert list(tmp_path.iterdir()) == [sweep]


def test_the_runs_of_a_sweep_share_their_workers(shared_runs: dict[str, Path]) -> None:
    """`tests/faults` and `test_recorded_run.py` compare results of these runs with those of the same runs alone."""
    workers = {
        manifests.read_manifest(RunPaths(run).task_manifest(key)).writer["pid"]
        for run in shared_runs.values()
        for key in shards.published_keys(run)
    }
    assert len(workers) == NUM_ROLES + NUM_KILLED, "there must be one worker per role, shared by the runs"
