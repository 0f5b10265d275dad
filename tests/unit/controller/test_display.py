"""The live display shows which share of the completions is useless, as a sum over the parts of a phase."""

from __future__ import annotations

import io
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from core_hpc.controller.display import Display
from core_hpc.runs.events import Done, Started, TaskRef
from core_hpc.schedule.progress import RunProgress
from core_hpc.store.paths import TaskKey
from tests.support.tracked_run import make_run


def test_the_panel_has_the_shares_of_the_latest_evaluation_and_cold_phase(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    progress = RunProgress(run, run.graph(), set())
    console = Console(file=io.StringIO(), width=300)
    display = Display(console, "tiny", [progress], refreshes_per_s=1, warm=True)

    def finish(key: TaskKey, truncated: int, no_answer: int) -> None:
        stats = {
            "num_completions": 10,
            "num_completion_tokens": 100,
            "num_truncated": truncated,
            "num_no_answer": no_answer,
            "seconds": {"generate": 1.0},
        }
        display.on_event(progress, Done(TaskRef(run.run_id, key), stats=stats))

    def panel() -> str:
        console.print(display._panel())
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    finish(TaskKey(0, "evaluate", "m0"), 8, 1)
    finish(TaskKey(0, "evaluate", "m1"), 0, 0)
    finish(TaskKey(1, "cold", "m0"), 0, 5)
    assert "evaluate 0: 40 % truncated, 5 % without an answer" in panel()
    assert "cold 1: 0 % truncated, 50 % without an answer" in panel()
    assert "WARNING: 8 of 10 completions were cut at the token limit" in panel()
    finish(TaskKey(2, "cold", "m0"), 1, 0)
    assert "cold 2: 10 % truncated, 0 % without an answer" in panel()


def test_a_panel_with_two_iterations_shows_to_which_one_a_task_belongs(tmp_path: Path) -> None:
    """With staleness, cold tasks of iteration 2 run beside updates of iteration 1."""
    run = make_run(tmp_path)
    graph = replace(run.graph(), staleness=1)
    sampled = {key for key in graph.tasks() if key.iteration == 0 or (key.iteration == 1 and key.phase != "update")}
    progress = RunProgress(run, graph, sampled)
    running = [TaskKey(1, "update", "m0"), TaskKey(2, "cold", "m1")]
    assert set(running) <= set(progress.ready())
    console = Console(file=io.StringIO(), width=300)
    display = Display(console, "tiny", [progress], refreshes_per_s=1, warm=True)
    for key in running:
        progress.in_flight[key] = 0.0
        display.on_event(progress, Started(TaskRef(run.run_id, key)))
    console.print(display._panel())
    assert isinstance(console.file, io.StringIO)
    lines = [line.split()[:3] for line in console.file.getvalue().splitlines()]
    assert ["update", "1", "m0"] in lines
    assert ["cold", "2", "m1"] in lines
    assert "iteration 1/2" in console.file.getvalue()
    assert "2 running" in console.file.getvalue()


def test_a_panel_of_many_runs_fits_on_a_terminal_and_prefers_those_that_run(tmp_path: Path) -> None:
    """200 rows would push the tasks and the time left out of sight."""
    run = make_run(tmp_path)
    graph, first = run.graph(), run.graph().tasks()[0]
    runs = [RunProgress(replace(run, run_id=f"run{i}"), graph, set()) for i in range(40)]
    for i in (3, 38):
        runs[i].in_flight[first] = 0.0
    runs[20].stopped = "no space left"
    runs[0] = RunProgress(replace(run, run_id="run0"), graph, set(graph.tasks()))
    console = Console(file=io.StringIO(), width=200, height=40)
    display = Display(console, "tiny", runs, refreshes_per_s=1, warm=True)
    console.print(display._panel())
    assert isinstance(console.file, io.StringIO)
    shown = [int(found) for found in re.findall(r"(?m)^run(\d+) ", console.file.getvalue())]
    assert shown == [1, *range(2, 12), 38]  # in the order of the sweep; run0 is finished, run20 stopped
    assert "and 28 more: 26 waiting, 1 stopped, 1 finished" in console.file.getvalue()
    assert len(console.file.getvalue().splitlines()) < console.height


def test_the_panel_can_be_drawn_while_tasks_end(tmp_path: Path) -> None:
    """rich draws it in a thread of its own, which an exception would end."""
    run = make_run(tmp_path)
    progress = RunProgress(run, replace(run.graph(), iterations=20), set())
    display = Display(Console(file=io.StringIO()), "tiny", [progress], refreshes_per_s=1, warm=True)
    errors: list[Exception] = []
    ended = threading.Event()

    def draw() -> None:
        while not ended.is_set():
            try:
                display._panel()
            except Exception as e:  # noqa: BLE001 - whatever it is, it ends rich's thread
                errors.append(e)

    thread = threading.Thread(target=draw)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for i, key in enumerate(progress.graph.tasks()):
            progress.add_published(key)
            stats = {"seconds": {"generate": 1.0}, "num_completions": i, "num_completion_tokens": 1}
            display.on_event(progress, Done(TaskRef(run.run_id, key), stats=stats))
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval_s)
    assert not errors, f"{len(errors)} errors: {set(map(str, errors))}"
