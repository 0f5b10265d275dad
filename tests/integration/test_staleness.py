"""`protocol.staleness: 1`: which weights sample, what the update corrects, and what the guard sees.

Runs with the fake engine are compared with completions that are sampled again here, with the
adapter that an iteration must have. The guard has the real trainer, in a process of its own.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, PHASES, RESCUE, ROLLOUTS, STEPS, UPDATE
from tests.support.cluster import DevCluster
from tests.support.harness import differences, launch, launch_and_kill, leftovers, the_run
from tests.support.tiny import PROTOCOL, tiny_sweep

pytestmark = pytest.mark.slow
STALE = {**PROTOCOL, "even_budget": True, "staleness": 1}
ITERATIONS = 3
LIMIT = 0.02


def stale_sweep(folder: Path, models: list[Path], cluster: dict[str, Any] | None = None) -> Path:
    return tiny_sweep(
        folder / "tiny.yaml",
        models,
        folder / "out",
        iterations=ITERATIONS,
        protocol=STALE,
        cluster=cluster or {"num_running": 4, "threads": 1},
    )


# --- whole runs with the fake engine --------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second update, beside which iteration 3 samples, is killed once while it publishes.

    So what the tests below find also holds after a kill in the overlap.
    """
    folder = tmp_path_factory.mktemp("stale")
    fault = f"kill publish.data_in_place@/update/iteration=0002/:{folder / 'marker'}"
    done = launch(stale_sweep(folder, tiny_models), env={"CORE_HPC_FAULT": fault})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "marker").exists()
    return the_run(folder / "out" / "tiny")


def update_folder(run: Path, iteration: int, model: str) -> Path:
    return manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(iteration, UPDATE, model))).folder


def test_every_iteration_samples_with_the_weights_of_the_one_before_the_last(
    finished: Path, tiny_models: list[Path]
) -> None:
    """Every completion is sampled again with the adapter that an iteration must have, and with the newest one."""
    from core_hpc.engines import EngineSpec
    from core_hpc.engines.base import AdapterRef, GenerationRequest, SamplingSettings
    from core_hpc.engines.fake import FakeEngine

    sampling = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=48)
    num_distinguished = 0
    for model, base in (("m0", tiny_models[0]), ("m1", tiny_models[1])):
        engine = FakeEngine(EngineSpec(kind="fake", model_folder=base, max_context_tokens=1024))
        for iteration, sampler in ((1, 0), (2, 0), (3, 1)):
            tasks = [TaskKey(iteration, phase, model, part) for phase in (COLD, RESCUE) for part in (0, 1)]
            rows = shards.read_tasks(finished, tasks, ROLLOUTS)
            assert set(rows["phase"]) == {COLD, RESCUE}
            assert set(rows["adapter_iteration"]) == {sampler}
            requests = [GenerationRequest(tuple(p), s) for p, s in rows.select("prompt_token_ids", "seed").iter_rows()]
            found = {
                other: [
                    list(c.token_ids)
                    for c in engine.generate(
                        requests,
                        sampling,
                        adapter=AdapterRef(update_folder(finished, other, model), f"x-{other:04d}") if other else None,
                    )
                ]
                for other in {sampler, iteration - 1}
            }
            assert found[sampler] == rows["completion_token_ids"].to_list()
            num_distinguished += sampler != iteration - 1 and found[iteration - 1] != found[sampler]
    assert num_distinguished == 4  # the newest weights give other completions in iterations 2 and 3 of both models


def test_updates_follow_each_other_without_a_lag(finished: Path) -> None:
    """An update continues from the newest weights: those of the trainer, not those that sampled."""
    for model in ("m0", "m1"):
        steps = pl.concat(
            shards.read_manifest_table(
                manifests.read_manifest(RunPaths(finished).task_manifest(TaskKey(i, UPDATE, model))), STEPS
            )
            for i in range(1, ITERATIONS + 1)
        )
        assert steps["global_step"].to_list() == list(range(1, 2 * ITERATIONS + 1))


def test_iterations_overlap(finished: Path) -> None:
    """Some model begins to sample before the iteration before is updated, which never happens without staleness."""

    def at(iteration: int, phase: str) -> list[tuple[float, float]]:
        found = []
        for key in shards.published_keys(finished):
            if (key.iteration, key.phase) == (iteration, phase):
                manifest = manifests.read_manifest(RunPaths(finished).task_manifest(key))
                end = manifest.writer["time"]
                found.append((end - sum(manifest.stats["seconds"].values()), end))
        return found

    early = [min(a for a, _ in at(i, COLD)) < min(b for _, b in at(i - 1, UPDATE)) for i in range(2, ITERATIONS + 1)]
    assert all(early), early


def test_an_update_that_is_killed_in_the_overlap_leaves_nothing(finished: Path) -> None:
    assert leftovers(finished, PHASES) == []
    assert (finished.parents[2] / "marker").read_text().split()[0] not in {
        str(manifests.read_manifest(RunPaths(finished).task_manifest(TaskKey(2, UPDATE, model))).writer["pid"])
        for model in ("m0", "m1")
    }, "the update must have been made by another process"


@pytest.mark.full(reason="the usual run kills an update in the overlap, and test_kill.py the launcher")
def test_a_run_that_is_killed_in_the_overlap_ends_with_the_same_rows(
    finished: Path, tiny_models: list[Path], tmp_path: Path
) -> None:
    """The launcher is killed as well, twice, while models sample with older weights than the update trains."""
    sweep = stale_sweep(tmp_path, tiny_models)
    folder = tmp_path / "out" / "tiny"
    kills = [(1, "publish.before_manifest"), (2, "publish.data_in_place")]
    for number, (iteration, point) in enumerate(kills):
        marker = tmp_path / f"marker-{number}"
        fault = f"kill {point}@/update/iteration={iteration:04d}/:{marker}"

        def sampled_ahead(iteration: int = iteration, marker: Path = marker) -> bool:
            return marker.exists() and bool(list(folder.glob(f"*/cold/iteration={iteration + 1:04d}/*.manifest.json")))

        killed = launch_and_kill(sweep, sampled_ahead, tmp_path / "log", env={"CORE_HPC_FAULT": fault})
        assert marker.exists()
        assert killed
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(finished, the_run(folder)) == []
    assert leftovers(the_run(folder), PHASES) == []


@pytest.mark.timeout(1200)
@pytest.mark.full(reason="the usual run has one chained sweep, in tests/faults/test_chaos.py")
def test_chained_arrays_publish_what_the_local_driver_publishes(
    finished: Path, cluster: DevCluster, tiny_models: list[Path], tmp_path: Path
) -> None:
    job = {"cpus": 1, "mem_gb": 1.8, "time_min": 10, "poll_s": [0.3, 1], "lost_after_s": 15}
    slurm = {**job, "gpus_per_node": 1, "signal_delay_s": 15, "chain_wait_s": 60}
    sweep = stale_sweep(tmp_path, tiny_models, {"driver": "arrays", "threads": 1, "slurm": slurm})
    done = launch(sweep, env=cluster.environment(), timeout_s=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(finished, the_run(tmp_path / "out" / "tiny")) == []


# --- the guard, with the real trainer --------------------------------------------------------------


def _guard(model: Path, out: Path) -> None:
    """Two updates, and then one whose completions were sampled with the weights before the second."""
    from core_hpc.common.errors import MismatchError
    from core_hpc.config.model import LoraSection
    from core_hpc.config.update import UpdateSection
    from core_hpc.phases.behaviour import NUM_PROBED, check_behaviour, probed
    from core_hpc.training.batching import Row
    from core_hpc.training.task import TrainerSettings, UpdateTask
    from core_hpc.training.trainer import Trainer

    trainer = Trainer(TrainerSettings(model_folder=model, model_name="tiny", lora=LoraSection(rank=4), dtype="float32"))
    rows = [
        Row(
            key=(i,),
            problem_id=f"p{i // 4}",
            prompt_token_ids=[5 + i // 4, 6, 7],
            completion_token_ids=[(11 * i + 3 * n * n) % 90 + 2 for n in range(4 + i % 7)],
            behaviour_logprobs=None,
            advantage=(1.0, -0.5, -0.75, 0.25)[i % 4],
            weight=1.0,
        )
        for i in range(40)
    ]
    task = UpdateTask(
        rows=rows,
        settings=UpdateSection(learning_rate=0.02, problems_per_step=5, warmup_share=0, kl_weight=0),
        temperature=1.0,
        max_new_tokens=16,
        total_steps=6,
        shuffle_seed=1,
        lora_seed=2,
        previous=None,
        max_mismatch=LIMIT,
    )

    def sampled_with(folder: Path | None) -> list[list[float]]:
        return trainer.token_log_probs(replace(task, previous=folder))

    def with_engine(values: list[list[float]]) -> list[Row]:
        return [replace(row, behaviour_logprobs=own) for row, own in zip(rows, values, strict=True)]

    folders: list[Path] = []
    for number in (1, 2):
        folder = out / str(number)
        folder.mkdir()
        previous = folders[-1] if folders else None
        trainer.update(replace(task, rows=with_engine(sampled_with(previous)), previous=previous), folder)
        folders.append(folder)
    older, newest = folders
    behaviour, current, base = sampled_with(older), sampled_with(newest), sampled_with(None)

    def guard(values: list[list[float]], sampler: Path | None) -> str | float:
        try:
            of_task = replace(task, rows=with_engine(values), previous=newest)
            return check_behaviour(trainer, of_task, sampler=sampler, adapter=None, where="update")
        except MismatchError as e:
            return str(e)

    def update(values: list[list[float]], name: str, limit: float | None) -> str | list[dict[str, Any]]:
        folder = out / name
        folder.mkdir()
        try:
            of_task = replace(task, rows=with_engine(values), previous=newest, max_mismatch=limit)
            return trainer.update(of_task, folder).steps.to_dicts()
        except MismatchError as e:
            return str(e)

    found = {
        "steps": update(behaviour, "stale", None),
        "steps with the guard of the steps": update(behaviour, "guarded", LIMIT),
        "right": guard(behaviour, older),
        "right, start": guard(base, None),
        "newest": guard(current, older),
        "ignored": guard(base, older),
        "shifted": guard([[v - 0.03 for v in own] for own in behaviour], older),
        "behaviour": behaviour,
        "current": current,
        "num_probed": len(probed(with_engine(base))),
        "most": NUM_PROBED,
        "problems probed": sorted({row.problem_id for row in probed(with_engine(base))}),
    }
    (out / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(one_rank: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((one_rank / Path(__file__).name / "found.json").read_text())
    return read


def test_the_guard_does_not_see_the_update_in_between(found: dict[str, Any]) -> None:
    # The same completions stop the guard of an optimizer step, which compares the newest weights.
    assert "trainer and engine are not the same model" in found["steps with the guard of the steps"]
    assert found["right"] < 1e-5
    assert found["right, start"] < 1e-5


def test_the_guard_finds_an_engine_with_other_weights(found: dict[str, Any]) -> None:
    assert "not the same model" in found["newest"] or "ignore the adapter" in found["newest"]
    assert "the engine seems to ignore the adapter" in found["ignored"]
    assert "differ by 0.03 nats" in found["shifted"]


def test_the_guard_compares_a_few_completions_of_all_problems(found: dict[str, Any]) -> None:
    assert found["num_probed"] == found["most"] == 16
    assert found["problems probed"] == sorted(f"p{i}" for i in range(10))


def test_importance_weights_correct_the_difference_from_the_weights_that_sampled(found: dict[str, Any]) -> None:
    """Both steps: min(pi_old / mu, 2) with the newest weights as pi_old, by hand."""
    pairs = [
        (a, b)
        for new, old in zip(found["current"], found["behaviour"], strict=True)
        for a, b in zip(new, old, strict=True)
    ]
    weights = pl.Series([min(math.exp(a - b), 2.0) for a, b in pairs])
    differing = pl.Series([abs(a - b) for a, b in pairs])
    first, second = found["steps"]
    share = first["num_tokens"] / (first["num_tokens"] + second["num_tokens"])
    mean = share * first["importance_mean"] + (1 - share) * second["importance_mean"]
    assert mean == pytest.approx(weights.mean(), rel=1e-3)
    mismatch = share * first["mismatch_mean"] + (1 - share) * second["mismatch_mean"]
    assert mismatch == pytest.approx(differing.mean(), rel=1e-3)
    assert mismatch > LIMIT


if __name__ == "__main__":
    _guard(Path(sys.argv[1]), Path(sys.argv[2]))
