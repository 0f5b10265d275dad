"""Loading a run: counts against a plain loop over the rows, and errors that name incorrect rows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.counts import cache, tasks
from analysis.counts.answers import with_answers
from analysis.counts.counts import ANSWER_KEYS, ANSWERS, COUNTS, KEYS
from analysis.counts.integrity import whole
from analysis.counts.load import RunData, keep_counts, load_run
from analysis.counts.scan import Shard, damage
from analysis.metrics.rescue import rescue_table
from core_hpc.common.errors import InputError, StoreError
from core_hpc.problems.splits import problems_of_iteration
from core_hpc.runs.folder import read_run_config
from core_hpc.store import manifests, schema, shards
from core_hpc.store.manifests import DamagedError
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import GENERATION_PHASES, ROLLOUTS
from tests.support.analysis_data import config, evaluation_rows, make_run, pick, publish_rollouts, rollout, rollouts

PROBLEMS = [f"t{i}" for i in range(5)]


def all_rows() -> list[dict[str, Any]]:
    """Make the rows of an evaluation and of an iteration.

    In the iteration, ada fails on t0 and t1, and samples them again with or without a hint of bob.
    """
    held_out = evaluation_rows({"ada": [[True, False], [False, True], [False, False]], "bob": [[True, True]] * 3}, 0)
    cold = [
        rollout(
            model=m,
            problem_id=p,
            sample_index=s,
            correct=m == "bob" or p > "t1",
            answer=str(s),
            finish_reason="length" if s else "stop",
        )
        for m in ("ada", "bob")
        for p in PROBLEMS
        for s in range(2)
    ]
    rescue = [
        rollout(
            phase="rescue",
            model="ada",
            problem_id=p,
            sample_index=s,
            hint_given=s < 2,
            correct=s == 1,
            cold_failed=True,
            teacher_model="bob",
            teacher_sample_index=0,
            verdict="timeout" if s == 2 else ("correct" if s == 1 else "wrong"),
        )
        for p in ("t0", "t1")
        for s in range(3)
    ]
    return [*held_out, *cold, *rescue]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "demo-1")
    publish_rollouts(folder, all_rows())
    return folder


def plain_counts(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Compute the counts with a loop."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        zero = {"n": 0, "c": 0, "num_timeout": 0, "num_truncated": 0, "num_no_answer": 0, "first_correct": None}
        group = groups.setdefault(tuple(row[k] for k in KEYS), zero)
        group["n"] += 1
        group["c"] += row["correct"]
        group["num_timeout"] += row["verdict"] == "timeout"
        group["num_truncated"] += row["finish_reason"] == "length"
        group["num_no_answer"] += row["verdict"] == "no_answer"
        if row["correct"] and (group["first_correct"] is None or row["sample_index"] < group["first_correct"]):
            group["first_correct"] = row["sample_index"]
    return pl.DataFrame(
        [{**dict(zip(KEYS, key, strict=True)), **group} for key, group in groups.items()], schema=COUNTS
    ).sort(KEYS)


def test_counts_are_those_of_a_loop(run: Path) -> None:
    data = load_run(run)
    assert data.counts.select(list(COUNTS)).sort(KEYS).equals(plain_counts(all_rows()))
    answers = Counter(tuple(row[k] for k in ANSWER_KEYS) for row in all_rows() if row["phase"] != "rescue")
    found = {tuple(row[:-1]): row[-1] for row in data.answers.select(list(ANSWERS)).rows()}
    assert found == answers
    assert data.counts["data_set"].unique().to_list() == ["addition_chain"]
    assert load_run(run, answers=False).answers.height == 0


def test_correct_tasks_are_counted_without_the_general_tally(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast counts of all phases are used, and they are those of the general way."""
    fast = load_run(run)
    with monkeypatch.context() as general:
        general.setattr(tasks, "count_whole", lambda *args, **kwargs: None)
        slow = load_run(run)
    for name, keys in (("counts", KEYS), ("answers", ANSWER_KEYS)):
        assert getattr(fast, name).sort(keys).equals(getattr(slow, name).sort(keys))
    monkeypatch.setattr(tasks, "tally", None)
    assert load_run(run).counts.height == fast.counts.height


def replace_shard(run: Path, key: TaskKey, change: Any) -> Path:
    """Publish changed rows under the key of a task, as if the task had made them."""
    paths = RunPaths(run)
    frame = shards.read_task(run, key, ROLLOUTS)
    paths.task_manifest(key).unlink()
    changed = pl.DataFrame(change(frame.to_dicts()), schema=ROLLOUTS.schema)

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        changed.write_parquet(temporary / "shard.parquet")  # unchecked, like a shard of other software
        return {"shard.parquet": (changed.height, ROLLOUTS.name)}

    return manifests.publish(paths.task_folder(key), paths.task_name(key), fill, as_folder=False).file(".parquet")


COLD_ADA = TaskKey(1, "cold", "ada")
RESCUE_ADA = TaskKey(1, "rescue", "ada")
EVALUATE_ADA = TaskKey(0, "evaluate", "ada")


def with_row(index: int, **values: Any) -> Any:
    return lambda rows: [{**row, **values} if i == index else row for i, row in enumerate(rows)]


HARD = {"name": "hard", "problems": {"source": "generated", "count": 2}, "samples": 3}
"""A further set of the evaluation, with another number of completions than the main one."""


def run_with_set(folder: Path) -> Path:
    """Make a run of which ada has one evaluation: 2 completions of p0 to p2, and 3 of the set hard."""
    run = make_run(folder, config(evaluation={"samples": 2, "sets": [HARD]}))
    main = evaluation_rows({"ada": [[True, False]] * 3}, 0)
    of_set = evaluation_rows({"ada": [[True, True, False], [False, False, True]]}, 0)
    publish_rollouts(run, [*main, *({**row, "problem_id": f"hard/{row['problem_id']}"} for row in of_set)])
    path = RunPaths(run).config
    plain = manifests.read_json(path)
    plain["evaluation"]["samples"] = 2
    manifests.write_json(path, plain)
    return run


def test_sets_with_another_number_of_completions_are_counted_without_the_general_tally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_set(tmp_path / "demo-1")
    monkeypatch.setattr(tasks, "tally", None)
    data = load_run(run)
    main, hard = (
        own.counts.select("problem_id", "n", "c").sort("problem_id").rows() for own in (data, data.sets["hard"])
    )
    assert main == [("p0", 2, 1), ("p1", 2, 1), ("p2", 2, 1)]
    assert hard == [("hard/p0", 3, 2), ("hard/p1", 3, 1)]


@pytest.mark.parametrize(
    ("folder", "title", "name"),
    [
        ("seed-1-0a1b2c3d", "demo: seed-1", "seed-1-0a1b2c3d"),
        ("run-0a1b2c3d", "demo", "run-0a1b2c3d"),
    ],
)
def test_titles_of_sets_are_without_the_hash(tmp_path: Path, folder: str, title: str, name: str) -> None:
    data = load_run(run_with_set(tmp_path / folder))
    assert (data.title, data.name) == (title, name)
    assert (data.sets["hard"].title, data.sets["hard"].name) == (f"{title}, set hard", f"{name}, set hard")


def _published(data: RunData) -> list[str]:
    return data.counts.filter(pl.col("n") > 0)["problem_id"].to_list()


@pytest.mark.parametrize(
    ("problem", "message"),
    [("hard/p1", "problem hard/p1: 2 completions instead of 3"), ("p1", "problem p1: 1 completions instead of 2")],
)
def test_a_wrong_number_of_completions_in_a_set_is_found(tmp_path: Path, problem: str, message: str) -> None:
    run = run_with_set(tmp_path / "demo-1")
    last = (problem, 2 if problem.startswith("hard") else 1)
    replace_shard(
        run,
        EVALUATE_ADA,
        lambda rows: [row for row in rows if (row["problem_id"], row["sample_index"]) != last],
    )
    with pytest.raises(StoreError, match=message):
        load_run(run)
    data = load_run(run, lenient=True)
    left = [*_published(data), *_published(data.sets["hard"])]
    assert sorted(left) == sorted({"p0", "p1", "p2", "hard/p0", "hard/p1"} - {problem})


FAULTS = [
    (COLD_ADA, lambda rows: [*rows, rows[3]], "row 10: cold 1, ada, problem t1: 3 completions instead of 2", "t1"),
    (
        COLD_ADA,
        with_row(3, sample_index=0),
        "row 3: cold 1, ada, problem t1: the sample indices are not 0 to 1, each of them once",
        "t1",
    ),
    (COLD_ADA, lambda rows: rows[:3] + rows[4:], "row 2: cold 1, ada, problem t1: 1 completions instead of 2", "t1"),
    (COLD_ADA, lambda rows: rows[:2] + rows[4:], "manifest.json: cold 1, ada, problem t1: no row", "t1"),
    (COLD_ADA, with_row(4, run_id="other"), "row 4: cold 1, ada, problem t2: a row of run other, not of demo", "t2"),
    (
        COLD_ADA,
        with_row(4, problem_id="t9"),
        "row 4: cold 1, ada, problem t9: a problem that does not belong to this task",
        "t2",
    ),
    (
        COLD_ADA,
        with_row(4, iteration=2),
        "row 4: cold 2, ada, problem t2: a problem that does not belong to this task",
        "t2",
    ),
    (COLD_ADA, with_row(5, gold="3"), "row 5: cold 1, ada, problem t2: gold answer '3', the problem has '2'", "t2"),
    (COLD_ADA, with_row(6, hint_given=True), "row 6: cold 1, ada, problem t3: a hinted row", "t3"),
    (EVALUATE_ADA, with_row(0, hint_given=True), "row 0: evaluate 0, ada, problem p0: a hinted row", "p0"),
    (RESCUE_ADA, lambda rows: rows[:5], "row 3: rescue 1, ada, problem t1: 2 completions instead of 3", "t1"),
    (
        RESCUE_ADA,
        with_row(5, sample_index=1),
        "row 5: rescue 1, ada, problem t1: the sample indices are not 0 to 2, each of them once",
        "t1",
    ),
    (RESCUE_ADA, with_row(4, gold="3"), "row 4: rescue 1, ada, problem t1: gold answer '3', the problem has '2'", "t1"),
    (RESCUE_ADA, with_row(4, run_id="other"), "row 4: rescue 1, ada, problem t1: a row of run other", "t1"),
    (
        RESCUE_ADA,
        lambda rows: [{**row, "problem_id": "t9"} if row["problem_id"] == "t1" else row for row in rows],
        "row 3: rescue 1, ada, problem t9: a problem that does not belong to this task",
        "t1",
    ),
]


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_only_each_index_once_is_whole(n: int) -> None:
    """All multisets of n of the indices, such as 0, 0, 3, 3 with the sum of 0, 1, 2, 3."""
    for indices in combinations_with_replacement(range(n), n):
        squares = sum(i * i for i in indices)
        tally = {"n": [n], "last_index": [indices[-1]], "sum_index": [sum(indices)], "sum_squares": [squares]}
        assert pl.DataFrame(tally).select(whole(pl.lit(n))).item() is (indices == tuple(range(n)))


@pytest.mark.parametrize(("key", "change", "message", "problem"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_incorrect_rows_are_named(run: Path, key: TaskKey, change: Any, message: str, problem: str) -> None:
    path = replace_shard(run, key, change)
    with pytest.raises(StoreError) as error:
        load_run(run)
    assert message in str(error.value)
    if "row" in message.split(":")[0]:
        assert f"{path}: {message}" in str(error.value)
    assert "--lenient" in str(error.value)
    data = load_run(run, lenient=True)
    here = (pl.col("iteration") == key.iteration) & (pl.col("phase") == key.phase) & (pl.col("model") == key.model)
    expected = plain_counts(all_rows()).filter(~(here & (pl.col("problem_id") == problem)))
    assert data.counts.select(list(COUNTS)).sort(KEYS).equals(expected)
    assert any(message in line for line in data.left_out)
    assert data.answers.filter(here & (pl.col("problem_id") == problem)).height == 0


def test_damaged_files_are_named_and_can_be_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By default, a missing file is an error only after a delay.
    monkeypatch.setattr(manifests, "VISIBILITY_DELAYS_S", (0.0,))
    torn = manifests.read_manifest(RunPaths(run).task_manifest(COLD_ADA)).file(".parquet")
    torn.write_bytes(torn.read_bytes()[:-100])
    garbled = manifests.read_manifest(RunPaths(run).task_manifest(EVALUATE_ADA)).file(".parquet")
    garbled.write_bytes(b"x" * garbled.stat().st_size)
    with pytest.raises(StoreError, match=rf"{torn.name}: \d+ bytes, but its manifest records"):
        load_run(run)
    data = load_run(run, lenient=True)
    assert len(data.left_out) == 2
    assert {torn.name in line or garbled.name in line for line in data.left_out} == {True}
    kept_rows = [r for r in all_rows() if (r["phase"], r["model"]) not in {("cold", "ada"), ("evaluate", "ada")}]
    assert data.counts.select(list(COUNTS)).sort(KEYS).equals(plain_counts(kept_rows))
    found = with_answers(load_run(run, answers=False, lenient=True), [0]).answers
    assert found.sort(ANSWER_KEYS).equals(data.answers.filter(pl.col("phase") == "evaluate").sort(ANSWER_KEYS))
    assert found["model"].unique().to_list() == ["bob"]
    torn.unlink()
    with pytest.raises(StoreError, match="named by its manifest but missing"):
        load_run(run)


@pytest.mark.parametrize("column", ["finish_reason", "answer", "gold", "verdict"])
def test_a_file_without_a_required_column_is_damaged(tmp_path: Path, column: str) -> None:
    frame = rollouts([rollout()])
    frame.write_parquet(tmp_path / "whole.parquet")
    frame.drop(column).write_parquet(tmp_path / "less.parquet")
    key, manifest = TaskKey(1, "cold", "ada"), tmp_path / "m"
    assert damage(Shard(key, manifest, tmp_path / "whole.parquet", 1)) is None
    error = damage(Shard(key, manifest, tmp_path / "less.parquet", 1))
    assert str(error).startswith(f"{tmp_path / 'less.parquet'}: not a readable shard")
    error = damage(Shard(key, manifest, tmp_path / "whole.parquet", 2))
    assert "1 rows, but 2 rows according to its manifest" in str(error)


def test_cached_counts_have_only_their_iteration(run: Path) -> None:
    later = [{**row, "iteration": 2} for row in all_rows() if row["phase"] == "cold"]
    publish_rollouts(run, later)
    keep_counts(run, 1)
    assert set(cache.read(run, answers=True)) == {1}
    counts = cache.read(run, answers=True)[1].counts
    own_rows = [row for row in all_rows() if row["iteration"] == 1 and row["phase"] != "evaluate"]
    assert counts.sort(KEYS).equals(plain_counts(own_rows))


def test_garbage_of_the_right_size_is_an_error(run: Path) -> None:
    path = manifests.read_manifest(RunPaths(run).task_manifest(COLD_ADA)).file(".parquet")
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StoreError, match=f"{path}: not a readable shard of rollouts"):
        load_run(run)


def test_a_damaged_column_of_answers_is_an_error_that_names_the_file(run: Path) -> None:
    """The counts do not read this column, so the error is found when the answers are counted."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    path = manifests.read_manifest(RunPaths(run).task_manifest(COLD_ADA)).file(".parquet")
    columns = pq.read_metadata(path).row_group(0).to_dict()["columns"]
    (column,) = (c for c in columns if c["path_in_schema"] == "answer")
    start = column["dictionary_page_offset"] or column["data_page_offset"]
    content = bytearray(path.read_bytes())
    content[start : start + column["total_compressed_size"]] = b"\xff" * column["total_compressed_size"]
    path.write_bytes(content)
    assert load_run(run, answers=False).answers.height == 0
    with pytest.raises(DamagedError, match=f"{path}: not a readable shard of rollouts"):
        load_run(run)
    assert any(str(path) in line for line in load_run(run, lenient=True).left_out)


def test_another_schema_version_is_an_error_that_names_the_file(run: Path) -> None:
    manifest = RunPaths(run).task_manifest(COLD_ADA)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
    with pytest.raises(StoreError, match=f"{manifest}: schema version 99"):
        load_run(run)
    assert any("schema version 99" in line for line in load_run(run, lenient=True).left_out)


def test_unpublished_files_are_not_read(run: Path) -> None:
    before = load_run(run).counts
    path = manifests.read_manifest(RunPaths(run).task_manifest(COLD_ADA)).file(".parquet")
    (path.parent / "carl-p000.0123456789ab.parquet").write_bytes(path.read_bytes())
    assert load_run(run).counts.sort(KEYS).equals(before.sort(KEYS))


def test_an_empty_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        load_run(tmp_path)


def fail_on_scan(*args: Any, **kwargs: Any) -> Any:
    """Replace the scan of shards in a test that must not read them."""
    raise AssertionError("shards were read")


def test_cached_counts_are_used_while_they_are_valid(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_run(run)
    for iteration in (0, 1):
        keep_counts(run, iteration)
    assert cache.iterations(run) == {0, 1}
    with monkeypatch.context() as patch:
        patch.setattr("analysis.counts.scan._scan", fail_on_scan)
        again = load_run(run)
    assert again.counts.sort(KEYS).equals(before.counts.sort(KEYS))
    assert again.answers.sort(ANSWER_KEYS).equals(before.answers.sort(ANSWER_KEYS))

    replace_shard(run, COLD_ADA, lambda rows: [{**row, "correct": True, "verdict": "correct"} for row in rows])
    assert cache.iterations(run) == {0}
    changed = load_run(run).counts.filter(pl.col("phase") == "cold", pl.col("model") == "ada")
    assert changed["c"].sum() == changed["n"].sum()
    keep_counts(run, 1)
    assert cache.iterations(run) == {0, 1}
    assert len(list(RunPaths(run).kept.iterdir())) == 4, "the invalid counts are still there"


def test_answers_of_some_evaluations_are_those_of_a_full_load(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted from the shards of these evaluations only, or read from their cached counts."""
    more = [{**row, "iteration": 1} for row in all_rows() if row["phase"] == "evaluate"]
    publish_rollouts(run, [{**row, "answer": f"late {row['sample_index']}"} for row in more])
    full = load_run(run).answers.filter(pl.col("phase") == "evaluate")
    plain = load_run(run, answers=False)

    def same(iterations: list[int]) -> bool:
        found, here = with_answers(plain, iterations).answers, full.filter(pl.col("iteration").is_in(iterations))
        return here.height > 0 and found.sort(ANSWER_KEYS).equals(here.sort(ANSWER_KEYS))

    assert full["iteration"].unique().sort().to_list() == [0, 1]
    assert same([0, 1])
    assert same([1])
    assert with_answers(plain, []).answers.schema == full.schema
    keep_counts(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr("analysis.counts.scan._scan", fail_on_scan)
        patch.setattr("analysis.counts.tasks.count_whole", fail_on_scan)
        assert same([1])
    unknown = replace(plain, counts=plain.counts.filter(pl.col("model") == "bob"))
    assert with_answers(unknown, [0]).answers["model"].unique().to_list() == ["bob"]


def test_damaged_cached_counts_are_ignored(run: Path) -> None:
    before = load_run(run).counts.sort(KEYS)
    for iteration in (0, 1):
        keep_counts(run, iteration)
    folder = RunPaths(run).kept
    next(folder.glob("iteration=0000.*/counts.parquet")).write_bytes(b"nothing")
    assert load_run(run).counts.sort(KEYS).equals(before)
    (folder / "iteration=0001.manifest.json").write_text("{")
    assert load_run(run).counts.sort(KEYS).equals(before)


def test_counts_of_incorrect_rows_are_not_cached(run: Path) -> None:
    replace_shard(run, COLD_ADA, lambda rows: rows[1:])
    with pytest.raises(StoreError):
        keep_counts(run, 1)
    assert not RunPaths(run).kept.exists()
    assert [k.phase for k in shards.published_keys(run) if k.phase in GENERATION_PHASES]


# --- rescues of a run in progress -----------------------------------------------------------------


def publish_part(run: Path, key: TaskKey, problems: list[str], **values: Any) -> None:
    """Publish one completion of each of these problems as the task does."""
    labels = {"iteration": key.iteration, "phase": key.phase, "model": key.model, **values}
    frame = rollouts([rollout(problem_id=problem, **labels) for problem in problems])
    paths = RunPaths(run)
    shards.publish_frame(paths.task_folder(key), paths.task_name(key), frame, ROLLOUTS)


def in_iteration(run: Path, names: list[str], iteration: int) -> list[str]:
    """These problems in the order of an iteration."""
    return [names[i] for i in problems_of_iteration(len(names), len(names), iteration, read_run_config(run).seed)]


def recovery(run: Path, *, lenient: bool = False, **group: Any) -> tuple[int, int]:
    row = pick(rescue_table(load_run(run, lenient=lenient).counts), rate="recovery", **(group or {"group": "all"}))
    return row["numerator"], row["denominator"]


def test_recovery_counts_cases_whose_rescue_is_published(tmp_path: Path) -> None:
    """Two parts of two problems. Both models fail everywhere; only one problem of part 0 has a hint."""
    protocol = {"problems_per_iteration": 4, "problems_per_part": 2, "cold_samples": 1, "rescue_samples": 1}
    run = make_run(tmp_path / "demo-1", config(protocol=protocol))
    names = [f"t{i}" for i in range(4)]
    constants = {"question": "What?", "gold": "2", "answer_kind": "number", "metadata": "{}"}
    table = pl.DataFrame([{"problem_id": name, **constants} for name in names], schema=schema.PROBLEMS.schema)
    shards.publish_frame(RunPaths(run).problems, "train", table, schema.PROBLEMS)
    order = in_iteration(run, names, 1)
    for part, problems in enumerate((order[:2], order[2:])):
        for model in ("ada", "bob"):
            publish_part(run, TaskKey(1, "cold", model, part), problems)
    assert rescue_table(load_run(run).counts).height == 0
    hinted = {"hint_given": True, "cold_failed": True, "teacher_model": "bob"}
    publish_part(run, TaskKey(1, "rescue", "ada", 0), order[:1], correct=True, **hinted)
    assert recovery(run) == (1, 2)  # the second problem of the part has no hint, but it counts
    publish_part(run, TaskKey(1, "rescue", "ada", 1), [])  # no problem of this part has a hint
    assert recovery(run) == (1, 4)
    publish_part(run, TaskKey(1, "rescue", "bob", 1), [])
    assert recovery(run) == (1, 6)
    assert recovery(run, group="student", student="bob") == (0, 2)
    publish_part(run, TaskKey(1, "rescue", "bob", 0), [])
    assert recovery(run) == (1, 8)
    keep_counts(run, 1)
    assert cache.iterations(run) == {1}
    for model in ("ada", "bob"):
        publish_part(run, TaskKey(2, "cold", model, 0), in_iteration(run, names, 2)[:2])
    assert recovery(run) == (1, 8)
    publish_part(run, TaskKey(2, "rescue", "bob", 0), [])
    assert recovery(run) == (1, 10)


def test_cases_of_a_rescue_that_was_left_out_do_not_count(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recovery(run) == (2, 2)
    replace_shard(run, RESCUE_ADA, lambda rows: rows[:5])
    assert recovery(run, lenient=True) == (1, 1)
    monkeypatch.setattr(manifests, "VISIBILITY_DELAYS_S", (0.0,))
    manifests.read_manifest(RunPaths(run).task_manifest(RESCUE_ADA)).file(".parquet").unlink()
    assert rescue_table(load_run(run, lenient=True).counts).height == 0
