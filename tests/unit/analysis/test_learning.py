"""Learning curves against areas in plain Python, and their intervals against the tables of arms and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.__main__ import main
from analysis.counts.load import RunData
from analysis.metrics.arms import arms_of, arms_table
from analysis.metrics.compare import compare
from analysis.metrics.learning import learning_report, learning_table
from analysis.stats.uncertainty import variances
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


def test_report_shows_an_arm_with_one_run_beside_one_with_several() -> None:
    rng = np.random.default_rng(4)
    runs = [run(s, {i: rng.integers(0, 5, (2, 20)) for i in (0, 5)}) for s in (1, 2, 3)]
    arms = {"two": runs[:2], "one": runs[2:], "three": runs}
    table = learning_report(pl.concat(learning_table(own, ks=[1], arm=name) for name, own in arms.items()))
    assert table.shown["arm"].value_counts()["count"].unique().to_list() == [5]
    over_both = "interval over seeds and problems (lowest to highest seed)"
    assert table.notes[1:4] == [
        f"two: mean over 2 seeds, {over_both}",
        "one: one run, interval over problems; the spread over seeds is unknown",
        f"three: mean over 3 seeds, {over_both}",
    ]


def test_arms_on_different_problems_are_named() -> None:
    rng = np.random.default_rng(6)
    counts = {i: rng.integers(0, 5, (2, 40)) for i in (0, 5)}
    some = counts | {5: counts[5][:, :30]}
    arms = {"whole": run(1, counts), "part": run(1, some)}
    frame = pl.concat(learning_table([own], ks=[1], arm=name) for name, own in arms.items())
    warning = "WARNING: the arms are on different problems: whole on 40, part on 30"
    assert warning in learning_report(frame).notes
    assert not any("WARNING" in note for note in learning_report(frame.filter(arm="part")).notes)


def test_arms_with_other_questions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, question in zip(folders, ("What?", "Why?"), strict=True):
        line = {"problem": "p0", "model": "ada", "sample": 0, "question": question, "answer": "2", "gold": "2"}
        (tmp_path / "lines.jsonl").write_text(json.dumps({**line, "text": "#### 2"}) + "\n")
        assert main(["import", str(tmp_path / "lines.jsonl"), "--out", str(folder)]) == 0
    assert main(["learning", *map(str, folders)]) != 0
    assert "problem 'p0' is not the same in two runs" in " ".join(capsys.readouterr().err.split())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(full_run(tmp_path / sweep / "run-1").parent) for sweep in ("one", "two")]
    assert main(["learning", *folders, "--k", "1", "--format", "csv"]) == 0
    frame = pl.read_csv(capsys.readouterr().out.encode())
    assert frame["arm"].unique(maintain_order=True).to_list() == ["one", "two"]
    row = pick(frame.filter(arm="one"), figure="area", measure="pass", model="ada")
    assert row["estimate"] == pytest.approx((5 / 12 + 8 / 12) / 2)
    assert main(["learning", *folders, "--format", "latex"]) == 0
    assert "area gain" in capsys.readouterr().out


def test_imported_predictions_are_not_named_untrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder, lines = full_run(tmp_path / "trained"), tmp_path / "lines.jsonl"
    assert main(["export", str(run_folder), "--iteration", "0", "--out", str(lines)]) == 0
    assert main(["import", str(lines), "--out", str(tmp_path / "imported")]) == 0
    capsys.readouterr()
    for folders, expected in ((["imported"], "imported"), (["trained", "imported"], "untrained or imported")):
        own = [str(tmp_path / folder) for folder in folders]
        assert main(["learning", *own, "--format", "markdown"]) == 0
        head = next(line for line in capsys.readouterr().out.splitlines() if "measure" in line)
        assert f"| measure | {expected} |" in head


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


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("num_seeds", [2, 3])
def test_the_last_level_is_that_of_the_arm(num_seeds: int, copies: int) -> None:
    """Also with source groups: the same figure has the same interval in both tables."""
    rng = np.random.default_rng(num_seeds)
    runs = [run(s, {i: rng.binomial(4, 0.3 + 0.1 * s, (2, 60)) for i in (0, 3)}) for s in range(num_seeds)]
    runs = [RunData(r.path, r.config, r.models, grouped(r.counts, copies), r.answers) for r in runs]
    learned = learning_table(runs, ks=[1, 2]).filter(figure="level", iteration=3).drop("arm", "figure", "iteration")
    columns = learned.columns
    of_arm = arms_table(arms_of({"arm": runs}), ks=[1, 2]).filter(pl.col("k").is_not_null(), arm="arm")
    of_arm = of_arm.filter(pl.col("measure") != "phi").select(columns)
    assert learned.filter(seed="mean").height == 2 * 5
    keys = ["seed", "measure", "model", "k"]
    seeds = pl.col("seed") == "mean"
    for rows in (seeds, ~seeds):
        one, other = (frame.filter(rows).sort(keys).drop("seed_min", "seed_max") for frame in (learned, of_arm))
        assert one.equals(other)


def test_the_gain_of_two_evaluations_is_half_the_difference_of_the_comparison() -> None:
    """With two evaluations, the area above the untrained models is half of the last change."""
    rng = np.random.default_rng(8)
    runs = [run(s, {0: rng.binomial(4, 0.4, (2, 400)), 3: rng.binomial(4, 0.5 + 0.05 * s, (2, 400))}) for s in range(3)]
    gain = pick(learning_table(runs, ks=[1]), seed="mean", measure="pass", model="ada", figure="area_gain")
    change = pick(compare(runs, runs, ks=[1], iterations=(0, 3)), seed="mean", measure="pass", model="ada")
    for column in ("estimate", "low", "high"):
        assert gain[column] == pytest.approx(change[column] / 2)


def test_seeds_that_shift_all_problems_alike_have_no_part_in_common_with_problems() -> None:
    """Also where the source groups have different sizes."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(8), [1, 1, 2, 3, 5, 8, 4, 1])
    values = rng.normal(size=25) + np.array([[-0.2], [0.1], [0.4]])
    found = variances(values, groups)
    assert found.rest == pytest.approx(0, abs=1e-12)
    assert found.seeds == pytest.approx(0.03)  # variance of the three shifts / 3


def test_copies_in_one_source_group_change_no_interval() -> None:
    rng = np.random.default_rng(5)
    runs = [run(s, {i: rng.integers(0, 5, (2, 110)) for i in (0, 3)}) for s in (1, 2)]
    copies = [RunData(r.path, r.config, r.models, grouped(r.counts, 2), r.answers) for r in runs]
    one, other = (learning_table(side, ks=[1]).filter(seed="mean") for side in (runs, copies))
    for column in ("estimate", "low", "high"):
        assert one[column].to_list() == pytest.approx(other[column].to_list(), abs=1e-12)
