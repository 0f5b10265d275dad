"""`protocol.choose: pass_rate` through a whole run that is killed, damaged and continued."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import polars as pl
import pytest

from analysis.counts.load import load_run, problems_of
from analysis.counts.tasks import count_tasks
from core_hpc.common.seeds import stable_seed
from core_hpc.runs.choice import Choice
from core_hpc.runs.folder import read_run_config
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, PROBLEMS, RESCUE, ROLLOUTS, SCORE
from tests.support.harness import differences, flip_a_byte, launch, launch_and_kill, the_run
from tests.support.shared_runs import CHOOSE
from tests.support.tiny import tiny_sweep

pytestmark = pytest.mark.slow
ITERATIONS, WANTED = 3, 4


@pytest.fixture
def run(shared_runs: dict[str, Path]) -> Path:
    return shared_runs["choose"]


def expected(run: Path) -> list[list[str]]:
    """The problems of each iteration, from the rollouts and a second implementation of the draw."""
    manifest = manifests.read_manifest(RunPaths(run).problems / "train.manifest.json")
    problems = shards.read_manifest_table(manifest, PROBLEMS)["problem_id"].to_list()
    rollouts = shards.read_rows(run, ROLLOUTS, phases=[COLD])
    rates: dict[str, float] = {}
    found = []
    for iteration in range(1, ITERATIONS + 1):
        stream = random.Random(stable_seed(7, "choose", iteration))
        waits = []
        for problem in problems:
            rate = rates.get(problem)
            weight = 1.0 if rate is None else max(0.1, 4 * rate * (1 - rate))
            waits.append((-math.log(1 - stream.random()) / weight, problem))
        found.append([problem for _, problem in sorted(waits)[:WANTED]])
        for problem in found[-1]:
            own = rollouts.filter((pl.col("iteration") == iteration) & (pl.col("problem_id") == problem))
            assert own.height == 4  # two models, two completions
            rates[problem] = sum(own["verdict"] == "correct") / 4
    assert len(set(rates.values())) > 1, "the rates decide about nothing"
    return found


def test_an_iteration_has_the_problems_that_earlier_pass_rates_choose(run: Path) -> None:
    chosen = expected(run)
    for phase in (COLD, RESCUE):
        rollouts = shards.read_rows(run, ROLLOUTS, phases=[phase])
        for iteration, problems in enumerate(chosen, start=1):
            own = set(rollouts.filter(pl.col("iteration") == iteration)["problem_id"])
            assert own == set(problems) if phase == COLD else own <= set(problems)
    assert read_run_config(run).protocol.choose == "pass_rate"


def test_the_analysis_expects_these_problems(run: Path) -> None:
    counts = load_run(run).counts
    assert counts.filter(pl.col("phase") == COLD)["n"].sum() == ITERATIONS * WANTED * 4


def test_scores_are_read_once_and_in_their_order(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of a run are counted in several threads, and the rates of an iteration replace earlier ones."""
    read, pass_rates = [], Choice._pass_rates

    def slow(choice: Choice, iteration: int) -> dict[str, float]:
        read.append(iteration)
        time.sleep(0.2)
        return pass_rates(choice, iteration)

    monkeypatch.setattr(Choice, "_pass_rates", slow)
    config, keys = read_run_config(run), shards.published_keys(run, [COLD])
    counted, left_out = count_tasks(run, keys, problems_of(run, config), config, answers=False, lenient=False)
    assert left_out == []
    assert counted.counts.height == ITERATIONS * WANTED * 2
    assert read == list(range(1, ITERATIONS))


@pytest.mark.full(reason="test_damage.py damages scores of a running sweep, and test_kill.py kills one")
def test_a_killed_and_damaged_run_continues_with_the_same_problems(
    run: Path, tiny_models: list[Path], tmp_path: Path
) -> None:
    sweep = tiny_sweep(tmp_path / "tiny.yaml", tiny_models, tmp_path / "out", runs=[CHOOSE])

    def second_is_scored() -> bool:
        return any((tmp_path / "out" / "tiny").glob(f"*/{SCORE}/iteration=0002/*.manifest.json"))

    # The tasks of the third iteration, which read all scores, begin after the damage.
    assert launch_and_kill(sweep, second_is_scored, tmp_path / "log.txt")
    killed = the_run(tmp_path / "out" / "tiny")
    flip_a_byte(manifests.read_manifest(RunPaths(killed).task_manifest(TaskKey(1, SCORE, TEAM, 1))).file(".parquet"))
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checksum differs" in done.stdout + done.stderr
    assert differences(run, killed) == []
