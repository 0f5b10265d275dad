"""Several evaluation sets in one run, through the real task graph: rows, tables, TensorBoard and report of each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from analysis.counts.load import load_run
from analysis.metrics.passk import PASS, pass_at_k_table
from analysis.report.report import write_report
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import EVALUATE, ROLLOUTS
from tests.support.harness import ROOT, flip_a_byte, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODELS = ("m0", "m1")


@pytest.fixture
def run(shared_runs: dict[str, Path]) -> Path:
    return shared_runs["sets"]


def evaluated(run: Path, iteration: int) -> pl.DataFrame:
    keys = [k for k in shards.published_keys(run, (EVALUATE,)) if k.iteration == iteration]
    return shards.read_tasks(run, keys, ROLLOUTS)


def of_set(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    inside = pl.col("problem_id").str.starts_with(f"{name}/")
    return rows.filter(inside if name else ~pl.col("problem_id").str.contains("/"))


def test_every_set_has_its_own_samples_sampling_and_prompts(run: Path) -> None:
    from tokenizers import Tokenizer

    assert sum(k.iteration == 0 for k in shards.published_keys(run, (EVALUATE,))) == 2 * 4  # fourteen problems
    rows = evaluated(run, 1)
    for name, num_problems, samples, temperature in (("", 6, 2, 1.0), ("greedy", 6, 1, 0.0), ("long", 2, 3, 1.0)):
        own = of_set(rows, name)
        counts = own.group_by("model", "problem_id").agg(pl.len().alias("n"), pl.col("sample_index").max())
        assert counts.height == len(MODELS) * num_problems
        assert set(counts["n"]) == {samples}
        assert set(counts["sample_index"]) == {samples - 1}
        assert set(own["temperature"]) == {temperature}
    team = json.loads((run / "config.json").read_text())["team"]
    tokenizer = Tokenizer.from_file(str(Path(team[0]["model"]) / "tokenizer.json"))
    texts = {
        name: [tokenizer.decode(ids) for ids in of_set(rows, name).filter(pl.col("model") == "m0")["prompt_token_ids"]]
        for name in ("", "greedy", "long")
    }
    assert set(texts[""]) == set(texts["greedy"])
    assert all("Write only the sum." in text for text in texts["long"])
    assert not any("Write only the sum." in text for text in texts[""])


def test_the_main_set_is_that_of_a_run_without_further_sets(shared_runs: dict[str, Path]) -> None:
    """Whatever the size of the tasks, in which the two runs differ."""
    for iteration in (0, 1):
        order = ["model", "problem_id", "sample_index"]
        rows, expected = (
            evaluated(shared_runs[label], iteration).drop("run_id").sort(order) for label in ("sets", "plain")
        )
        assert of_set(rows, "").equals(expected)


def test_tables_are_of_one_set_each(run: Path) -> None:
    data, rows = load_run(run), evaluated(run, 1)
    assert list(data.sets) == ["greedy", "long"]
    for name, own in (("", data), *data.sets.items()):
        table = pass_at_k_table(own.counts, ks=[1], models=own.models)
        table = table.filter(pl.col("measure") == PASS, pl.col("iteration") == 1)
        expected = of_set(rows, name).group_by("model").agg(pl.col("correct").mean()).rows()
        assert dict(table.select("model", "estimate").rows()) == pytest.approx(dict(expected))
        assert own.num_samples == {"": 2, "greedy": 1, "long": 3}[name]


def test_the_command_line_chooses_a_set(run: Path) -> None:
    found = {}
    for name in ("", "greedy", "nothing"):
        choice = ["--set", name] if name else []
        command = [sys.executable, "-m", "analysis", "passk", str(run), "--k", "1", "--format", "csv", *choice]
        found[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found["greedy"].returncode == found[""].returncode == 0, found["greedy"].stderr
    assert f"{run.name}, set greedy" in found["greedy"].stdout.replace('"', "")
    assert found["greedy"].stdout != found[""].stdout
    assert found["nothing"].returncode == 2
    assert "has no such evaluation set, only greedy, long" in found["nothing"].stderr


def test_report_and_end_of_the_launch_show_every_set(run: Path, tmp_path: Path) -> None:
    printed = (run.parents[2] / "printed.txt").read_text()
    for name in ("greedy", "long"):
        assert f"tiny: sets, set {name}: held-out problems (percent)" in printed
    write_report(load_run(run), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Set greedy: Held-out problems" in text
    assert "problems of set long" in text
    assert {f"pass_{name}.csv" for name in ("greedy", "long")} <= {p.name for p in (tmp_path / "tables").iterdir()}


def test_tensorboard_has_curves_of_every_set(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "m0"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"1_evaluation/{name}pass/k1" for name in ("", "greedy/", "long/")} <= tags
    assert "1_evaluation/long/pass/k2" in tags
    assert "1_evaluation/greedy/pass/k2" not in tags
    rows = of_set(evaluated(run, 1), "long").filter(pl.col("model") == "m0")
    (point,) = [e.value for e in events.Scalars("1_evaluation/long/pass/k1") if e.step == 1]
    assert point == pytest.approx(float(rows["correct"].mean()))  # type: ignore[arg-type]


def test_a_damaged_shard_with_several_sets_is_made_again(run: Path, tmp_path: Path) -> None:
    """In a copy of the sweep."""
    before = evaluated(run, 1)
    damaged = Path(shutil.copytree(run.parent, tmp_path / "tiny")) / run.name
    (path,) = (damaged / "evaluate" / "iteration=0001").glob("m0-p001.*.parquet")
    sets = {problem.rpartition("/")[0] for problem in pl.read_parquet(path)["problem_id"]}
    assert sets == {"", "greedy"}, "the task must have problems of two sets"
    flip_a_byte(path)
    done = launch(run.parents[2] / "tiny.yaml", "--output", str(tmp_path), "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "will be made again" in done.stdout
    assert TaskKey(1, EVALUATE, "m0", 1) in shards.published_keys(damaged)
    assert evaluated(damaged, 1).equals(before)
