"""Options for teaching through a whole run: the local driver, two models, real updates, one of them killed.

All of them are on at once: lessons, rehearsal, shuffled hints, rescues on the plain prompt, the
baseline of the model, team Pass@k, and token weights. What was learned is counted again from the
published rows. HACPO and sdpo exclude some of these and have runs of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core_hpc.problems.splits import problems_of_steps
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, HINT, HINTS, RESCUE, ROLLOUTS, SCORE, SCORES, STEPS, UPDATE
from tests.support.shared_runs import KILLED

pytestmark = pytest.mark.slow


@pytest.fixture
def run(shared_runs: dict[str, Path]) -> Path:
    return shared_runs["teaching"]


def scores(run: Path) -> list[dict[str, Any]]:
    return shards.read_rows(run, SCORES, phases=[SCORE]).to_dicts()


def taught(run: Path, iteration: int, model: str) -> list[tuple[str, str]]:
    """(problem, peer) where all cold completions of the model are wrong, and the peer has a correct one."""
    cold = [r for r in scores(run) if r["iteration"] == iteration and r["phase"] == COLD]
    solved = {(r["model"], r["problem_id"]) for r in cold if r["correct"]}
    (peer,) = {"m0", "m1"} - {model}
    return sorted(
        (p, peer) for p in {r["problem_id"] for r in cold} if (peer, p) in solved and (model, p) not in solved
    )


def test_the_steps_count_lessons_rehearsals_and_internalised_rescues(run: Path) -> None:
    steps = shards.read_rows(run, STEPS, phases=[UPDATE])
    total = 0
    for iteration in (1, 2):
        for model in ("m0", "m1"):
            own = [r for r in scores(run) if (r["iteration"], r["model"]) == (iteration, model)]
            lessons = len(taught(run, iteration, model))
            known = sum(r["correct"] for r in own if r["phase"] == COLD)
            internalised = sum(
                r["hint_given"] and r["correct"] and r["advantage"] > 0 for r in own if r["phase"] == RESCUE
            )
            found = steps.filter(iteration=iteration, model=model)
            assert found["num_lessons"].sum() == lessons + min(lessons, known) + internalised
            assert found["num_completions"].sum() == len(own) + lessons + min(lessons, known)
            total += lessons * internalised
    assert total
    shares = steps.select(pl.col("^slope_share_.*$")).drop_nulls()
    assert shares.height
    assert shares.sum_horizontal().to_list() == pytest.approx([1.0] * shares.height)
    for source in ("cold", "rescue", "taught", "rehearsed", "internalised"):
        assert shares[f"slope_share_{source}"].max() > 0, source


def test_an_interrupted_update_chose_the_same_lessons_again(run: Path) -> None:
    """A checkpoint is used only if the rows of the update are the same."""
    stats = manifests.read_manifest(RunPaths(run).task_manifest(KILLED)).stats
    assert stats["resumed_from_step"] == 2


def test_the_texts_of_the_peer_become_more_probable(run: Path, tiny_models: list[Path]) -> None:
    """On the plain prompt, by an independent forward pass before and after training."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models[0])
    rollouts = shards.read_rows(run, ROLLOUTS, phases=[COLD]).filter(iteration=1)
    path = RunPaths(run).task_manifest(TaskKey(2, UPDATE, "m0"))
    adapter = manifests.read_manifest(path).file("adapter_model.safetensors").parent
    base = AutoModelForCausalLM.from_pretrained(tiny_models[0]).eval()

    def log_prob(model: Any, prompt: list[int], text: str) -> float:
        ids = tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1)[torch.arange(len(ids)), ids].mean())

    lessons = taught(run, 1, "m0")
    assert lessons
    inputs = []
    for problem, peer in lessons:
        prompt = rollouts.filter(model="m0", problem_id=problem)["prompt_token_ids"][0].to_list()
        texts = rollouts.filter(pl.col("correct"), model=peer, problem_id=problem)["text"].to_list()
        inputs += [(prompt, text) for text in texts]
    before = [log_prob(base, *pair) for pair in inputs]
    trained = PeftModel.from_pretrained(base, adapter).eval()
    after = [log_prob(trained, *pair) for pair in inputs]
    assert sum(after) / len(after) > sum(before) / len(before) + 0.05


def test_reliance_is_the_difference_of_an_independent_forward_pass(run: Path, tiny_models: list[Path]) -> None:
    """Of the first iteration, in which the weights before the update are those of the base model."""
    import torch
    from transformers import AutoModelForCausalLM

    rollouts = shards.read_rows(run, ROLLOUTS, phases=[COLD, RESCUE]).filter(iteration=1)
    num_measured = 0
    for name, folder in zip(("m0", "m1"), tiny_models, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()

        def mean_log_prob(prompt: list[int], ids: list[int], model: Any = model) -> float:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            return float(logits.log_softmax(-1)[torch.arange(len(ids)), ids].mean())

        own = rollouts.filter(model=name).to_dicts()
        plain = {r["problem_id"]: r["prompt_token_ids"] for r in own if r["phase"] == COLD}
        found: dict[str, list[float]] = {}
        for r in own:
            if r["phase"] == RESCUE and r["hint_given"] and r["correct"]:
                without = mean_log_prob(plain[r["problem_id"]], r["completion_token_ids"])
                delta = without - mean_log_prob(r["prompt_token_ids"], r["completion_token_ids"])
                found.setdefault(r["problem_id"], []).append(delta)
        steps = problems_of_steps(sorted(plain), problems_per_step=2, run_seed=7, iteration=1)
        expected = [[delta for problem in step for delta in found.get(problem, [])] for step in steps]
        stored = shards.read_rows(run, STEPS, phases=[UPDATE]).filter(iteration=1, model=name).sort("step")
        for value, deltas in zip(stored["reliance"], expected, strict=True):
            if deltas:
                assert value == pytest.approx(sum(deltas) / len(deltas), abs=1e-4)
                num_measured += len(deltas)
            else:
                assert value is None
    assert num_measured


def test_shuffled_hints_are_those_of_another_problem(run: Path) -> None:
    hints = shards.read_rows(run, HINTS, phases=[HINT]).filter(reason="rescue")
    assert hints.height
    assert (hints["problem_id"] != hints["hint_problem_id"]).all()


def test_advantages_are_over_the_models_own_completions_and_mixed_with_team_pass(run: Path) -> None:
    rows = scores(run)
    for row in rows:
        same = [r for r in rows if all(r[c] == row[c] for c in ("iteration", "model", "problem_id"))]
        rewards = [r["reward"] for r in same]
        mean = sum(rewards) / len(rewards)
        deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
        of_reward = (row["reward"] - mean) / (deviation + 1e-8)
        assert row["advantage"] == pytest.approx(0.5 * of_reward + 0.5 * (row["team_pass_advantage"] or 0), abs=1e-6)
        assert (row["team_pass_advantage"] is None) == (row["phase"] == RESCUE)


def test_the_model_with_a_hint_weights_tokens_of_its_failures(run: Path) -> None:
    factors = shards.read_rows(run, STEPS, phases=[UPDATE])["self_teacher_factor"].drop_nulls()
    assert factors.len()
    assert all(0.9 <= factor <= 1.1 and factor != 1 for factor in factors)


def test_hacpo_trains_on_the_rollouts_of_all_models(shared_runs: dict[str, Path]) -> None:
    steps = shards.read_rows(shared_runs["hacpo"], STEPS, phases=[UPDATE])
    # 4 problems x 3 completions x 2 models, for each of the two models
    assert steps.group_by("model").agg(pl.col("num_completions").sum())["num_completions"].to_list() == [24, 24]
    assert steps["num_lessons"].sum() == 24
    # The fake engine's log-probabilities have nothing to do with the tiny model, so every ratio is outside.
    assert steps["clip_share_peer"].max() == 1.0


def test_sdpo_replaces_the_advantages_of_failures_with_a_hint(shared_runs: dict[str, Path]) -> None:
    run = shared_runs["sdpo"]
    hints = shards.read_rows(run, HINTS, phases=[HINT]).filter(reason="rescue")
    steps = shards.read_rows(run, STEPS, phases=[UPDATE])
    assert hints.height
    # Students with a hint have failed, so all 3 cold completions of the case are wrong.
    assert steps["num_lessons"].sum() == 3 * hints.height
    assert steps["slope_share_self_taught"].max() > 0
