"""Hint and score decode no token ids and log-probabilities, and publish what they would with all columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core_hpc.common.errors import StoreError
from core_hpc.phases import hint, score
from core_hpc.phases.own_functions import as_completions
from core_hpc.protocol.embeddings import HashingEmbedder
from core_hpc.runs import contents
from core_hpc.runs.folder import Run
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, HINTS, RESCUE, ROLLOUTS, SCORES
from tests.unit.phases.test_text_embeddings import HINT_KEY, SCORE_KEY, task
from tests.unit.phases.test_traps import frame, rollout_rows, sampled_run

UNUSED = ("prompt_token_ids", "completion_token_ids", "logprobs")
REWARDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "lengths": {"overlong": {"weight": 0.5, "buffer_share": 1.0}, "length": {"weight": 0.2}, "format": {"weight": 0.1}},
}


def published(run: Run) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Run both phases. Returns hints and scores."""
    hint.run(task(run, HINT_KEY, HashingEmbedder()))
    score.run(task(run, SCORE_KEY, HashingEmbedder()))
    return shards.read_task(run.root, HINT_KEY, HINTS), shards.read_task(run.root, SCORE_KEY, SCORES)


def read_everything(run: Run, keys: list[TaskKey], *, columns: object) -> pl.DataFrame:
    """Read rollouts with all their columns."""
    return contents.read_rollouts(run, keys, columns=list(ROLLOUTS.schema))


def destroy(run: Run, key: TaskKey, columns: tuple[str, ...]) -> None:
    """Overwrite the values of some columns in a shard. Its manifest agrees."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    manifest = run.paths.task_manifest(key)
    path = manifests.read_manifest(manifest).file(".parquet")
    content = bytearray(path.read_bytes())
    found = set()
    for column in pq.read_metadata(path).row_group(0).to_dict()["columns"]:
        name, size = column["path_in_schema"].partition(".")[0], column["total_compressed_size"]
        if name in columns:
            start = column["dictionary_page_offset"] or column["data_page_offset"]
            content[start : start + size] = b"\xff" * size
            found.add(name)
    assert found == set(columns)
    path.write_bytes(content)
    body = json.loads(manifest.read_text())
    body["files"][0]["sha256"] = manifests.sha256_file(path)
    manifest.write_text(json.dumps(body))


@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)
def test_what_is_published_equals_that_of_reading_all_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: dict[str, Any]
) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "all").mkdir()
    few = published(sampled_run(tmp_path / "few", reward=reward))
    for phase in (hint, score):
        monkeypatch.setattr(phase, "read_rollouts", read_everything)
    everything = published(sampled_run(tmp_path / "all", reward=reward))
    assert all(a.equals(b) for a, b in zip(few, everything, strict=True))
    assert few[1]["reward"].n_unique() > 2


def test_columns_that_are_not_used_are_not_decoded(tmp_path: Path) -> None:
    """They are destroyed, so decoding them fails."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    expected = published(sampled_run(tmp_path / "whole"))
    run = sampled_run(tmp_path / "part")
    for key in (TaskKey(1, COLD, "a"), TaskKey(1, COLD, "b"), TaskKey(1, RESCUE, "b")):  # the others are empty
        destroy(run, key, UNUSED)
    with pytest.raises(manifests.DamagedError, match="cannot be read as a Parquet file"):
        shards.read_task(run.root, TaskKey(1, COLD, "a"), ROLLOUTS)
    assert all(a.equals(b) for a, b in zip(published(run), expected, strict=True))
    destroy(run, TaskKey(1, COLD, "a"), ("text",))
    with pytest.raises(manifests.DamagedError, match="cannot be read as a Parquet file"):
        score.run(task(run, SCORE_KEY, HashingEmbedder()))


def test_functions_of_users_get_the_same_completions() -> None:
    rows = frame(ROLLOUTS, rollout_rows("b", COLD) + rollout_rows("b", RESCUE))
    assert as_completions(rows.select(score.COMPARED_COLUMNS)) == as_completions(rows)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda rows: rows.with_columns(sample_index=pl.lit(0, pl.Int32)), "row 0: .* occurs twice"),
        (lambda rows: rows.with_columns(text=pl.lit(None, pl.String)), r"row 0: null in \['text'\]"),
    ],
)
def test_wrong_rows_of_a_shard_that_agrees_with_its_manifest_are_refused(
    tmp_path: Path, damage: Any, expected: str
) -> None:
    run, key = sampled_run(tmp_path), TaskKey(1, COLD, "a")
    rows = damage(shards.read_task(run.root, key, ROLLOUTS))
    manifests.set_aside(run.paths.task_manifest(key))

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        rows.write_parquet(folder / "shard.parquet")
        return {"shard.parquet": (rows.height, ROLLOUTS.name)}

    manifests.publish(run.paths.task_folder(key), run.paths.task_name(key), fill, as_folder=False)
    for phase, own in ((hint, HINT_KEY), (score, SCORE_KEY)):
        with pytest.raises(StoreError, match=expected):
            phase.run(task(run, own, HashingEmbedder()))
