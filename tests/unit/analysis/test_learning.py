"""Learning curves against areas in plain Python, and their intervals against simulated runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.__main__ import main
from analysis.counts.load import RunData
from analysis.metrics.learning import learning_report, learning_table
from analysis.stats.crossed import crossed_mean, mean_variance
from core_hpc.common.errors import InputError
from tests.support.analysis_data import config, counts_frame, pick
from tests.support.report_data import full_run
from tests.support.source_groups import grouped

Counts = dict[int, Any]  # iteration -> (M, P) correct of 4


def run(seed: int, correct: Counts, **changes: Any) -> RunData:
    counts = pl.concat(counts_frame(4, c, iteration=i) for i, c in correct.items())
    return RunData(Path(f"run-{seed}"), config(seed=seed, **changes), ["ada", "bob"], counts, pl.DataFrame())


def test_area_is_the_trapezoid_of_the_levels() -> None:
    rng = np.random.default_rng(1)
    seeds = {s: {i: rng.integers(0, 5, (2, 30)) for i in (0, 2, 8)} for s in (1, 2, 3)}
    frame = learning_table([run(s, c) for s, c in seeds.items()], ks=[1])
    areas, gains = [], []
    for s, curve in seeds.items():
        levels = {i: float((c[0] / 4).mean()) for i, c in curve.items()}
        for i, level in levels.items():
            at = {"seed": str(s), "measure": "pass", "model": "ada", "iteration": i}
            assert pick(frame, **at)["estimate"] == pytest.approx(level)
        areas.append(((levels[0] + levels[2]) / 2 * 2 + (levels[2] + levels[8]) / 2 * 6) / 8)
        gains.append(areas[-1] - levels[0])
        for figure, value in (("area", areas[-1]), ("area_gain", gains[-1])):
            row = pick(frame, seed=str(s), measure="pass", model="ada", figure=figure)
            assert row["estimate"] == pytest.approx(value)
            assert row["low"] < row["estimate"] < row["high"]
    mean = pick(frame, seed="mean", measure="pass", model="ada", figure="area_gain")
    assert mean["estimate"] == pytest.approx(np.mean(gains))
    assert (mean["seed_min"], mean["seed_max"]) == (pytest.approx(min(gains)), pytest.approx(max(gains)))
    assert mean["num_seeds"] == 3
    team = pick(frame, seed="1", measure="team_pass", model="team", iteration=2)
    expected = 1 - np.prod(1 - seeds[1][2] / 4, axis=0).mean()
    assert team["estimate"] == pytest.approx(expected)


def test_one_run_and_one_evaluation() -> None:
    curve = {i: np.full((2, 20), [[1], [2]]) + (np.arange(20) % 2) for i in (1, 3)}
    frame = learning_table([run(1, curve)], ks=[1])
    assert "mean" not in set(frame["seed"])
    assert set(frame["figure"]) == {"level", "area"}  # without untrained models there is no gain
    one = learning_table([run(1, {0: curve[1]})], ks=[1])
    assert set(one["figure"]) == {"level"}
    nothing = RunData(Path("r"), config(), ["ada", "bob"], counts_frame(4, curve[1]).clear(), pl.DataFrame())
    assert learning_table([nothing], ks=[1]).height == 0
    assert learning_report(learning_table([nothing], ks=[1])).shown.height == 0


def test_problems_and_evaluations_that_not_all_seeds_have_are_left_out() -> None:
    rng = np.random.default_rng(2)
    whole = {i: rng.integers(0, 5, (2, 12)) for i in (0, 1, 2)}
    part = {i: c[:, :10] for i, c in whole.items() if i != 1}
    frame = learning_table([run(1, whole), run(2, part)], ks=[1])
    assert frame["iteration"].drop_nulls().unique().to_list() == [0, 2]
    row = pick(frame, seed="mean", measure="pass", model="ada", iteration=2)
    assert row["estimate"] == pytest.approx((whole[2][0, :10] / 4).mean())
    assert row["num_problems"] == 10
    assert "2 problems left out" in row["note"]
    assert "evaluations that some seed does not have" in row["note"]
    with pytest.raises(InputError, match="not one configuration"):
        learning_table([run(1, whole), run(2, whole, protocol={"hint_probability": 0.5})], ks=[1])


def test_report_shows_mean_interval_and_range() -> None:
    rng = np.random.default_rng(3)
    frame = learning_table([run(s, {i: rng.integers(0, 5, (2, 40)) for i in (0, 5)}) for s in (1, 2)], ks=[1])
    table = learning_report(frame)
    row = table.shown.row(0, named=True)
    level = pick(frame, seed="mean", measure="pass", model="ada", iteration=5)
    assert row["iteration 5"].startswith(f"{100 * level['estimate']:.1f} [{100 * level['low']:.1f}, ")
    assert "2 seeds, interval over seeds and problems" in " ".join(table.notes)
    assert table.shown.columns == ["k", "model", "measure", "untrained", "iteration 5", "area", "area gain"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(full_run(tmp_path / sweep / "run-1").parent) for sweep in ("one", "two")]
    assert main(["learning", *folders, "--k", "1", "--format", "csv"]) == 0
    frame = pl.read_csv(capsys.readouterr().out.encode())
    assert frame["arm"].unique(maintain_order=True).to_list() == ["one", "two"]
    row = pick(frame.filter(arm="one"), figure="area", measure="pass", model="ada")
    assert row["estimate"] == pytest.approx((5 / 12 + 8 / 12) / 2)
    assert main(["learning", *folders, "--format", "latex"]) == 0
    assert "area gain" in capsys.readouterr().out


def test_two_folders_with_the_same_name_are_two_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(full_run(tmp_path / where / "x" / "main" / "run-1").parent) for where in ("one", "two")]
    folders.append(str(full_run(tmp_path / "grid" / "run-1").parent))
    assert main(["learning", *folders, "--k", "1", "--format", "csv"]) == 0
    frame = pl.read_csv(capsys.readouterr().out.encode())
    assert frame["arm"].unique(maintain_order=True).to_list() == ["one/x/main", "two/x/main", "grid"]
    assert frame["arm"].value_counts()["count"].n_unique() == 1


# --- the interval over seeds and problems --------------------------------------------------------


def test_parts_of_the_variance_are_those_of_the_analysis_of_variance() -> None:
    values = np.random.default_rng(4).normal(size=(4, 25))
    of_seeds = 25 * values.mean(axis=1).var(ddof=1)  # mean squares
    of_problems = 4 * values.mean(axis=0).var(ddof=1)
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    of_both = (rest**2).sum() / (3 * 24)
    found = mean_variance(values)
    assert (found.problems, found.seeds, found.both) == (
        pytest.approx(of_problems / 100),
        pytest.approx(of_seeds / 100),
        pytest.approx(of_both / 100),
    )
    assert mean_variance(values[:1]).problems == pytest.approx(values[0].var(ddof=1) / 25)


def test_seeds_that_shift_all_problems_alike_have_no_part_in_common_with_problems() -> None:
    """Also where the source groups have different sizes."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(8), [1, 1, 2, 3, 5, 8, 4, 1])
    values = rng.normal(size=25) + np.array([[-0.2], [0.1], [0.4]])
    found = mean_variance(values, groups)
    assert found.both == pytest.approx(0, abs=1e-12)
    assert found.seeds == pytest.approx(0.03)  # variance of the three shifts / 3
    assert found.num_groups == 8


def test_copies_in_one_source_group_change_no_interval() -> None:
    rng = np.random.default_rng(5)
    runs = [run(s, {i: rng.integers(0, 5, (2, 110)) for i in (0, 3)}) for s in (1, 2)]
    copies = [RunData(r.path, r.config, r.models, grouped(r.counts, 2), r.answers) for r in runs]
    one, other = (learning_table(side, ks=[1]).filter(seed="mean") for side in (runs, copies))
    for column in ("estimate", "low", "high"):
        assert one[column].to_list() == pytest.approx(other[column].to_list(), abs=1e-12)


@pytest.mark.parametrize("num_seeds", [1, 2, 3, 6])
def test_the_interval_over_seeds_and_problems_covers(num_seeds: int) -> None:
    """600 studies of 60 problems; the standard error of the coverage is 0.9 %."""
    rng = np.random.default_rng(num_seeds)
    covered = 0
    for _ in range(600):
        of_seed = rng.normal(0, 0.02 if num_seeds > 1 else 0, (num_seeds, 1))
        values = rng.normal(0, 0.3, 60) + of_seed + rng.normal(0, 0.2, (num_seeds, 60))
        found = crossed_mean(values)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 600 <= 0.98


def test_values_that_are_all_alike_have_no_interval() -> None:
    found = crossed_mean(np.ones((2, 20)))
    assert (found.estimate, found.low) == (1.0, None)
    assert "all problems are alike" in found.note
    assert crossed_mean(np.full((2, 20), np.nan)).estimate is None
    assert crossed_mean(np.ones((2, 1))).low is None
