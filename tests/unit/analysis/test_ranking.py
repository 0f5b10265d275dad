"""Runs of a grid grouped by a field, and ranked: against means and differences by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.__main__ import main
from analysis.counts.load import RunData
from analysis.metrics.compare import compare
from analysis.metrics.compare_table import changed_fields
from analysis.metrics.contrasts import contrasts_table
from analysis.metrics.fields import different_fields, grouped, values_of, varied_fields
from analysis.metrics.ranking import ranking_report
from core_hpc.common.errors import InputError
from tests.support.analysis_data import config, evaluation_rows, make_run, publish_rollouts
from tests.unit.analysis.test_arms import data, held_out

PROBLEMS, SAMPLES = 30, 4
SHARES = {"grpo": 0.3, "gspo": 0.6, "cispo": 0.45}


def correct(share: float, seed: int) -> Any:
    """(2, P) correct completions of two models."""
    return np.random.default_rng(seed).binomial(SAMPLES, share, (2, PROBLEMS))


def grid(*seeds: int, **more: Any) -> list[RunData]:
    """A grid of losses and seeds, as a sweep has it."""
    return [
        data(seed, held_out(correct(share, 7 * seed), 2), update={"loss": loss}, **more)
        for seed, (loss, share) in product(seeds, SHARES.items())
    ]


def team_pass(c: Any, k: int) -> float:
    """1 - the chance that k of n completions of each model are wrong, by counting draws."""
    wrong = np.vectorize(lambda x: comb(SAMPLES - int(x), k) / comb(SAMPLES, k))(c)
    return float(1 - wrong.prod(axis=0).mean())


def test_the_fields_that_vary_and_their_groups() -> None:
    runs = grid(1, 2, 3)
    assert varied_fields(runs) == ["update.loss"]
    groups = grouped(runs, ["update.loss"])
    assert list(groups) == ["loss=cispo", "loss=grpo", "loss=gspo"]
    assert [[run.config.seed for run in own if run.config] for own in groups.values()] == [[1, 2, 3]] * 3


def test_a_field_that_follows_from_another_varies_only_if_a_run_sets_it() -> None:
    """The loss decides the default of the ratio and of the clipping range."""
    own = {"loss": "gspo", "clip_low": 0.01, "clip_high": 0.01}
    runs = [
        data(1, held_out(correct(0.5, 1), 2), update={"loss": "grpo"}),
        data(1, held_out(correct(0.5, 2), 2), update=own),
    ]
    assert varied_fields(runs) == ["update.loss", "update.clip_low", "update.clip_high"]


def test_numbers_are_in_their_order_and_models_have_their_names() -> None:
    team = [{"name": name, "model": "fake:any", "engine": "fake"} for name in ("ada", "bob")]
    ranks = (16, 8, 128)
    runs = []
    for rank in ranks:
        own = config(seed=1, team=[{**team[0], "lora": {"rank": rank}}, team[1]], evaluation={"samples": 4})
        one = data(1, held_out(correct(0.5, rank), 2))
        runs.append(RunData(one.path, own, one.models, one.counts, one.answers))
    assert varied_fields(runs) == ["team.ada.lora.rank"]
    assert list(grouped(runs, ["team.ada.lora.rank"])) == ["rank=8", "rank=16", "rank=128"]
    assert [values_of(run, ["team.ada.lora.rank"]) for run in runs] == [[rank] for rank in ranks]


def test_a_field_that_was_added_later_has_its_default_as_value() -> None:
    """At its default it is not part of the identity of a run."""
    runs = [
        data(1, held_out(correct(0.5, 1), 2)),
        data(1, held_out(correct(0.5, 2), 2), protocol={"hint_leak": "cut"}),
    ]
    assert list(grouped(runs, ["protocol.hint_leak"])) == ["hint_leak=cut", "hint_leak=keep"]


def test_a_default_that_only_some_runs_have_in_their_identity_does_not_vary() -> None:
    """A part of the method that is switched on brings its other options into the identity, at their defaults."""
    runs = [
        data(1, held_out(correct(0.5, 1), 2)),
        data(1, held_out(correct(0.5, 2), 2), update={"teach": {"weight": 2.0}}),
    ]
    assert varied_fields(runs) == ["update.teach.weight"]
    assert different_fields(*runs) == {"update.teach.weight": (0.0, 2.0)}
    assert ranking_report(runs).shown.columns[:3] == ["rank", "weight", "team Pass@4"]


def test_the_most_decisive_differences_are_first() -> None:
    one = data(1, held_out(correct(0.5, 1), 2))
    other = data(
        1,
        held_out(correct(0.5, 2), 2),
        protocol={"cold_samples": 3},
        update={"loss": "gspo", "teach": {"rehearsal": 0.5}, "importance": {"kind": "none"}},
    )
    paths = list(different_fields(one, other))
    assert paths[:3] == ["update.loss", "protocol.cold_samples", "update.importance.kind"]
    minor = {"update.clip_low", "update.clip_high", "update.ratio", "update.teach.rehearsal"}
    assert minor < set(paths[3:])
    assert paths[-1] == "update.teach.rehearsal"
    assert changed_fields(one, other, "A", "B")[0] == "update.loss: grpo in A, gspo in B"


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["update.los"], "--by update.los: the runs do not differ in it. Did you mean update.loss?"),
        (["loss"], "Did you mean update.loss?"),
        (["seed"], "Seeds are averaged"),
        (["protocol.scope"], "They differ in: update.loss"),
    ],
)
def test_a_field_that_does_not_vary(by: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        grouped(grid(1, 2), by)
    assert message in str(caught.value)


def test_runs_that_differ_in_more_are_not_seeds() -> None:
    runs = [*grid(1), *grid(2, protocol={"cold_samples": 3})]
    with pytest.raises(InputError, match=r"also differ in protocol.cold_samples.*--by update.loss protocol.cold_samp"):
        grouped(runs, ["update.loss"])
    assert len(grouped(runs, ["update.loss", "protocol.cold_samples"])) == 6


def test_seeds_are_seeds_in_comparisons_of_groups() -> None:
    """The same figures as from folders with the seeds of one configuration each."""
    groups = grouped(grid(1, 2, 3), ["update.loss"])
    together = contrasts_table(groups, ks=[1])
    alone = compare(groups["loss=cispo"], groups["loss=gspo"], ks=[1]).filter(seed="mean")
    row = together.filter(arm_b="loss=gspo", measure="team_pass").row(0, named=True)
    other = alone.filter(measure="team_pass").row(0, named=True)
    for column in ("estimate", "low", "high", "num_seeds", "seed_sd"):
        assert row[column] == other[column]
    assert row["num_seeds"] == 3


def test_the_ranking_by_hand() -> None:
    seeds = (1, 2, 3)
    table = ranking_report(grid(*seeds), k=2)
    levels = {loss: [team_pass(correct(share, 7 * seed), 2) for seed in seeds] for loss, share in SHARES.items()}
    assert table.frame["rank"].to_list() == [1, 2, 3]
    assert table.frame["loss"].to_list() == ["gspo", "cispo", "grpo"]
    for row in table.frame.iter_rows(named=True):
        own = levels[row["loss"]]
        assert row["estimate"] == pytest.approx(float(np.mean(own)))
        assert (row["seed_min"], row["seed_max"]) == pytest.approx((min(own), max(own)))
        assert (row["num_seeds"], row["num_problems"]) == (3, PROBLEMS)
    assert table.shown.columns[:3] == ["rank", "loss", "team Pass@2"]
    assert "3 of 3 estimates: fewer than 100 problems" in table.notes
    assert any("compare --by update.loss" in note for note in table.notes)


def test_equal_figures_have_equal_ranks_and_one_model_can_be_ranked() -> None:
    runs = [data(1, held_out(correct(0.5, 3), 2), update={"loss": loss}) for loss in SHARES]
    assert ranking_report(runs).frame["rank"].to_list() == [1, 1, 1]
    of_bob = ranking_report(grid(1), k=1, model="bob").frame
    expected = {loss: correct(share, 7)[1].mean() / SAMPLES for loss, share in SHARES.items()}
    assert dict(of_bob.select("loss", "estimate").iter_rows()) == pytest.approx(expected)
    with pytest.raises(InputError, match="no model 'eve'; the runs have ada, bob"):
        ranking_report(grid(1), model="eve")


def test_runs_without_an_evaluation_after_training_are_named() -> None:
    runs = grid(1)
    early = data(2, held_out(correct(0.5, 1), 0), update={"loss": "grpo"})
    table = ranking_report([*runs, early])
    assert table.frame.height == 3
    assert any(early.name in note for note in table.notes)
    with pytest.raises(InputError, match="no run has an evaluation after training yet"):
        ranking_report([early])
    with pytest.raises(InputError, match="imported predictions have no training"):
        ranking_report([replace(early, config=None)])
    with pytest.raises(InputError, match="no training"):
        ranking_report([replace(early, config=config(iterations=0))])


def test_runs_at_different_iterations_are_named() -> None:
    early = data(3, held_out(correct(0.5, 1), 1), update={"loss": "gspo"})
    notes = ranking_report([*grid(1, 2), early]).notes
    assert "not at the same iteration: loss=gspo seed 3 after iteration 1, all others after iteration 2" in notes
    assert not any("same iteration" in note for note in ranking_report(grid(1, 2)).notes)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a sweep: two losses with two seeds each. gspo solves every problem of ada."""
    for loss, seed in product(("grpo", "gspo"), (1, 2)):
        folder = tmp_path / "demo" / f"loss-{loss}-seed-{seed}-0000000{seed}"
        run = make_run(folder, config(seed=seed, update={"loss": loss}))
        solved = {"ada": loss == "gspo", "bob": False}
        rows = {
            name: [[all_solved or (seed + p + s) % 5 == 0 for s in range(4)] for p in range(8)]
            for name, all_solved in solved.items()
        }
        publish_rollouts(run, [row for i in (0, 2) for row in evaluation_rows(rows, i)])
    return tmp_path / "demo"


def test_the_commands_take_fields(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", str(sweep), "--format", "csv"]) == 0
    ranked = pl.read_csv(capsys.readouterr().out.encode())
    assert ranked["loss"].to_list() == ["gspo", "grpo"]
    assert ranked["num_seeds"].to_list() == [2, 2]
    assert main(["compare", str(sweep), "--by", "update.loss", "--format", "csv"]) == 0
    compared = pl.read_csv(capsys.readouterr().out.encode())
    assert compared["arm_a"].unique().to_list() == ["loss=grpo"]
    assert compared["arm_b"].unique().to_list() == ["loss=gspo"]
    assert main(["arms", str(sweep), "--by", "update.loss", "--out", str(sweep.parent / "arms")]) == 0
    assert (sweep.parent / "arms" / "tables").is_dir()
    assert "loss=gspo" in capsys.readouterr().out
    assert main(["compare", str(sweep)]) == 2
    assert "give a second folder B, or --by FIELD" in capsys.readouterr().err
    assert main(["compare", str(sweep), "--by", "update.loss", "--iteration", "2"]) == 2


def test_a_report_is_titled_by_sweep_and_what_varies(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert main(["report", str(sorted(sweep.iterdir())[0]), "--out", str(out)]) == 0
    heading = (out / "report.md").read_text().splitlines()[0]
    assert heading == "# demo: loss-grpo-seed-1"
    assert "<h1>demo: loss-grpo-seed-1</h1>" in (out / "report.html").read_text()
