"""ZeRO-2 on one and two real ranks: against plain torch, resume, failures, the published folder."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from core_hpc.store.paths import OPTIMIZER_STATE
from tests.support.ranks import (
    VOCABULARY,
    largest_difference,
    make_rows,
    plain_adapters,
    reports,
    seed_and_order,
    weights,
)

pytestmark = pytest.mark.slow

FILES = ("adapter_model.safetensors", OPTIMIZER_STATE)


@pytest.fixture(scope="module")
def runs(updates_on_ranks: Path, full: bool) -> dict[str, Any]:
    """The folder of the launches, the problems of every step, and the reports of the ranks."""
    folder = updates_on_ranks / "zero2"
    ranks = {"one": 1, "two": 2, "one_later": 1, **({"two_later": 2} if full else {})}
    found = {name: reports(folder, name, num_ranks) for name, num_ranks in ranks.items()}
    return {"folder": folder, "order": seed_and_order()[1], **found}


def numbers(step: dict[str, Any]) -> dict[str, float]:
    """The metrics of a step; -1 stands for null, where there is nothing to average."""
    return {name: -1.0 if value is None else value for name, value in step.items()}


def test_equals_plain_torch_on_one_and_two_ranks(runs: dict[str, Any]) -> None:
    """Several steps with clipping, unequal numbers of micro-batches, and one empty rank."""
    counts = runs["two"][0]["both"]["micro_batches"]
    assert any(0 in ranks for ranks in counts)
    assert any(len(set(ranks) - {0}) == 2 for ranks in counts), counts
    expected = plain_adapters(runs["folder"], runs["order"])
    for name in ("one", "two"):
        for number, (state, metrics) in enumerate(expected, start=1):
            assert largest_difference(weights(runs["folder"] / f"{name}.{number}"), state) < 1e-5
            steps = runs[name][0]["both"]["steps"][number - 1]
            assert len(steps) == len(metrics) == 3
            for found, wanted in zip(steps, metrics, strict=True):
                assert {k: found[k] for k in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-6)
                assert found["grad_norm"] > 0.05


def test_an_update_that_begins_with_an_adapter_equals_plain_torch(runs: dict[str, Any]) -> None:
    """The optimizer is fresh, and the reference policy of the KL term is that of the base weights."""
    start = weights(runs["folder"] / "one.1")
    state, metrics = plain_adapters(runs["folder"], runs["order"], start=start)[0]
    assert largest_difference(start, state) > 1e-3
    for name in ("one_later", "two"):
        found = runs[name][0]["adapted"]
        assert largest_difference(weights(runs["folder"] / f"{name}.adapted"), state) < 1e-5
        assert found["steps_done"] == len(found["steps"]) == len(metrics) == 3
        for step, wanted in zip(found["steps"], metrics, strict=True):
            assert {k: step[k] for k in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_metrics_are_global_and_the_same_on_every_rank(runs: dict[str, Any]) -> None:
    one, two, second = runs["one"][0]["both"], runs["two"][0]["both"], runs["two"][1]["both"]
    assert two["steps"] == second["steps"]
    for left, right in zip(itertools.chain(*one["steps"]), itertools.chain(*two["steps"]), strict=True):
        assert numbers(left) == pytest.approx(numbers(right), rel=1e-3, abs=1e-6)
    assert one["steps_done"] == [3, 6]
    assert one["progress"] == [[1, 3], [2, 3], [3, 3]] * 2
    assert [s["global_step"] for s in itertools.chain(*one["steps"])] == [1, 2, 3, 4, 5, 6]


def test_a_step_that_no_rank_computes_still_counts(runs: dict[str, Any]) -> None:
    """dapo without KL: the divisor is global, and includes completions that are not computed."""
    assert largest_difference(weights(runs["folder"] / "one.silent"), weights(runs["folder"] / "two.silent")) < 1e-5
    for name in ("one", "two"):
        first, silent, last = runs[name][0]["silent_step"]
        assert (silent["loss"], silent["grad_norm"]) == (0.0, 0.0)
        num_tokens = sum(len(r["completion_token_ids"]) for r in make_rows(1) if r["problem_id"] in runs["order"][1])
        assert (silent["num_completions"], silent["num_tokens"]) == (6, num_tokens)
        assert math.isnan(silent["entropy"])
        assert min(first["grad_norm"], last["grad_norm"]) > 0


def test_a_gain_of_the_user_is_applied_where_no_completion_has_an_advantage(runs: dict[str, Any]) -> None:
    """The gain is -0.1 log p there, and a random model is nearly uniform."""
    steps = runs["one"][0]["silent_step_of_own_loss"]
    assert steps[0]["loss"] == pytest.approx(-0.1 * math.log(VOCABULARY), rel=0.1)
    assert all(step["loss"] < 0 < step["grad_norm"] for step in steps)


def test_old_log_probs_are_those_before_the_update(runs: dict[str, Any]) -> None:
    """Trap 2: if they were computed again after a step, the ratio would always be 1."""
    for name in ("one", "two"):
        for steps in runs[name][0]["both"]["steps"]:
            assert steps[0]["ratio_max"] == 1.0
            assert steps[1]["ratio_max"] > 1.0
            assert steps[2]["ratio_max"] > 1.0
        first, second = runs[name][0]["both"]["steps"]
        assert first[0]["kl"] == 0.0
        assert second[0]["kl"] > 0.0


def test_resume_is_exact_with_as_many_ranks_and_close_with_others(runs: dict[str, Any]) -> None:
    folder = runs["folder"]
    for name in FILES:
        for ranks in ("one", "two") if "two_later" in runs else ("one",):
            assert (folder / f"{ranks}.2" / name).read_bytes() == (folder / f"{ranks}_later.2" / name).read_bytes()
        for warm, other in (("one.2", "one_two.2"), ("two.2", "two_one.2")):
            assert largest_difference(weights(folder / warm, name), weights(folder / other, name)) < 1e-6
    for name in ("one", "two"):
        assert runs[name][0]["raw_resume"] == {"weight": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}


def test_an_interrupted_update_goes_on_where_it_was_and_gives_the_same(runs: dict[str, Any]) -> None:
    """The files have the bytes of the uninterrupted task with the same number of ranks.

    This holds after any number of stops, and from any checkpoint.
    """
    first, second = "tiny-p000-step0001.manifest.json", "tiny-p000-step0002.manifest.json"
    for name in ("one", "two"):
        for number, rank in enumerate(runs[name]):
            seen, uninterrupted = rank["interrupted"], rank["both"]["steps"][1]
            for attempt, stopped, stored in (("at_start", 0, []), ("stopped", 1, [first]), ("again", 1, [first])):
                assert seen[attempt]["stopped"] == f"update: stopped on request after {stopped} of 3 optimizer steps"
                # The other rank may read the folder later, when rank 0 has already changed it.
                assert number or seen[attempt]["stored"] == stored
                assert not seen[attempt]["written"]
            assert [seen[a]["from"] for a in ("stopped", "again", "resumed", "damaged", "foreign")] == [0, 1, 1, 1, 0]
            assert seen["again"]["progress"] == []
            assert seen["resumed"]["progress"] == [[2, 3], [3, 3]]
            stored_at_end = [seen[a]["stored"] for a in ("resumed", "damaged", "foreign")]
            assert number or stored_at_end == [[first, second], [first], []]
            for attempt in ("resumed", "damaged", "foreign"):
                assert seen[attempt]["steps"] == uninterrupted
        for file, attempt in itertools.product(FILES, ("resumed", "damaged", "fresh")):
            found, expected = (runs["folder"] / f"{name}.{kind}" / file for kind in (attempt, "2"))
            assert found.read_bytes() == expected.read_bytes()
        log = (runs["folder"] / f"{name}.0.log").read_text()
        assert "checksum differs" in log
        assert "belongs to another update; they differ in rows" in log
    assert "does not see it" in runs["two"][1]["interrupted"]["unseen"]


def test_ranks_wait_for_rank_zero_as_long_as_large_files_take(runs: dict[str, Any]) -> None:
    """Also while it stores a checkpoint: the groups of DeepSpeed, in which a step would wait, wait for 10 minutes."""
    first, second = (rank["waits"] for rank in runs["two"])
    assert first["limit_s"] == second["limit_s"] >= 3600
    waits = list(zip(second["ended"], first["stored"], strict=True))
    assert len(waits) == 2
    assert max(second["computed"]) > waits[0][1]
    assert not [t for t in second["computed"] for ended, stored in waits if ended < t < stored]


def test_rank_zero_decides_for_all_ranks_whether_an_update_is_published(runs: dict[str, Any]) -> None:
    """A file system may show a new file to one node later than to another."""
    for rank in runs["two"]:
        assert rank["published"] == [[], [0, 1]]


def test_an_interrupted_update_continues_with_another_number_of_ranks(runs: dict[str, Any]) -> None:
    for name, by in (("one", "two_later" if "two_later" in runs else "two"), ("two", "one_later")):
        for rank in runs[by]:
            assert rank["continues"]["from"] == 1
            for found, wanted in zip(rank["continues"]["steps"], runs[name][0]["both"]["steps"][1], strict=True):
                assert numbers(found) == pytest.approx(numbers(wanted), rel=1e-3, abs=1e-6)
        for file in FILES:
            tensors = [weights(runs["folder"] / f"{name}.{kind}", file) for kind in (f"by_{by}", "2")]
            assert largest_difference(*tensors) < 1e-5


def test_published_folder_is_an_ordinary_adapter(runs: dict[str, Any]) -> None:
    import peft
    import transformers

    folder = runs["folder"]
    for name in ("one", "two"):
        out = folder / f"{name}.2"
        assert {p.name for p in out.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "optimizer",
            "trainer_state.json",
        }
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
        model = peft.PeftModel.from_pretrained(base, out)
        for index, found in runs[name][0]["both"]["logp"].items():
            row = make_rows(2)[int(index)]
            prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
            expected = logits.log_softmax(-1)[torch.arange(len(completion)), completion]
            assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert all(runs[n][0]["both"]["base_unchanged"] for n in ("one", "two"))


def test_non_finite_values_stop_every_rank_and_write_nothing(runs: dict[str, Any]) -> None:
    folder, problem = runs["folder"], runs["order"][1][0]
    for rank in runs["two"]:
        for label in ("nan", "overflow", "inf"):
            assert not rank["failures"][label]["written"]
        assert "step 2 of 3" in rank["failures"]["nan"]["message"]
        assert f"the loss is not finite for problems {problem};" in rank["failures"]["nan"]["message"]
        assert "step 2 of 3" in rank["failures"]["overflow"]["message"]
        named = f"gradients are not finite; its problems are {', '.join(runs['order'][1])};"
        assert named in rank["failures"]["overflow"]["message"]
        assert "step 1 of 3" in rank["failures"]["inf"]["message"]
        assert ", ".join(runs["order"][0]) in rank["failures"]["inf"]["message"]
    assert [rank["failures"]["unwritable"] for rank in runs["two"]] == ["NotADirectoryError"] * 2
    # A good task in the same process gives the usual result afterwards.
    assert weights(folder / "two.1").keys() == weights(folder / "two.again").keys()
    assert largest_difference(weights(folder / "two.1"), weights(folder / "two.again")) == 0


def test_a_folder_that_does_not_fit_is_refused(runs: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    from core_hpc.common.errors import StoreError
    from core_hpc.training.state_io import read_state

    folder = runs["folder"] / "one.1"
    shapes = {n: t.shape for n, t in weights(folder).items()}
    assert read_state(folder, shapes).steps_done == 3
    first = next(iter(shapes))
    with pytest.raises(StoreError, match=r"do not fit the model"):
        read_state(folder, {**shapes, first: torch.Size([1, 1])})
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    data = (torn / OPTIMIZER_STATE).read_bytes()
    (torn / OPTIMIZER_STATE).write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="not a complete folder of an update"):
        read_state(torn, shapes)


def test_an_update_stops_if_the_engine_samples_with_another_model(runs: dict[str, Any]) -> None:
    """The limit, the problem with the largest difference, and an adapter that the engine ignores; on every rank."""
    problem = json.loads((runs["folder"] / "inputs.json").read_text())["second_step_problem"]
    for rank in runs["two"]:
        found = rank["mismatch"]
        assert (found["right"], found["with_adapter"]) == ("", "")
        assert "step 2 of 3" in found["shifted"]
        assert "the limit is 0.1 (update.max_mismatch)" in found["shifted"]
        assert f"Largest for the problems {problem} (0.5)" in found["shifted"]
        assert "step 1 of 3" in found["adapter_ignored"]
        assert "the engine seems to ignore the adapter" in found["adapter_ignored"]
