"""Some benchmarks run once at a very small size. The tests do not judge their speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import (
    adapter_sampling,
    analysis_scale,
    array_scale,
    browse_scale,
    controller_cpu,
    interval_coverage,
    iteration_trl,
    old_log_probs,
    scoring_scale,
    starts,
    team_coverage,
    tensorboard_restart,
)
from tests.benchmarks.measure import report
from tests.benchmarks.simulated_run import make_run
from tests.support.cluster import DevCluster

pytestmark = [pytest.mark.slow, pytest.mark.full(reason="benchmarks at a small size")]


def test_a_controller_on_simulated_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = controller_cpu.Settings(
        num_runs=2,
        hours=0.6,
        profiled_hours=0.1,
        published_iterations=1,
        iterations=3,
        problems=8,
        problems_per_part=2,
        evaluation_problems=2,
        idle_s=0.1,
    )
    figures = controller_cpu.benchmark(tmp_path, settings, real_commands=False)
    report(tmp_path / "out.json", figures)
    controller_cpu.show(json.loads((tmp_path / "out.json").read_text()))
    assert "SIMULATED" in capsys.readouterr().out
    new, again = figures["start_new"], figures["start_again"]
    # A wait of 10 minutes and a task of 20 minutes fit into the 36 simulated minutes.
    assert new["num_published"] > 0
    # Per run: the evaluation before training, and one iteration.
    assert again["published_before"] >= 2 * (2 + 26)
    assert new["loop_calls"]["squeue"] == new["num_looks"] > 36 * 60 / 30
    hour = figures["hour_again"]
    assert hour["percent_of_a_core"] == pytest.approx(hour["total_cpu_s"] / 36, abs=0.01)
    assert any(f["function"].endswith(" poll") for f in figures["largest_in_loop"])


def test_starts_of_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts.show(starts.benchmark(tmp_path, "small", 1))
    assert "launch of two tiny models" in capsys.readouterr().out


def test_sampling_with_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter_sampling.show(adapter_sampling.benchmark(tmp_path, "small", 1))
    assert "today against stock" in capsys.readouterr().out


def test_continuing_tensorboard_files(tmp_path: Path) -> None:
    """Both ways end with the same points; the benchmark checks it."""
    settings = controller_cpu.Settings(iterations=2, problems=8, problems_per_part=4, evaluation_problems=4)
    figures = tensorboard_restart.benchmark(tmp_path, settings)
    assert figures["points"] > 100


def test_scoring_at_several_sizes(tmp_path: Path) -> None:
    """Both forms have the same scores; the benchmark checks it."""
    figures = scoring_scale.benchmark(tmp_path, 2)
    assert figures["128 completions"]["plain / ours"] > 0


def test_whole_score_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading all columns and reading few publishes the same scores; the benchmark checks it."""
    figures = scoring_scale.benchmark_task(tmp_path, scoring_scale.Size(problems=7, completions=16, parts=4), 3)
    scoring_scale.show_task(figures)
    assert "3 part(s), narrow" in capsys.readouterr().out
    assert [cost["completions"] for cost in figures["tasks"].values()] == [32, 32, 96]
    assert all(0 < cost["read_cpu_s"] < cost["cpu_s"] for cost in figures["tasks"].values())


def test_a_large_array(cluster: DevCluster, tmp_path: Path) -> None:
    settings = array_scale.Settings(num_elements=6, num_running=2, iterations=2, num_handled=6, poll_s=(0.1, 0.5))
    figures = array_scale.benchmark(tmp_path, settings, cluster)
    report(tmp_path / "out.json", figures)
    array_scale.show(json.loads((tmp_path / "out.json").read_text()))
    events = {
        name: figures[f"poll_{name}"]["num_events"]
        for name in ("waiting", "starting", "running", "published", "cancelled")
    }
    assert events == {"waiting": 0, "starting": 6, "running": 6, "published": 6, "cancelled": 6}
    assert figures["really_run"]["closed_as"] == "ended"
    cluster.wait_idle()


def test_reading_a_run(tmp_path: Path) -> None:
    """Every way of reading finds the same rows. Ways that need DuckDB are left out."""
    run = tmp_path / "run"
    rows = make_run(run, analysis_scale.SIZES["small"])
    found = {
        way: analysis_scale.measure_one(way, run)["result"]
        for way in ("ours", "decode", "decode_and_count", "pass_table")
    }
    assert found["ours"] == found["decode"] == found["decode_and_count"] == rows
    assert found["pass_table"] > 0


def test_opening_the_page_of_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", analysis_scale.SIZES["small"])
    served, folder = (browse_scale.measure_one(way, tmp_path / "run") for way in ("served", "folder"))
    assert 0 < served["size_mb"] < folder["size_mb"]
    assert served["problem_s"] > 0


def test_coverage_of_intervals() -> None:
    """Two studies are too few to judge coverage, but every interval must exist."""
    figures = interval_coverage.coverage(2, seed=1, population=2000)
    assert len(figures) >= 25
    assert all(0 <= figure["covered_percent"] <= 100 for figure in figures.values())


def test_coverage_of_intervals_of_teams() -> None:
    """As above. `tests/unit/analysis/test_power.py` runs the benchmark `power` at a small size."""
    figures = team_coverage.coverage(2, seed=1, population=4000)
    assert len(figures) >= 20
    assert all(figure["no_interval_percent"] == 0 for figure in figures.values())


def test_the_pass_for_old_log_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    figures = old_log_probs.benchmark("tiny:llama-1m", "small", rounds=1)
    old_log_probs.show(figures)
    assert "recompute / engine" in capsys.readouterr().out
    (turn,) = figures["kl_weights"]["0.0"]["turns"]
    # Five of the six steps need a pass, and the engine has sampled all their rows.
    assert turn["engine"]["num_pass_tokens"] == 0
    assert turn["recompute"]["num_pass_tokens"] == turn["recompute"]["num_tokens"] * 5 / 6


def test_whole_iterations_beside_trl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl", reason="needs trl")
    ways = ["trl-4", "transformers"]
    figures = iteration_trl.benchmark(tmp_path, ways=ways, reference="tiny:llama-1m", size="small", rounds=1)
    iteration_trl.show(figures)
    assert "transformers / trl-4" in capsys.readouterr().out
    problems, samples, new_tokens, _, _ = iteration_trl.SIZES["small"]
    for (turn,) in figures["turns"].values():
        assert 0 < turn["tokens"] <= problems * samples * new_tokens
        assert 0 < turn["iteration_cpu_s"] < turn["start_cpu_s"]
        assert turn["peak_pss_mb"] <= turn["peak_rss_mb"]
