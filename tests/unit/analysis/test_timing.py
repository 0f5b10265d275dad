"""The accounting of time: artificial runs by hand, and random schedules against brute force."""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from analysis.__main__ import main
from analysis.counts.load import load_run
from analysis.layout.formats import FORMATS, table_text
from analysis.layout.tables import render
from analysis.report.figures import time_figure, write
from analysis.timing.account import iteration_table, time_table, waited_table
from analysis.timing.critical_path import ITEMS, Segment, TaskTime, critical_path, shared_seconds
from analysis.timing.recorded import RunTimes, times_of
from analysis.timing.tables import IMPORTED, NOTHING, time_report
from core_hpc.phases.context import Warm
from core_hpc.runs.graph import Graph
from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, HINT, RESCUE, SCHEMA_VERSION, SCORE, UPDATE
from core_hpc.training.timings import UpdateTimings
from tests.support.analysis_data import config, make_run

T0 = 1.7e9
"""Second 0 of the artificial runs."""


def publish(
    run: Path,
    key: TaskKey,
    began: float,
    laps: dict[str, float],
    *,
    host: str = "n1",
    pid: int = 0,
    clock: float = 0.0,
    **stats: Any,
) -> None:
    """Publish the manifest of a task.

    Args:
        run: the run folder.
        key: the key of the task.
        began: the second at which the task began.
        laps: seconds of the task by item.
        host: its host.
        pid: its process.
        clock: seconds that the clock of the host is ahead.
        stats: further statistics.
    """
    path = RunPaths(run).task_manifest(key)
    manifests.make_folder(path.parent)
    data = path.with_name(f"{RunPaths(run).task_name(key)}.data")
    data.touch()
    writer = {"host": host, "pid": pid, "user": "u", "time": T0 + clock + began + sum(laps.values())}
    body = {
        "schema_version": SCHEMA_VERSION,
        "files": [{"name": data.name, "bytes": 0, "sha256": ""}],
        "stats": {"seconds": laps, **stats} if laps else stats,
        "writer": writer,
    }
    path.write_text(json.dumps(body))


def submit(run: Path, name: str, submitted: float, elements: list[list[TaskKey]]) -> None:
    """Write the record of the submission of an array."""
    folder = RunPaths(run).slurm
    manifests.make_folder(folder)
    record = {"name": name, "submitted": T0 + submitted, "elements": [[str(key) for key in keys] for keys in elements]}
    manifests.write_json(folder / f"{name}.ended.json", record)


def key(phase: str, model: str = TEAM, *, iteration: int = 1, part: int = 0) -> TaskKey:
    return TaskKey(iteration, phase, model, part)


def publish_iteration(run: Path, at: float = 0, *, iteration: int = 1) -> None:
    """Publish an iteration of two models that ends at second 63.

    Each model has one process for sampling and one for updating. The update of bob waits for that
    of ada.

    seconds  0    4         10        20 21  23  25     31 32   33      43     45        63
    ada      load generate              hint  rescue      score update
    bob      load   generate            hint   rescue     score                (start) update
    """

    def task(phase: str, model: str, began: float, laps: dict[str, float], **stats: Any) -> None:
        publish(run, key(phase, model, iteration=iteration), at + began, laps, **stats)

    tokens: dict[str, Any] = {"num_prompt_tokens": 100, "num_padded_tokens": 500}
    task(COLD, "ada", 0, {"load": 4, "generate": 6}, pid=1, num_completion_tokens=60, **tokens)
    task(COLD, "bob", 0, {"load": 5, "generate": 15}, pid=2, num_completion_tokens=30, **tokens)
    task(HINT, TEAM, 21, {"read": 0.5, "hint": 1.5}, pid=3)
    task(RESCUE, "ada", 23, {"generate": 2}, pid=1, num_completion_tokens=10, **tokens)
    task(RESCUE, "bob", 23, {"generate": 6, "publish": 2}, pid=2, num_completion_tokens=12, **tokens)
    task(SCORE, TEAM, 31, {"score": 1}, pid=3)
    parts = {"old_s": 2.0, "reference_s": 1.0, "train_s": 5.0, "save_s": 1.0, "prepare_s": 0.5}
    task(UPDATE, "ada", 33, {"update": 10}, pid=4, num_tokens=400, **parts, **tokens)
    parts = {"old_s": 4.0, "reference_s": 0.0, "train_s": 10.0, "save_s": 1.0, "prepare_s": 1.0}
    times = {"process_started": T0 + at + 44, "process_ready": T0 + at + 45} if iteration == 1 else {}
    task(UPDATE, "bob", 45, {"load": 1, "update": 17}, pid=5, num_tokens=450, **parts, **tokens, **times)


def seconds_of(times: RunTimes, iteration: int = 1) -> dict[str, float]:
    """Return the seconds of an iteration by item, each as an approximate value."""
    out: dict[str, float] = defaultdict(float)
    for row in waited_table(times).filter(iteration=iteration).iter_rows(named=True):
        out[row["item"]] += row["seconds"]
    return {item: pytest.approx(seconds, abs=1e-3) for item, seconds in out.items()}


# --- one iteration, by hand ----------------------------------------------------------------------


def test_each_moment_of_an_iteration_counts_once(tmp_path: Path) -> None:
    publish_iteration(run := make_run(tmp_path / "run"))
    assert seconds_of(times_of(run)) == {
        "load": 5 + 1,  # engine and trainer of bob
        "generate": 15 + 6,  # of bob
        "publish": 2,
        "read": 0.5,
        "hint": 1.5,
        "score": 1,
        "another model": 10,  # 33 to 43: the update of ada
        "start": 1,  # 44 to 45: the process of the update of bob
        "log-probabilities": 4,
        "train": 10,
        "prepare": 17 - 4 - 10 - 1,
        "save": 1,
        "idle": 1 + 1 + 1,  # 20 to 21, 32 to 33, 43 to 44
    }
    table = waited_table(times_of(run))
    assert table["seconds"].sum() == pytest.approx(63, abs=1e-3)
    assert table["share"].sum() == pytest.approx(1)
    models = dict(table.filter(item="generate").select("phase", "model").rows())
    assert models == {COLD: "bob", RESCUE: "bob"}


def test_lower_bound_and_overhead_of_an_iteration(tmp_path: Path) -> None:
    publish_iteration(run := make_run(tmp_path / "run"))
    (row,) = iteration_table(times_of(run)).iter_rows(named=True)
    assert (row["tasks"], row["of_tasks"]) == (8, 8)
    assert row["wall_s"] == pytest.approx(63, abs=1e-3)
    assert (row["elsewhere_s"], row["queue_s"]) == (0, 0)
    # With a single iteration, tokens divided by their rate are the seconds of the work. The bound
    # of ada is 6 + 2 + 3 + 5.
    assert (row["bound_s"], row["bound_model"]) == (pytest.approx(15 + 6 + 4 + 10, abs=1e-3), "bob")
    assert row["overhead"] == row["overhead_without_queue"] == pytest.approx(1 - 35 / 63, abs=1e-4)
    assert (row["largest"], row["largest_s"]) == ("another model", pytest.approx(10, abs=1e-3))


def test_rates_are_those_of_the_whole_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    publish_iteration(run, 0)
    publish_iteration(run, 100, iteration=2)
    publish(run, key(COLD, "bob", iteration=2), 100, {"load": 5, "generate": 15}, pid=2, num_completion_tokens=90)
    rate = Fraction(30 + 90, 15 + 15)
    bounds = iteration_table(times_of(run))["bound_s"].to_list()
    assert bounds == pytest.approx([float(30 / rate) + 6 + 14, float(90 / rate) + 6 + 14], abs=1e-3)


def test_bound_includes_passes_that_only_later_iterations_have(tmp_path: Path) -> None:
    """The first iteration has no reference pass. This must not reduce the bound of later ones."""
    run = make_run(tmp_path / "run")
    publish(run, key(COLD, "ada"), 0, {"generate": 10}, num_completion_tokens=50)
    publish(run, key(UPDATE, "ada"), 10, {"update": 14}, num_tokens=300, num_pass_tokens=200, old_s=4.0, train_s=10.0)
    publish(run, key(COLD, "ada", iteration=2), 24, {"generate": 10}, num_completion_tokens=50)
    parts = {"old_s": 4.0, "reference_s": 6.0, "train_s": 10.0}
    publish(run, key(UPDATE, "ada", iteration=2), 34, {"update": 20}, num_tokens=300, num_pass_tokens=500, **parts)
    assert iteration_table(times_of(run))["bound_s"].to_list() == pytest.approx([10 + 4 + 10, 10 + 10 + 10], abs=1e-3)
    passes = time_table(times_of(run)).filter(item="log-probabilities")
    assert passes["tokens"].to_list() == [200, 500]
    assert passes["tokens_per_s"].to_list() == pytest.approx([50, 50])


def test_seconds_and_tokens_of_tasks(tmp_path: Path) -> None:
    publish_iteration(run := make_run(tmp_path / "run"))
    table = time_table(times_of(run))

    def row(phase: str, model: str, item: str) -> dict[str, Any]:
        return table.filter(phase=phase, model=model, item=item).row(0, named=True)

    cold = row(COLD, "ada", "generate")
    assert (cold["seconds"], cold["share"]) == (pytest.approx(6), pytest.approx(6 / 63, abs=1e-4))
    assert (cold["tokens"], cold["tokens_per_s"]) == (60, pytest.approx(10))
    assert (cold["prompt_tokens"], cold["padding_share"]) == (100, None)
    train = row(UPDATE, "bob", "train")
    assert (train["tokens"], train["tokens_per_s"]) == (450, pytest.approx(45))
    assert train["padding_share"] == pytest.approx(0.1)
    assert row(UPDATE, "bob", "log-probabilities")["seconds"] == pytest.approx(4)
    assert row(UPDATE, "bob", "start")["seconds"] == pytest.approx(1, abs=1e-3)
    total = 10 + 20 + 2 + 2 + 8 + 1 + 10 + 18 + 1  # all tasks, and the start of a process
    assert table["seconds"].sum() == pytest.approx(total, abs=1e-3)


def test_evaluations_and_other_iterations_are_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    # The process of bob samples held-out problems until 30. The cold task of ada begins at 10.
    publish(run, key(EVALUATE, "bob", iteration=0), 0, {"generate": 30}, pid=2, num_completion_tokens=5)
    publish(run, key(COLD, "ada"), 10, {"generate": 8}, pid=1, num_completion_tokens=8)
    publish(run, key(COLD, "bob"), 30, {"generate": 12}, pid=2, num_completion_tokens=12)
    times = times_of(run)
    assert seconds_of(times) == {"evaluation": 20, "generate": 12}
    (row,) = iteration_table(times).iter_rows(named=True)
    assert (row["tasks"], row["of_tasks"], row["elsewhere_s"]) == (2, 8, pytest.approx(20, abs=1e-3))
    assert row["overhead"] == pytest.approx(0, abs=1e-3)
    assert row["largest"] is None
    assert time_table(times).filter(phase=EVALUATE)["share"].to_list() == [None]
    # Iteration 2 of ada begins during the update of bob in iteration 1.
    publish(run, key(UPDATE, "ada"), 50, {"update": 10}, pid=4, num_tokens=1)
    publish(run, key(UPDATE, "bob"), 50, {"update": 40}, pid=5, num_tokens=1)
    publish(run, key(COLD, "ada", iteration=2), 60, {"generate": 5}, pid=1, num_completion_tokens=5)
    publish(run, key(COLD, "bob", iteration=2), 91, {"generate": 7}, pid=2, num_completion_tokens=7)
    assert seconds_of(times_of(run), 2) == {"another iteration": 30, "idle": 1, "generate": 7}


def test_with_staleness_an_update_waits_for_the_one_before(tmp_path: Path) -> None:
    """Iteration 2 is sampled from 10 to 18 and scored at 20, while iteration 1 is updated until 50."""
    run = make_run(tmp_path / "run")
    for model, pid in (("ada", 1), ("bob", 2)):
        publish(run, key(COLD, model), 0, {"generate": 8}, pid=pid, num_completion_tokens=8)
        publish(run, key(UPDATE, model), 10, {"update": 40}, pid=pid + 2, num_tokens=1)
        publish(run, key(COLD, model, iteration=2), 10, {"generate": 8}, pid=pid, num_completion_tokens=8)
        publish(run, key(UPDATE, model, iteration=2), 50, {"update": 40}, pid=pid + 2, num_tokens=1)
    for iteration, at in ((1, 8), (2, 18)):
        publish(run, key(SCORE, iteration=iteration), at, {"score": 2}, pid=5)
    times = times_of(run)
    assert times.graph is not None
    stale = RunTimes(times.tasks, replace(times.graph, staleness=1, has_rescue=False))
    assert seconds_of(stale, 1) == {"generate": 8, "score": 2, "train": 40}
    assert seconds_of(stale, 2) == {"another iteration": 40, "train": 40}
    frame = iteration_table(stale)
    assert frame["wall_s"].to_list() == [pytest.approx(50, abs=1e-3), pytest.approx(80, abs=1e-3)]
    overlapping = "iterations overlap"
    assert [any(overlapping in note for note in time_report(t)[0].notes) for t in (times, stale)] == [False, True]


# --- missing laps, clocks, queue, nothing --------------------------------------------------------


def test_tasks_without_statistics(tmp_path: Path) -> None:
    publish_iteration(run := make_run(tmp_path / "run"))
    publish(run, key(RESCUE, "bob"), 31, {}, pid=2)  # no statistics
    publish(run, key(UPDATE, "ada"), 33, {"read": 3, "update": 7}, pid=4)  # no parts of the update
    times = times_of(run)
    row = time_table(times).filter(phase=UPDATE, model="ada", item="train").row(0, named=True)
    assert (row["seconds"], row["tokens"], row["tokens_per_s"]) == (pytest.approx(7), None, None)
    spent = seconds_of(times)
    # The rescue of bob, up to 31, recorded nothing. The rescue of ada runs until 25, so 25 to 31 is
    # idle.
    assert (spent["generate"], spent["idle"]) == (15, 3 + 6)
    assert spent["another model"] == 10 + 2
    notes = time_report(times)[0].notes
    assert any("1 of 8 tasks did not record" in note for note in notes)


def test_different_clocks_never_give_negative_times(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    # True times: cold 0 to 20, hint 20 to 25, rescue 25 to 30. The clock of n2 is 7 s ahead.
    publish(run, key(COLD, "ada"), 0, {"generate": 10}, num_completion_tokens=10, pid=1)
    publish(run, key(COLD, "bob"), 0, {"generate": 20}, num_completion_tokens=10, host="n2", clock=7, pid=1)
    publish(run, key(HINT), 20, {"hint": 5}, pid=2)
    publish(run, key(RESCUE, "bob"), 25, {"generate": 5}, num_completion_tokens=5, host="n2", clock=7, pid=9)
    times = times_of(run)
    assert all(s.seconds > 0 for s in times.paths[1])
    # Recorded times: rescue 32 to 37, hint 20 to 25, cold of bob 7 to 27, of which 7 to 20 is
    # before the hint. The cold task of ada runs from 0.
    assert seconds_of(times) == {"generate": 5 + 13, "idle": 5, "another part": 2, "hint": 5, "another model": 7}
    notes = time_report(times)[0].notes
    assert "clocks of n1, n2 differ by at least 7.0 s: times between tasks on them are off by that much" in notes


def test_a_note_names_several_hosts_when_their_clocks_agree(tmp_path: Path) -> None:
    publish_iteration(run := make_run(tmp_path / "run"))
    assert not any("clocks" in note for note in time_report(times_of(run))[0].notes)
    publish(run, key(SCORE), 31, {"score": 1}, pid=3, host="n2")
    notes = time_report(times_of(run))[0].notes
    assert any(note.startswith("several hosts: if their clocks differ") for note in notes)


@pytest.mark.parametrize("order", list(permutations((0, 40, 500))))
def test_the_queue_of_slurm(tmp_path: Path, order: tuple[int, ...]) -> None:
    """The submission at 0 is lost, the one at 40 runs, and the one at 500 comes after the tasks."""
    run = make_run(tmp_path / "run", config(protocol={"problems_per_iteration": 20, "problems_per_part": 10}))
    parts = [key(COLD, "ada", part=p) for p in (0, 1)]
    for name, submitted in zip("abc", order, strict=True):
        submit(run, f"cold-0001-0000000{name}", submitted, [parts])
    times = {"job_started": T0 + 100, "process_started": T0 + 103, "process_ready": T0 + 110}
    publish(run, parts[0], 110, {"load": 5, "generate": 20}, pid=1, num_completion_tokens=20, **times)
    publish(run, parts[1], 136, {"load": 0, "generate": 10}, pid=1, num_completion_tokens=10)
    found = times_of(run)
    assert seconds_of(found) == {"queue": 60, "start": 10, "load": 5, "generate": 30, "idle": 1}
    (row,) = iteration_table(found).iter_rows(named=True)
    assert row["began"] == pytest.approx(T0 + 40)
    assert (row["wall_s"], row["queue_s"]) == (pytest.approx(106, abs=1e-3), pytest.approx(60, abs=1e-3))
    assert row["largest"] == "queue"
    assert row["overhead"] == pytest.approx(1 - 30 / 106, abs=1e-4)
    assert row["overhead_without_queue"] == pytest.approx(1 - 30 / 46, abs=1e-4)
    table = time_table(found)
    assert table.filter(item="queue").select("tasks", "seconds").row(0) == (1, pytest.approx(60, abs=1e-3))


def test_a_job_that_begins_before_its_submission_because_of_clocks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    submit(run, "cold-0001-00000001", 30, [[key(COLD, "ada")]])
    publish(run, key(COLD, "ada"), 20, {"generate": 5}, pid=1, num_completion_tokens=1)
    assert seconds_of(times_of(run)) == {"generate": 5}


@pytest.mark.parametrize(("submitted", "start", "ready", "began"), list(permutations((0.0, 1.0, 2.0, 3.0))))
def test_waits_are_in_order_for_all_orders_of_the_clocks(
    submitted: float, start: float, ready: float, began: float
) -> None:
    task = TaskTime(
        key=key(COLD, "ada"),
        began=began,
        ended=began + 5,
        host="n",
        pid=1,
        process=(start, ready),
        submitted=submitted,
    )
    (queue, a, b), (process, c, d) = task.waits
    assert (queue, process) == ("queue", "start")
    assert a <= b == c <= d <= began
    assert task.appeared == min(submitted, start, ready, began)
    if submitted < start < ready < began:
        assert (a, b, d) == (submitted, start, ready)


def test_a_run_without_tasks_and_imported_predictions(tmp_path: Path) -> None:
    run, imported = make_run(tmp_path / "run"), make_run(tmp_path / "imported")
    manifests.write_json(RunPaths(imported).identity, {"run_id": "demo", "imported": {"models": ["ada"]}})
    for folder, note in ((run, NOTHING), (imported, IMPORTED)):
        times = times_of(folder)
        assert [frame(times).height for frame in (time_table, iteration_table, waited_table)] == [0, 0, 0]
        tables = time_report(times)
        assert [table.notes for table in tables] == [[note]] * 3
        for form in FORMATS[1:]:
            assert all(table_text(table, form) for table in tables)


def test_only_an_evaluation_is_published(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    publish(run, key(EVALUATE, "ada", iteration=0), 0, {"generate": 3}, num_completion_tokens=6)
    times = times_of(run)
    assert iteration_table(times).height == waited_table(times).height == 0
    assert time_table(times).select("seconds", "tokens_per_s").row(0) == (pytest.approx(3), pytest.approx(2))
    assert time_report(times)[2].shown.height == 1


def test_report_tables(tmp_path: Path) -> None:
    publish_iteration(run := make_run(tmp_path / "run"))
    tables = time_report(times_of(run))
    console = Console(width=200)
    with console.capture() as capture:
        render(tables, console)
    assert "another model: 10.0 s" in capture.get()
    iterations, waited, speed = tables
    assert iterations.shown.row(0, named=True)["overhead (%)"] == "44.4"  # 1 - 35 / 63
    first = waited.shown.row(0, named=True)
    assert (first["item"], first["all"], first["all (%)"], first["latest"]) == ("generate", "21.0", "33.3", "21.0")
    update = speed.shown.filter(phase=UPDATE, model="ada").row(0, named=True)
    assert (update["log-probabilities"], update["train"]) == ("3.0", "5.0")
    assert (update["tokens/s"], update["padding (%)"]) == ("80.0", "20.0")


def test_figure_of_the_tasks_of_an_iteration(tmp_path: Path) -> None:
    publish_iteration(run := make_run(tmp_path / "run"), at=100)
    figure = time_figure(load_run(run), times_of(run))
    assert "iteration 1" in figure.caption
    spans = {
        (row["model"], row["phase"], row["item"]): (row["began_s"], row["ended_s"])
        for row in figure.points.iter_rows(named=True)
    }
    expected = {  # the drawing in publish_iteration
        ("ada", COLD, "load"): (0, 4),
        ("ada", COLD, "generate"): (4, 10),
        ("bob", RESCUE, "generate"): (23, 29),
        (TEAM, SCORE, "score"): (31, 32),
    }
    for name, span in expected.items():
        assert spans[name] == pytest.approx(span)
    assert max(end for _, end in spans.values()) == pytest.approx(63)
    assert figure.points["model"].unique(maintain_order=True).to_list() == ["ada", "bob", TEAM]
    assert len(write(figure, tmp_path / "figures")) > 1000


def test_the_command_prints_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_iteration(run := make_run(tmp_path / "demo" / "run"))
    assert main(["time", str(run.parent)]) == 0
    assert "another model: 10.0 s" in capsys.readouterr().out


def test_a_resumed_update_beyond_the_configured_iterations(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")  # asks for 2 iterations
    publish(run, key(UPDATE, "ada", iteration=3), 0, {"mystery": 2, "update": 3}, num_tokens=3, resumed_from_step=4)
    times = times_of(run)
    assert iteration_table(times).select("tasks", "of_tasks").row(0) == (1, 8)
    assert list(seconds_of(times, 3).items()) == [("train", 3), ("mystery", 2)]  # unknown items come last
    assert any(note.startswith("1 updates continued from a checkpoint") for note in time_report(times)[0].notes)


# --- random schedules ----------------------------------------------------------------------------


def test_shared_seconds_against_a_count_second_by_second() -> None:
    draw = random.Random(3)
    for _ in range(50):
        starts = (draw.randrange(30) for _ in range(draw.randrange(8)))
        spans = [(draw.choice("abc"), a, a + draw.randrange(9)) for a in starts]
        expected: dict[str, Fraction] = {name: Fraction(0) for name, a, b in spans if b > a}
        for second in range(40):
            active = [name for name, a, b in spans if a <= second < b]
            for name in active:
                expected[name] += Fraction(1, len(active))
        found = shared_seconds((name, float(a), float(b)) for name, a, b in spans)
        assert found == pytest.approx({name: float(s) for name, s in expected.items()})


def random_schedule(draw: random.Random, graph: Graph) -> list[TaskTime]:
    """Run all tasks for whole seconds on a few processes.

    A task begins when its inputs are published and a process is free, or 2 seconds later.
    """
    free, ended, tasks = [0] * draw.randint(1, 3), {}, []
    for k in graph.tasks():
        pid = min(range(len(free)), key=lambda p: free[p])
        began = max([free[pid], *(ended[i] for i in graph.inputs(k))]) + draw.choice((0, 0, 0, 2))
        laps = tuple((name, float(draw.randrange(4))) for name in ("load", "generate", "publish"))
        free[pid] = ended[k] = began + int(sum(s for _, s in laps))
        tasks.append(TaskTime(key=k, began=float(began), ended=float(ended[k]), host="n", pid=pid, laps=laps))
    return tasks


@pytest.mark.parametrize("seed", range(20))
def test_segments_of_random_schedules_are_what_happened_at_their_time(seed: int) -> None:
    draw = random.Random(seed)
    graph = Graph(
        models=("ada", "bob"),
        iterations=2,
        num_parts=draw.randint(1, 3),
        num_evaluation_parts=1,
        evaluate_every=1,
        evaluate_before=True,
        has_rescue=True,
    )
    tasks = random_schedule(draw, graph)
    by_key = {t.key: t for t in tasks}
    for iteration in (1, 2):
        own = [t for t in tasks if t.key.iteration == iteration and t.key.phase != EVALUATE]
        path = critical_path(tasks, iteration, graph.inputs)
        assert path[0].began == min(t.began for t in own)
        assert path[-1].ended == max(t.ended for t in own)
        assert all(a.ended == b.began for a, b in pairwise(path))
        for segment in path:
            check_segment(segment, tasks, by_key[segment.key], iteration)


def check_segment(segment: Segment, tasks: list[TaskTime], task: TaskTime, iteration: int) -> None:
    """Check each second: the lap of the task, or what ran while the task was waiting."""
    assert segment.seconds > 0
    for second in range(int(segment.began), int(segment.ended)):
        running = [t for t in tasks if t.began <= second < t.ended]
        if segment.item in ("load", "generate", "publish"):
            done = second - task.began
            names = [name for name, s in task.laps for _ in range(int(s))]
            assert names[int(done)] == segment.item
        elif segment.item == "evaluation":
            assert any(t.key.phase == EVALUATE for t in running)
        elif segment.item == "another iteration":
            assert any(t.key.iteration != iteration for t in running)
        elif segment.item == "idle":
            assert not running
        else:
            assert segment.item in ("another model", "another part")
            assert task not in running
            assert any(t.key.iteration == iteration and t.key.phase != EVALUATE for t in running)
            assert segment.item in ITEMS


# --- what tasks record ---------------------------------------------------------------------------


def test_a_process_reports_its_start_with_its_first_task_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_HPC_JOB_START", "1700000000")
    before = time.time()
    warm = Warm()
    times = warm.take_times()
    assert before <= times["process_ready"] <= time.time()
    assert times["process_started"] == psutil.Process(os.getpid()).create_time() < before
    assert times["job_started"] == 1.7e9
    assert warm.take_times() == {}
    monkeypatch.delenv("CORE_HPC_JOB_START")
    assert "job_started" not in Warm().take_times()


def test_a_clock_waits_for_the_work_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: time.sleep(0.05))
    timings = UpdateTimings()
    with timings.clock("train_s"):
        pass
    assert timings.train_s >= 0.05
