"""Base weights divided among two real ranks (`cluster.zero_stage: 3`): the results are those of ZeRO-2."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from core_hpc.store.paths import OPTIMIZER_STATE
from tests.support.ranks import VOCABULARY, largest_difference, launch, plain_adapters, prepare, tiny_llama, weights

pytestmark = [pytest.mark.slow, pytest.mark.full(reason="ZeRO-3; the usual run has ZeRO-2")]
FILES = ("adapter_model.safetensors", OPTIMIZER_STATE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`two` is ZeRO-2; `sharded_two` and `sharded_again` (with all layers checkpointed) divide the base."""
    folder = tmp_path_factory.mktemp("zero3")
    order = prepare(folder, tiny_llama())
    return {
        "folder": folder,
        "order": order,
        "two": launch(folder, "two", 2, "both", "base_numbers", "silent_step"),
        "sharded_two": launch(
            folder, "sharded_two", 2, "base_numbers", "both", "silent_step", "interrupted", "failures", "mismatch"
        ),
        "sharded_again": launch(folder, "sharded_again", 2, "resume:two.1:sharded_again.2", "both", "base_numbers"),
    }


def test_adapters_and_metrics_are_those_of_zero2_and_of_plain_torch(runs: dict[str, Any]) -> None:
    folder = runs["folder"]
    counts = runs["sharded_two"][0]["both"]["micro_batches"]
    assert any(0 in ranks for ranks in counts), "a rank without micro-batches must gather with the others"
    assert any(len(set(ranks) - {0}) == 2 for ranks in counts), counts
    expected = plain_adapters(folder, runs["order"])
    for name in ("sharded_two", "sharded_again"):
        for number, (state, _) in enumerate(expected, start=1):
            assert largest_difference(weights(folder / f"{name}.{number}"), state) < 1e-5
            for file in FILES:
                pair = (weights(folder / f"{kind}.{number}", file) for kind in (name, "two"))
                assert largest_difference(*pair) < 1e-6
        for rank in range(2):
            steps = (itertools.chain(*runs[kind][rank]["both"]["steps"]) for kind in (name, "two"))
            for found, wanted in zip(*steps, strict=True):
                assert {k for k, v in found.items() if v is None} == {k for k, v in wanted.items() if v is None}
                numbers = {k: v for k, v in wanted.items() if v is not None}
                assert {k: found[k] for k in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-7)
        assert all(rank["both"]["base_unchanged"] for rank in runs[name])


def test_a_rank_holds_half_of_the_layers(runs: dict[str, Any]) -> None:
    """Embeddings, output embeddings and the last norm are whole, in every rank."""
    whole = 2 * 32 * VOCABULARY + 32
    for rank in range(2):
        found = runs["two"][rank]["base_numbers"]
        assert found["held"] == found["all"]
        for name in ("sharded_two", "sharded_again"):
            sharded = runs[name][rank]["base_numbers"]
            assert sharded["all"] == found["all"]
            assert sharded["held"] == whole + (found["all"] - whole) // 2


def test_a_step_that_no_rank_computes_still_counts(runs: dict[str, Any]) -> None:
    folder = runs["folder"]
    assert largest_difference(weights(folder / "two.silent"), weights(folder / "sharded_two.silent")) < 1e-6


def test_an_update_continues_what_zero2_began(runs: dict[str, Any]) -> None:
    """`sharded_again.2` was first made from `two.1`, and then again from its own first task."""
    folder = runs["folder"]
    for file in FILES:
        assert largest_difference(weights(folder / "sharded_again.2", file), weights(folder / "two.2", file)) < 1e-6


def test_an_interrupted_update_goes_on_where_it_was(runs: dict[str, Any]) -> None:
    for rank in runs["sharded_two"]:
        seen, uninterrupted = rank["interrupted"], rank["both"]["steps"][1]
        assert [seen[a]["from"] for a in ("stopped", "again", "resumed", "damaged", "foreign")] == [0, 1, 1, 1, 0]
        for attempt in ("resumed", "damaged", "foreign"):
            assert seen[attempt]["steps"] == uninterrupted
    for file, attempt in itertools.product(FILES, ("resumed", "damaged", "fresh")):
        found, expected = (runs["folder"] / f"sharded_two.{kind}" / file for kind in (attempt, "2"))
        assert found.read_bytes() == expected.read_bytes()


def test_failures_stop_every_rank(runs: dict[str, Any]) -> None:
    for rank in runs["sharded_two"]:
        for label in ("nan", "overflow", "inf"):
            assert rank["failures"][label]["message"]
            assert not rank["failures"][label]["written"]
        found = rank["mismatch"]
        assert (found["right"], found["with_adapter"]) == ("", "")
        assert "the engine seems to ignore the adapter" in found["adapter_ignored"]
    assert largest_difference(*(weights(runs["folder"] / f"sharded_two.{k}") for k in ("1", "again"))) == 0
