"""Functions of the user in whole runs: a file that is changed meanwhile, and functions that fail or hang."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import SCORE, STEPS, UPDATE
from tests.support.examples import overrides, run_to_scores
from tests.support.harness import ROOT, equal_content, launch, launched_and_held, published_content, the_run

pytestmark = pytest.mark.slow
SWEEP = """
base: {folder}/training.yaml
name: own
reward:
  parts:
    brevity: {{function: {folder}/my_rewards.py:brevity, weight: 0.1}}
"""
FAILS_IN_RESCUES = """
def brevity(problem, completions, *, limit=3):
    if any(completion.phase == "rescue" for completion in completions):
        {body}
    return [0.0 for _ in completions]
"""


def sweep_in(folder: Path, reward: str | None = None) -> Path:
    """A copy of the shipped examples, and a small sweep that uses the functions of two files of it."""
    shutil.copytree(ROOT / "yaml", folder / "yaml", ignore=shutil.ignore_patterns("*.md"))
    examples = folder / "yaml" / "examples"
    if reward is not None:
        (examples / "my_rewards.py").write_text(reward)
    path = examples / "own.yaml"
    path.write_text(SWEEP.format(folder=examples))
    return path


def arguments(sweep: Path, models: list[Path], *more: str) -> list[str]:
    values = [*overrides(models, sweep.parents[2] / "out"), *more]
    return [argument for value in values for argument in ("--set", value)]


def test_a_file_that_is_changed_in_the_middle_changes_no_run(tiny_models: list[Path], tmp_path: Path) -> None:
    """The tasks of a model alone that begin after the change use the copies, because the new content raises an error.

    The rows are those of the same tasks in this process. The next start refuses the new content.
    """
    undisturbed = run_to_scores(sweep_in(tmp_path / "a"), tiny_models[:1], tmp_path / "a" / "out")
    sweep = sweep_in(tmp_path / "b")
    files = [sweep.with_name(name) for name in ("my_rewards.py", "my_training.py")]
    hold, given = tmp_path / "hold", arguments(sweep, tiny_models[:1])
    with launched_and_held(sweep, "task.started@hint/0001", hold, env={}, arguments=given) as process:
        for file in files:
            file.write_text(f"raise RuntimeError('changed {file.name}')")
        Path(f"{hold}.go").touch()
        printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    second = the_run(tmp_path / "b" / "out" / "own")
    assert undisturbed.run_id == second.name
    expected, found = published_content(undisturbed.root), published_content(second)
    assert f"{TaskKey(1, SCORE, TEAM)} scores" in expected
    assert [name for name, rows in expected.items() if not equal_content(rows, found.get(name))] == []
    assert shards.read_task(second, TaskKey(1, UPDATE, "m0"), STEPS).height > 0
    refused = launch(sweep, *given)
    assert refused.returncode == 2
    assert "my_rewards.py: has no function brevity at its top level (it has none)" in refused.stderr
    for file in files:
        shutil.copy(ROOT / "yaml" / "examples" / file.name, file)
    files[0].write_text(files[0].read_text() + "\n# a comment\n")
    refused = launch(sweep, *given)
    assert refused.returncode == 2
    assert "reward.parts.brevity.function: 'my_rewards.py:brevity@" in refused.stderr


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            "return [1 / (limit - 3)]",
            "my_rewards.py, line 4, in brevity: ZeroDivisionError: division by zero",
            marks=pytest.mark.full(reason="the usual run has a function that hangs, and one that fails at once"),
        ),
        ("while limit: pass", "my_rewards.py, line 4, in brevity: did not return within 2 s and was stopped"),
    ],
)
def test_a_function_that_fails_stops_the_run_with_its_line(
    tiny_models: list[Path], tmp_path: Path, body: str, expected: str
) -> None:
    sweep = sweep_in(tmp_path, FAILS_IN_RESCUES.format(body=body))
    done = launch(sweep, *arguments(sweep, tiny_models, "extensions.time_limit_s=2", "cluster.max_attempts=1"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"failed 1 time: {expected}" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stdout + done.stderr


def test_a_function_that_fails_at_once_is_reported_before_anything_is_created(
    tiny_models: list[Path], tmp_path: Path
) -> None:
    sweep = sweep_in(tmp_path, "def brevity(problem, completions):\n    return [c.txt for c in completions]\n")
    done = launch(sweep, *arguments(sweep, tiny_models))
    assert done.returncode == 2
    assert "reward.parts.brevity.function: " in done.stderr
    assert (
        "my_rewards.py, line 2, in <listcomp>: AttributeError: 'Completion' object has no attribute 'txt'"
        in done.stderr
    )
    assert not list((tmp_path / "out").rglob("run.json"))
