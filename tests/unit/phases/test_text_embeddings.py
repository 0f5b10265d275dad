"""Each distinct text is embedded once per iteration, and the scores do not change."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core_hpc.phases import hint, score
from core_hpc.phases.context import Warm
from core_hpc.phases.text_embeddings import FILE, embed_texts, published_embeddings
from core_hpc.protocol.embeddings import EMPTY_TEXT, MAX_TEXT_CHARS, HashingEmbedder
from core_hpc.runs.folder import Run
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, HINT, HINTS, RESCUE, SCORE, SCORES
from tests.support.examples import EXAMPLES
from tests.support.tiny import byte_tokenizer
from tests.unit.phases.test_traps import context, rollout_rows, sampled_run

HINT_KEY, SCORE_KEY = TaskKey(1, HINT, TEAM), TaskKey(1, SCORE, TEAM)


class CountingEmbedder(HashingEmbedder):
    """Counts how often each text is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.counts.update(texts)
        return super().embed(texts)


def task(run: Run, key: TaskKey, embedder: HashingEmbedder) -> Any:
    """A task in a new process."""
    found = context(run, key)
    found.warm = Warm(_embedder=(run.config.reward.distance.embedder, embedder))
    found.tokenizer = lambda model: byte_tokenizer()
    return found


def scores_of(run: Run, embedder: HashingEmbedder) -> pl.DataFrame:
    score.run(task(run, SCORE_KEY, embedder))
    return shards.read_task(run.root, SCORE_KEY, SCORES)


def texts_of(phase: str) -> set[str]:
    return {row["text"] for model in "ab" for row in rollout_rows(model, phase)}


def test_the_hint_phase_computes_no_advantages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs only rewards. A function of the user would see problems without their rescues."""
    shutil.copy(EXAMPLES / "my_training.py", tmp_path)
    run = sampled_run(tmp_path, advantage_function={"function": "my_training.py:leave_one_out"})
    monkeypatch.setattr(score, "own_advantages", lambda *_: pytest.fail("called by the hint phase"))
    hint.run(task(run, HINT_KEY, CountingEmbedder()))
    assert shards.read_task(run.root, HINT_KEY, HINTS).height > 0


def test_each_text_is_embedded_once_by_the_hint_and_score_phases_together(tmp_path: Path) -> None:
    run, embedder = sampled_run(tmp_path), CountingEmbedder()
    hint.run(task(run, HINT_KEY, embedder))
    assert embedder.counts == dict.fromkeys(texts_of(COLD), 1)
    scores_of(run, embedder)
    assert embedder.counts == dict.fromkeys(texts_of(COLD) | texts_of(RESCUE), 1)


def test_scores_equal_those_of_a_run_whose_hints_have_no_embeddings(tmp_path: Path) -> None:
    """This is the case of runs of earlier versions. Their score phase embeds everything."""
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    new, old = sampled_run(tmp_path / "new"), sampled_run(tmp_path / "old")
    hint.run(task(new, HINT_KEY, CountingEmbedder()))
    hints = shards.read_task(new.root, HINT_KEY, HINTS)
    shards.publish_frame(old.paths.task_folder(HINT_KEY), old.paths.task_name(HINT_KEY), hints, HINTS)
    embedder = CountingEmbedder()
    assert scores_of(old, embedder).equals(scores_of(new, CountingEmbedder()))
    assert embedder.counts == dict.fromkeys(texts_of(COLD) | texts_of(RESCUE), 1)


def test_a_run_without_a_hint_publication_has_no_known_embeddings(tmp_path: Path) -> None:
    assert published_embeddings(task(sampled_run(tmp_path), SCORE_KEY, CountingEmbedder())) == {}


def test_embeddings_of_another_embedder_are_not_used(tmp_path: Path) -> None:
    run = sampled_run(tmp_path)
    hint.run(task(run, HINT_KEY, CountingEmbedder()))
    reading = task(run, SCORE_KEY, CountingEmbedder())
    assert len(published_embeddings(reading)) == len(texts_of(COLD))
    distance = run.config.reward.distance.model_copy(update={"embedder": "fake:other"})
    reward = run.config.reward.model_copy(update={"distance": distance})
    reading.run = replace(run, config=run.config.model_copy(update={"reward": reward}))
    assert published_embeddings(reading) == {}


def test_damaged_embeddings_are_reported_with_their_publication(tmp_path: Path) -> None:
    run = sampled_run(tmp_path)
    hint.run(task(run, HINT_KEY, CountingEmbedder()))
    path = run.paths.task_manifest(HINT_KEY)
    file = manifests.read_manifest(path).file(FILE)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(manifests.DamagedError) as caught:
        published_embeddings(task(run, SCORE_KEY, CountingEmbedder()))
    assert caught.value.manifest_path == path


def test_a_hint_publication_is_hints_and_embeddings(tmp_path: Path) -> None:
    run = sampled_run(tmp_path)
    hint.run(task(run, HINT_KEY, CountingEmbedder()))
    files = json.loads(run.paths.task_manifest(HINT_KEY).read_text())["files"]
    assert {Path(file["name"]).name: file["table"] for file in files} == {"hints.parquet": "hints", FILE: None}


def test_texts_that_the_embedder_reads_alike_are_one_text(tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    reading = task(sampled_run(tmp_path), SCORE_KEY, embedder)
    long = "a " * MAX_TEXT_CHARS
    vectors = embed_texts(reading, ["", "one", " \n", EMPTY_TEXT, long, f"{long}b", "half \ud800", "one"])
    assert embedder.counts.total() == 4
    assert [i for i in range(8) if (vectors[i] == vectors[0]).all()] == [0, 2, 3]
    assert (vectors[4] == vectors[5]).all()
    assert (vectors[1] == vectors[7]).all()
    assert embed_texts(reading, []).shape == (0, 0)
