"""Frozen problems that are damaged: made again where that gives the same problems, otherwise a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import yaml
from core_hpc.common.errors import StoreError
from core_hpc.controller.prepare import splits_of
from core_hpc.problems.splits import SPLITS, problems_digest
from core_hpc.runs import creation
from core_hpc.runs.folder import Run
from core_hpc.runs.frozen import restore_problems
from core_hpc.runs.sweep import load_sweep
from core_hpc.schedule.progress import inspect_run
from core_hpc.store import manifests, shards
from core_hpc.store.schema import PROBLEMS
from tests.support.created_run import create_run
from tests.support.harness import flip_a_byte


def run_in(folder: Path, *, from_file: bool = False) -> Run:
    source = (
        {"source": "jsonl", "path": str(folder / "train.jsonl")} if from_file else {"source": "generated", "count": 4}
    )
    if from_file:
        write_problems(folder / "train.jsonl", "What is {} + {}?")
    data = {
        "name": "s",
        "iterations": 1,
        "output": str(folder),
        "team": [{"name": "a", "model": "x"}, {"name": "b", "model": "x"}],
        "problems": {"train": source, "evaluation": {"source": "generated", "count": 3}},
        "protocol": {"problems_per_iteration": 2},
    }
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(data))
    sweep = load_sweep(path)
    return create_run(sweep)


def write_problems(path: Path, question: str) -> None:
    rows = [{"id": f"p{i}", "question": question.format(i, i + 1), "answer": str(2 * i + 1)} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def data_file(run: Run, name: str) -> Path:
    return manifests.read_manifest(run.paths.problems / f"{name}.manifest.json").file(".parquet")


def rewrite(change: Callable[[Path], object]) -> Callable[[Run, str], object]:
    return lambda run, name: change(run.paths.problems / f"{name}.manifest.json")


DAMAGES: dict[str, Callable[[Run, str], object]] = {
    "byte": lambda run, name: flip_a_byte(data_file(run, name)),
    "lost file": lambda run, name: data_file(run, name).unlink(),
    "empty file": lambda run, name: data_file(run, name).write_bytes(b""),
    "lost manifest": rewrite(Path.unlink),
    "no files": rewrite(lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "files": []}))),
    "torn manifest": rewrite(lambda path: path.write_bytes(path.read_bytes()[:50])),
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "VISIBILITY_DELAYS_S", (0.01,))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("from_file", [False, True])
def test_damaged_problems_are_made_again_from_their_source(
    tmp_path: Path, damage: Callable[[Run, str], object], from_file: bool
) -> None:
    run = run_in(tmp_path, from_file=from_file)
    before = {name: run.split(name) for name in SPLITS}
    assert restore_problems(run) == []
    for name in ("train", "evaluation"):
        damage(run, name)
    progress, messages = inspect_run(run)
    assert len(messages) == 2
    assert all("made again from the same source" in message for message in messages)
    assert not progress.finished
    for name in SPLITS:
        assert run.split(name).equals(before[name])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_problems_whose_source_has_changed_are_not_replaced(
    tmp_path: Path, damage: Callable[[Run, str], object]
) -> None:
    run = run_in(tmp_path, from_file=True)
    damage(run, "train")
    left = sorted(p.name for p in run.paths.problems.iterdir())
    write_problems(tmp_path / "train.jsonl", "How much is {} plus {}?")
    with pytest.raises(StoreError, match=r"other problems now[\s\S]*Restore .*train\.\* from a backup"):
        inspect_run(run)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(StoreError, match=r"source does not help[\s\S]*Restore .*train\.\* from a backup"):
        inspect_run(run)
    assert sorted(p.name for p in run.paths.problems.iterdir()) == left


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_run_of_an_earlier_version_has_no_digest(tmp_path: Path, damage: Callable[[Run, str], object]) -> None:
    """Its manifest, or a data file, must prove that the problems are the same."""
    run = run_in(tmp_path)
    identity = json.loads(run.paths.identity.read_text())
    del identity["problems"]
    run.paths.identity.write_text(json.dumps(identity))
    before = run.split("train")
    damage(run, "train")
    assert len(restore_problems(run)) == 1
    assert run.split("train").equals(before)
    data_file(run, "train").unlink()
    for path in run.paths.problems.glob("train.*"):
        path.unlink()
    with pytest.raises(StoreError, match="cannot be proven"):
        restore_problems(run)


def test_the_digest_is_of_the_problems_and_not_of_their_file(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    recorded = json.loads(run.paths.identity.read_text())["problems"]
    train = run.split("train")
    assert recorded["train"] == problems_digest(train) == problems_digest(train.rechunk())
    assert len({*recorded.values(), problems_digest(train[::-1]), problems_digest(train[1:])}) == 5
    assert problems_digest(train.with_columns(gold=pl.lit("1"))) != recorded["train"]


def test_an_interrupted_creation_records_the_problems_that_it_has_frozen(tmp_path: Path) -> None:
    """The source was changed between the interrupted start and the next one."""
    run = run_in(tmp_path, from_file=True)
    run.paths.identity.unlink()
    frozen = run.split("train")
    sweep = load_sweep(tmp_path / "s.yaml")
    write_problems(tmp_path / "train.jsonl", "How much is {} plus {}?")
    (plan,) = sweep.runs
    again = creation.create(plan, sweep.folder, splits_of(plan), run.facts)
    assert again.split("train").equals(frozen)
    assert json.loads(run.paths.identity.read_text())["problems"]["train"] == problems_digest(frozen)
    flip_a_byte(data_file(run, "train"))
    run.paths.identity.unlink()
    new = splits_of(plan).train
    assert creation.create(plan, sweep.folder, splits_of(plan), run.facts).split("train").equals(new)
    assert shards.read_manifest_table(
        manifests.read_manifest(run.paths.problems / "train.manifest.json"), PROBLEMS
    ).equals(new)
