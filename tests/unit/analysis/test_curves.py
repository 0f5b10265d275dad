"""Training curves against plain loops over the published rows; shards of an iteration add up."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.metrics.curves import CURVES, STEP_MEASURES, curves_table, score_points
from core_hpc.store.schema import COLD, RESCUE, REWARD_PARTS, SCORES
from tests.support.analysis_data import make_run, pick
from tests.support.report_data import publish_scores, publish_steps, score, step

Row = dict[str, Any]


def random_scores(seed: int, *, iteration: int, problems: range) -> list[Row]:
    draw = random.Random(seed)
    rows = []
    for problem in problems:
        for model in ("ada", "bob"):
            zero_signal = draw.random() < 0.4  # differs between models, as with update.group: model
            for phase, num in ((COLD, 3), (RESCUE, draw.randrange(3))):
                for sample in range(num):
                    correct, hint_given = draw.random() < 0.5, phase == RESCUE and draw.random() < 0.6
                    rows.append(
                        score(
                            iteration=iteration,
                            phase=phase,
                            model=model,
                            problem_id=f"p{problem}",
                            sample_index=sample,
                            correct=correct,
                            cold_failed=None if phase == COLD else draw.random() < 0.7,
                            hint_given=hint_given,
                            teacher_model="carl" if hint_given or (phase == RESCUE and draw.random() < 0.7) else None,
                            num_completion_tokens=draw.randrange(1, 50),
                            truncated=draw.random() < 0.2,
                            verdict="correct" if correct else draw.choice(["wrong", "no_answer"]),
                            zero_signal=zero_signal,
                            explore=draw.choice([0.0, 0.0, 0.5]),
                            reward=draw.random(),
                            advantage=draw.uniform(-1, 1),
                            team_pass_advantage=draw.uniform(-2, 2) if phase == COLD else None,
                            **{part: draw.random() for part in REWARD_PARTS if part != "explore"},
                        )
                    )
    return rows


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def reference(rows: list[Row]) -> dict[str, float | None]:
    """Compute the measures from their definitions, row by row."""

    def of(column: str, where: Callable[[Row], Any] = lambda row: True) -> float | None:
        return mean([float(row[column]) for row in rows if where(row)])

    problems = sorted({row["problem_id"] for row in rows})
    pairs = sorted({(row["model"], row["problem_id"]) for row in rows})
    attempts = [row for row in rows if row["phase"] == RESCUE and row["cold_failed"]]
    return {
        **{f"reward/{part}": of(part) for part in (*REWARD_PARTS, "reward")},
        "correct/cold": of("correct", lambda row: row["phase"] == COLD),
        "correct/rescue": of("correct", lambda row: row["phase"] == RESCUE),
        "rescue/per_attempt": mean([float(row["correct"]) for row in attempts if row["hint_given"]]),
        "rescue/control": mean(
            [float(row["correct"]) for row in attempts if not row["hint_given"] and row["teacher_model"] is not None]
        ),
        "rescue/num_attempts": float(sum(row["hint_given"] for row in attempts)),
        "advantage/mean": of("advantage"),
        "advantage/mean_abs": mean([abs(row["advantage"]) for row in rows]),
        "advantage/zero_signal_share": mean(
            [float(all(r["zero_signal"] for r in rows if (r["model"], r["problem_id"]) == pair)) for pair in pairs]
        ),
        "advantage/team_pass_mean_abs": mean(
            [abs(row["team_pass_advantage"]) for row in rows if row["team_pass_advantage"] is not None]
        ),
        "advantage/only_negative_share": mean(
            [float(all(r["advantage"] < 0 for r in rows if (r["model"], r["problem_id"]) == pair)) for pair in pairs]
        ),
        "length/mean": of("num_completion_tokens"),
        "length/max": float(max(row["num_completion_tokens"] for row in rows)),
        "length/truncated_share": of("truncated"),
        "length/no_answer_share": mean([float(row["verdict"] == "no_answer") for row in rows]),
        "explore/all_zero_share": mean(
            [float(all(r["explore"] == 0 for r in rows if r["problem_id"] == p)) for p in problems]
        ),
    }


@pytest.mark.parametrize("seed", range(3))
def test_score_points(seed: int) -> None:
    rows = random_scores(seed, iteration=1, problems=range(6))
    assert score_points(pl.DataFrame(rows, schema=SCORES.schema)) == pytest.approx(reference(rows))


def test_a_model_whose_advantages_are_all_negative_counts_in_the_share_of_the_team() -> None:
    """The advantages of a problem add up to 0 over the team, so they are never all negative."""
    of = {"ada": (-1.0, -2.0), "bob": (1.0, 2.0)}
    rows = [score(model=m, sample_index=s, advantage=a) for m, own in of.items() for s, a in enumerate(own)]
    assert score_points(pl.DataFrame(rows, schema=SCORES.schema))["advantage/only_negative_share"] == 0.5


def test_nothing_to_average_is_none() -> None:
    points = score_points(pl.DataFrame([score()], schema=SCORES.schema))
    assert points["rescue/per_attempt"] is None
    assert points["correct/rescue"] is None
    assert points["rescue/num_attempts"] == 0


def test_shards_of_an_iteration_add_up(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = {
        (1, 0): random_scores(1, iteration=1, problems=range(4)),
        (1, 1): random_scores(2, iteration=1, problems=range(4, 9)),
        (2, 0): random_scores(3, iteration=2, problems=range(3)),
    }
    for (iteration, part), shard in rows.items():
        publish_scores(run, shard, iteration=iteration, part=part)
    table = curves_table(run)
    assert table.schema == CURVES
    for iteration in (1, 2):
        of_iteration = [row for (i, _), shard in rows.items() if i == iteration for row in shard]
        for model in ("ada", "bob", "team"):
            expected = reference([row for row in of_iteration if model in (row["model"], "team")])
            found = table.filter(iteration=iteration, model=model)
            assert dict(found.select("measure", "value").rows()) == pytest.approx(expected)
    team = pick(table, iteration=1, model="team", measure="reward/reward")
    assert team["num"] == len(rows[1, 0]) + len(rows[1, 1])


def test_steps_are_means_and_maxima(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    columns = dict.fromkeys(STEP_MEASURES, 0.0)
    steps = [step(step=i + 1, **{name: float((i + 1) * (k + 1)) for k, name in enumerate(columns)}) for i in range(3)]
    publish_steps(run, steps)
    table = curves_table(run)
    assert table["model"].unique().to_list() == ["ada"]
    for column, measure in STEP_MEASURES.items():
        values = [s[column] for s in steps]
        expected = max(values) if measure in ("mismatch/max", "policy/ratio_max") else sum(values) / 3
        row = pick(table, measure=measure)
        assert row["value"] == pytest.approx(expected)
        assert row["num"] == 3


def test_steps_without_a_value_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    publish_steps(run, [step(kl=float("nan"), mismatch_max=float("nan")), step(step=2, kl=0.25, mismatch_max=0.5)])
    publish_steps(run, [step(kl=float("nan"), mismatch_max=float("nan"), model="bob")], model="bob")
    table = curves_table(run)
    for measure, value in (("loss/kl", 0.25), ("mismatch/max", 0.5)):
        row = pick(table, model="ada", measure=measure)
        assert (row["value"], row["num"]) == (value, 1)
        assert pick(table, model="bob", measure=measure)["value"] is None


def test_a_run_without_scores_has_no_curves(tmp_path: Path) -> None:
    assert curves_table(make_run(tmp_path / "run")).schema == CURVES
