"""HACPO: capabilities, advantages, and the gain of peers' completions against plain loops; its rows in an update."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.config.teach import HacpoSection
from core_hpc.config.update import UpdateSection
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases import peer_rollouts
from core_hpc.phases.update import training_rows
from core_hpc.protocol.hacpo import capability, capability_ratio, hacpo_advantages
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, UPDATE
from core_hpc.training.batching import OBJECTIVES, Row
from core_hpc.training.losses import StepSize, TokenBatch, objective
from tests.support.tiny import byte_tokenizer
from tests.unit.phases.test_hint_leak import DATA
from tests.unit.phases.test_traps import context, rollout_rows, scored_run, scores

TOKENIZER = byte_tokenizer(template="{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")


@pytest.mark.parametrize("seed", range(8))
def test_advantages_are_rewards_minus_what_the_learner_could_expect(seed: int) -> None:
    draw = random.Random(seed)
    models = [draw.choice("abc") for _ in range(6)] + ["a"]
    rewards = [float(draw.random() < 0.6) for _ in models]
    capabilities = {m: draw.choice([0.02, 0.3, 0.9]) for m in "abc"}
    found = hacpo_advantages(rewards, models, learner="a", capabilities=capabilities)
    if len(set(rewards)) == 1:
        assert found.tolist() == [0.0] * len(models)
        return
    expected = [
        r * min(max(capabilities["a"] / capabilities[m], 0.1), 10) for r, m in zip(rewards, models, strict=True)
    ]
    baseline = sum(expected) / len(expected)
    if baseline > 1:
        own = [r for r, m in zip(rewards, models, strict=True) if m == "a"]
        baseline = sum(own) / len(own)
    deviation = statistics.stdev(rewards)
    assert found.tolist() == pytest.approx([(r - baseline) / (deviation + 1e-6) for r in rewards])


def test_capabilities_are_means_and_their_ratio_is_bounded() -> None:
    assert capability([0.0, 0.5]) == pytest.approx(0.25)
    assert capability([0.0]) > 0
    assert (capability_ratio(1e-8, 1), capability_ratio(1, 1e-8), capability_ratio(0.2, 0.8)) == (0.1, 10.0, 0.25)


LENGTHS, IS_PEER = (3, 2, 4, 3, 2), (False, False, True, True, True)


def reference(current: list[list[float]], other: list[list[float]], advantages: list[float], index: int) -> float:
    """The loss of the released code: clipped sequence ratios of own and of peers' completions."""
    total = 0.0
    for now, before, a, peer in zip(current, other, advantages, IS_PEER, strict=True):
        ratio = math.exp(sum(now) / len(now) - sum(before) / len(before))
        if peer:
            lower = min(1.0, 0.8 + index * 0.025)
            # The exponent alpha = 1 belongs to a factor without gradient, which the caller holds fixed.
            total += min(max(ratio, lower), 1.0) * FIXED[id(now)] * a
        else:
            total += min(ratio * a, min(max(ratio, 1 - 3e-4), 1 + 4e-4) * a)
    return -total / len(current)


FIXED: dict[int, float] = {}


@pytest.mark.parametrize("index", [0, 3, 9])
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_and_its_slopes_equal_a_plain_loop(seed: int, index: int) -> None:
    draw = random.Random(seed)
    current = [[-draw.uniform(0.2, 2) for _ in range(n)] for n in LENGTHS]
    gaps = [draw.uniform(-2e-4, 2e-4) if not peer else draw.choice([0.05, 0.5, -0.3]) for peer in IS_PEER]
    # A peer has another number of tokens for the same text.
    other = [[sum(now) / len(now) + gap] * (n if not peer else 5)
             for now, gap, n, peer in zip(current, gaps, LENGTHS, IS_PEER, strict=True)]  # fmt: skip
    advantages = [draw.uniform(-2, 2) for _ in LENGTHS]
    lower = min(1.0, 0.8 + index * 0.025)
    for now, before in zip(current, other, strict=True):
        FIXED[id(now)] = min(max(math.exp(sum(now) / len(now) - sum(before) / len(before)), lower), 1.0)
    settings = UpdateSection(loss="gspo", hacpo=HacpoSection(enabled=True))
    tensor = torch.tensor([v for values in current for v in values], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor(LENGTHS)
    old = [b if not peer else [0.0] * n for b, n, peer in zip(other, LENGTHS, IS_PEER, strict=True)]
    means = [sum(b) / len(b) if peer else math.nan for b, peer in zip(other, IS_PEER, strict=True)]
    batch = TokenBatch(
        old_M=torch.tensor([v for values in old for v in values], dtype=torch.float64),
        reference_M=None,
        importance_M=torch.ones(sum(LENGTHS), dtype=torch.float64),
        row_M=torch.repeat_interleave(torch.arange(len(LENGTHS)), lengths),
        lengths_N=lengths,
        advantage_N=torch.tensor(advantages, dtype=torch.float64),
        weight_N=torch.ones(len(LENGTHS), dtype=torch.float64),
        rescue_N=torch.zeros(len(LENGTHS), dtype=torch.bool),
        objective_N=torch.tensor([OBJECTIVES.index("cross" if peer else "policy") for peer in IS_PEER]),
        peer_N=torch.tensor(means, dtype=torch.float64),
    )
    terms = objective(tensor, batch, settings, StepSize(len(LENGTHS), sum(LENGTHS), 16, index))
    assert terms.loss.item() == pytest.approx(reference(current, other, advantages, index), abs=1e-12)
    terms.loss.backward()
    assert tensor.grad is not None
    assert tensor.grad.isfinite().all()
    slopes = []
    for now in current:
        for t, value in enumerate(now):
            sides = []
            for shift in (1e-7, -1e-7):
                now[t] = value + shift
                sides.append(reference(current, other, advantages, index))
            now[t] = value
            slopes.append((sides[0] - sides[1]) / 2e-7)
    assert tensor.grad.tolist() == pytest.approx(slopes, abs=1e-6)
    for n, (peer, gap) in enumerate(zip(IS_PEER, gaps, strict=True)):
        if peer:
            outside = not lower <= math.exp(-gap) <= 1
            assert terms.clipped_M[batch.row_M == n].tolist() == [outside] * LENGTHS[n]


def test_an_update_has_the_rows_of_all_models_with_advantages_of_the_learner(tmp_path: Path) -> None:
    rewards = {"exploit": {"partial": "none"}} | {
        part: {"weight": 0} for part in ("explore", "rescue", "trace_accuracy", "cross")
    }
    run = scored_run(tmp_path, loss="gspo", hacpo={"enabled": True}, protocol={"rescue_samples": 0}, reward=rewards)
    table = scores(run)
    # One problem in which both of a are right and one of b, and one with one of a.
    positive = {"a": 0.75, "b": 0.25}
    for learner, peer in ("ab", "ba"):
        task = context(run, TaskKey(1, UPDATE, learner))
        task.model = run.config.model(learner)
        task.prompt_builder = lambda _: PromptBuilder(TOKENIZER, "chat", "")
        task.stop_strings = lambda _: ()
        rows = {row.key: row for row in training_rows(task)}
        assert len(rows) == 8
        for problem in ("easy", "hard"):
            of_problem = table.filter(problem_id=problem)
            values = hacpo_advantages(
                of_problem["reward"].to_list(), of_problem["model"].to_list(), learner=learner, capabilities=positive
            )
            for r, value in zip(of_problem.iter_rows(named=True), values, strict=True):
                key: tuple[Any, ...] = (problem, COLD, r["sample_index"])
                if r["model"] == learner:
                    assert rows[key].advantage == pytest.approx(value)
                    assert (rows[key].objective, rows[key].source) == ("policy", "cold")
                    continue
                row: Row = rows[*key, peer]
                (rollout,) = [
                    x for x in rollout_rows(peer, COLD) if (x["problem_id"], x["sample_index"]) == (problem, key[2])
                ]
                assert row.advantage == pytest.approx(value * positive[peer] / positive[learner])
                assert row.peer_logprob == pytest.approx(sum(rollout["logprobs"]) / 4)
                assert TOKENIZER.decode(row.completion_token_ids) == f"{rollout['text']}</s>"
                assert (row.objective, row.source, row.behaviour_logprobs) == ("cross", "peer", None)
    assert table.filter(pl.col("reward") > 0).height == 4


@pytest.mark.parametrize(("iteration", "expected"), [(1, 0.1), (2, 0.15), (5, 0.4)])
def test_capabilities_are_over_the_last_iterations(
    monkeypatch: pytest.MonkeyPatch, iteration: int, expected: float
) -> None:
    """A window of 3. In iteration i, i of 10 rewards of a are positive; those of b never are."""

    def read_tasks(root: Path, keys: list[TaskKey], table: object, columns: object) -> pl.DataFrame:
        (at,) = {key.iteration for key in keys}
        rewards = [0.7] * at + [0.0] * (10 - at)
        return pl.DataFrame({"model": ["a"] * 10 + ["b"] * 10, "reward": [*rewards, *[0.0] * 10]})

    monkeypatch.setattr(peer_rollouts.shards, "read_tasks", read_tasks)
    config = RunConfig.model_validate(
        {
            **DATA,
            "update": {"loss": "gspo", "hacpo": {"enabled": True, "window": 3}},
            "protocol": {"rescue_samples": 0},
        }
    )
    run = SimpleNamespace(config=config, root=Path(), graph=lambda: SimpleNamespace(num_parts=2))
    found = peer_rollouts._capabilities(SimpleNamespace(run=run, key=TaskKey(iteration, UPDATE, "a")))  # type: ignore[arg-type]
    assert found == pytest.approx({"a": expected, "b": 1e-8})


def test_a_peers_completion_is_cut_at_the_token_limit_of_the_learner(tmp_path: Path) -> None:
    """Its text may have more tokens in the vocabulary of the learner."""
    protocol = {"rescue_samples": 0, "sampling": {"max_new_tokens": 5}}
    task = context(
        scored_run(tmp_path, loss="gspo", hacpo={"enabled": True}, protocol=protocol), TaskKey(1, UPDATE, "a")
    )
    task.model = task.run.config.model("a")
    task.prompt_builder = lambda _: PromptBuilder(TOKENIZER, "chat", "")
    task.stop_strings = lambda _: ()
    peers = [row for row in training_rows(task) if row.lesson == "peer"]
    texts = {(r["problem_id"], r["sample_index"]): r["text"] for r in rollout_rows("b", COLD)}
    assert len(peers) == len(texts)
    for row in peers:
        assert TOKENIZER.decode(row.completion_token_ids) == texts[row.problem_id, row.key[2]][:5]


def test_a_peers_completion_in_which_the_learner_would_have_ended_is_left_out(tmp_path: Path) -> None:
    """The texts are "so 1 + 0 makes it" and "so 1 + 1 makes it"."""
    run = scored_run(tmp_path, loss="gspo", hacpo={"enabled": True}, protocol={"rescue_samples": 0})
    task = context(run, TaskKey(1, UPDATE, "a"))
    task.model = run.config.model("a")
    task.prompt_builder = lambda _: PromptBuilder(TOKENIZER, "chat", "")
    task.stop_strings = lambda _: ("+ 1",)
    rows = training_rows(task)
    assert [row.key for row in rows if row.lesson == "peer"] == [(p, COLD, 0, "b") for p in ("easy", "hard")]
    assert sum(row.lesson is None for row in rows) == 4


@pytest.mark.parametrize(("truncated", "weight"), [("keep", 1.0), ("mask", 0.0)])
def test_a_peers_completion_that_was_cut_has_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncated: str, weight: float
) -> None:
    from tests.unit.phases import test_traps
    from tests.unit.phases.test_lessons import cut

    monkeypatch.setattr(test_traps, "rollout_rows", cut(COLD))
    run = scored_run(
        tmp_path, loss="gspo", hacpo={"enabled": True}, protocol={"rescue_samples": 0}, truncated=truncated
    )
    task = context(run, TaskKey(1, UPDATE, "a"))
    task.model = run.config.model("a")
    task.prompt_builder = lambda _: PromptBuilder(TOKENIZER, "chat", "")
    task.stop_strings = lambda _: ()
    texts = {(r["problem_id"], r["sample_index"]): r["text"] for r in rollout_rows("b", COLD)}
    peers = [row for row in training_rows(task) if row.lesson == "peer"]
    assert len(peers) == len(texts)
    for row in peers:
        assert TOKENIZER.decode(row.completion_token_ids) == texts[row.problem_id, row.key[2]]
        assert row.weight == weight


def test_the_kl_term_covers_own_completions_only() -> None:
    current = torch.tensor([-0.5, -1.0, -0.3, -2.0], dtype=torch.float64)
    reference = torch.tensor([-0.7, -0.4, -1.3, -0.1], dtype=torch.float64)
    batch = TokenBatch(
        old_M=current,
        reference_M=reference,
        importance_M=torch.ones(4, dtype=torch.float64),
        row_M=torch.tensor([0, 0, 1, 1]),
        lengths_N=torch.tensor([2, 2]),
        advantage_N=torch.zeros(2, dtype=torch.float64),
        weight_N=torch.ones(2, dtype=torch.float64),
        rescue_N=torch.zeros(2, dtype=torch.bool),
        objective_N=torch.tensor([OBJECTIVES.index("policy"), OBJECTIVES.index("cross")]),
        peer_N=torch.tensor([math.nan, -1.0], dtype=torch.float64),
    )
    settings = UpdateSection(loss="gspo", kl_weight=1, hacpo=HacpoSection(enabled=True))
    terms = objective(current, batch, settings, StepSize(2, 4, 4, 0))
    own = sum(math.exp(gap) - gap - 1 for gap in (-0.2, 0.6)) / 2
    assert terms.k3_N.tolist() == pytest.approx([own, 0.0])
    assert terms.loss.item() == pytest.approx(own / 2)


def test_a_range_of_ratios_that_closes_within_an_iteration_is_a_configuration_error() -> None:
    def config(problems: int, **hacpo: float) -> RunConfig:
        update = {"loss": "gspo", "problems_per_step": 4, "hacpo": {"enabled": True, **hacpo}}
        protocol = {"rescue_samples": 0, "problems_per_iteration": problems}
        return RunConfig.model_validate({**DATA, "update": update, "protocol": protocol})

    config(32)  # in the last of 8 steps the bound is 0.8 + 7 * 0.025 = 0.975
    for problems in (33, 40):
        with pytest.raises(ValidationError, match=r"update\.hacpo\.clip_step: 0\.025 .* Set it to 0\.00(94|83)"):
            config(problems)
    config(40, clip_step=0.0083)
    config(4, clip_step=1)


def test_hacpo_with_another_loss_or_rescues_is_a_configuration_error() -> None:
    good = {**DATA, "update": {"loss": "gspo", "hacpo": {"enabled": True}}, "protocol": {"rescue_samples": 0}}
    assert RunConfig.model_validate(good).update.hacpo.enabled
    for change in ({"protocol": {}}, {"update": {"hacpo": {"enabled": True}}}, {"team": DATA["team"][:1]}):
        with pytest.raises(ValidationError, match=r"update\.hacpo is defined for a team"):
            RunConfig.model_validate({**good, **change})
    for option in ({"baseline": "model"}, {"advantage_scale": "none"}):
        with pytest.raises(ValidationError, match="advantages of its own"):
            RunConfig.model_validate({**good, "update": {**good["update"], **option}})
