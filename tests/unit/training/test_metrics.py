"""The metrics of an optimizer step against plain loops over completions and tokens."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from core_hpc.config.update import UpdateSection
from core_hpc.training.batching import Row, StepPlan, plan_steps
from core_hpc.training.losses import LossTerms, StepSize, TokenBatch, objective
from core_hpc.training.metrics import StepTotals
from core_hpc.training.micro_batch import MicroBatch, collate

ROW = Row(
    key=("p", 0),
    problem_id="p",
    prompt_token_ids=[5, 6],
    completion_token_ids=[8, 9, 4],
    behaviour_logprobs=[-0.5, -0.7, -0.1],
    advantage=1.0,
    weight=1.0,
)
ROWS = [
    ROW,
    replace(ROW, key=("p", 1), prompt_token_ids=[1], advantage=-0.8),
    replace(ROW, key=("q", 0), problem_id="q", prompt_token_ids=[2, 3, 4], completion_token_ids=[7, 3, 3, 1],
            behaviour_logprobs=[-1.0, -2.0, -0.3, -0.2], advantage=0.4, weight=0.8, rescue=True, reliance=-0.3),
    replace(ROW, key=("q", 1), problem_id="q", prompt_token_ids=[3], completion_token_ids=[1, 2], reliance=0.1,
            behaviour_logprobs=None, token_factors=[0.8, 1.1]),  # the engine has not sampled it
    replace(ROW, key=("q", 2), problem_id="q", prompt_token_ids=[9], weight=0.0),  # counts, and is not computed
]  # fmt: skip
NUM_TOKENS = 3 + 3 + 4 + 2 + 3
SETTINGS = UpdateSection(kl_weight=0.3)
Values = dict[str, list[list[float]]]


def draw() -> Values:
    """For each row and token, log-probabilities of the trainer, and what else an update computes."""
    dice = random.Random(3)

    def near(centres: list[list[float]], spread: float) -> list[list[float]]:
        return [[value + dice.uniform(-spread, spread) for value in values] for values in centres]

    old = near([[-1.0] * len(row.completion_token_ids) for row in ROWS], 0.8)
    return {
        "old": old,
        "current": near(old, 0.5),
        "reference": near(old, 0.4),
        "base": near(old, 0.3),
        "importance": near([[1.0] * len(values) for values in old], 0.5),
        "entropy": near([[2.0] * len(values) for values in old], 1.0),
    }


def planned() -> StepPlan:
    (plan,) = plan_steps(ROWS, problems_per_step=2, seed=0, num_ranks=1, max_tokens=6, layout="tree")
    assert len(plan.micro_batches[0]) > 1
    assert sorted(plan.rows_run) == [0, 1, 2, 3]
    return plan


def computed(values: Values, batch: MicroBatch) -> tuple[TokenBatch, LossTerms, dict[str, torch.Tensor]]:
    flat = {
        name: torch.tensor([v for i in batch.rows for v in of_rows[i]], dtype=torch.float64)
        for name, of_rows in values.items()
    }
    tokens = TokenBatch(
        old_M=flat["old"],
        reference_M=flat["reference"],
        importance_M=flat["importance"],
        row_M=batch.row_M,
        lengths_N=batch.lengths_N,
        advantage_N=batch.advantage_N.double(),
        weight_N=batch.weight_N.double(),
        rescue_N=batch.rescue_N,
    )
    return tokens, objective(flat["current"], tokens, SETTINGS, StepSize(len(ROWS), NUM_TOKENS, 16)), flat


def totals_of(values: Values, plan: StepPlan, *, compares_engine: bool = True) -> StepTotals:
    totals = StepTotals(plan, ROWS, torch.device("cpu"), compares_engine=compares_engine)
    for part in plan.micro_batches[0]:
        batch = collate(ROWS, part.rows, "tree")
        tokens, terms, flat = computed(values, batch)
        totals.add(batch, tokens, terms, flat["entropy"], flat["base"])
    return totals


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_means_and_maxima_equal_a_plain_loop() -> None:
    values = draw()
    policy, penalty, kl, clipped = 0.0, 0.0, list[float](), 0
    ratios, differences, kept, entropy, importance = ([] for _ in range(5))  # type: ignore[var-annotated]
    for i, row in enumerate(ROWS[:4]):
        length = len(row.completion_token_ids)
        k3s = []
        for t in range(length):
            old, current = values["old"][i][t], values["current"][i][t]
            ratio, gap = math.exp(current - old), values["reference"][i][t] - current
            bounded = min(max(ratio, 0.8), 1.2)
            gain = min(ratio * row.advantage, bounded * row.advantage)
            clipped += gain < ratio * row.advantage
            k3s.append(math.exp(gap) - gap - 1)
            policy -= row.weight * values["importance"][i][t] * gain / (5 * length)
            ratios.append(ratio)
            if row.behaviour_logprobs is not None:
                differences.append(old - row.behaviour_logprobs[t])
        kl.append(mean(k3s))
        penalty += 0.3 * row.weight * mean(k3s) / 5
        entropy += values["entropy"][i]
        importance += values["importance"][i]
    kept = [math.exp(d) for d in differences]
    expected = {
        "num_completions": 5,
        "num_tokens": NUM_TOKENS,
        "loss": policy + penalty,
        "policy_loss": policy,
        "kl": mean(kl),
        "clip_share": clipped / NUM_TOKENS,
        "entropy": mean(entropy),
        "mismatch_mean": mean([abs(d) for d in differences]),
        "importance_mean": mean(importance),
        "kept_mass": mean(kept),
        "mismatch_max": max(map(abs, differences)),
        "ratio_max": max(ratios),
        "reliance": -0.1,
        "self_teacher_factor": 0.95,
    }
    assert clipped > 1
    plan = planned()
    found = totals_of(values, plan).means(with_kl=True)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert math.isnan(totals_of(values, plan).means(with_kl=False)["kl"])
    # The old log-probabilities are the engine's own, so that nothing is compared.
    alone = totals_of(values, plan, compares_engine=False).means(with_kl=True)
    unknown = ("mismatch_mean", "mismatch_max", "kept_mass")
    assert all(math.isnan(alone[name]) for name in unknown)
    assert all(alone[name] == found[name] for name in expected if name not in unknown)


def test_differences_from_the_engine_are_summed_for_each_problem() -> None:
    values = draw()
    found = totals_of(values, planned()).differences(with_base=True)
    assert found.num_tokens == {"p": 6, "q": 4}
    assert found.base is not None
    for problem, rows in (("p", (0, 1)), ("q", (2,))):
        for name, sums in (("old", found.policy), ("base", found.base)):
            expected = sum(
                abs(a - b) for i in rows for a, b in zip(values[name][i], ROWS[i].behaviour_logprobs or (), strict=True)
            )
            assert sums[problem] == pytest.approx(expected, rel=1e-6), (problem, name)
    assert totals_of(values, planned()).differences(with_base=False).base is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["importance", "reference"])
def test_the_problems_of_losses_that_are_not_finite_are_named(where: str, bad: float) -> None:
    """Also if only the KL term is not finite."""
    values = draw()
    assert totals_of(values, planned()).bad_problems() == []
    values[where][2][1] = bad
    assert totals_of(values, planned()).bad_problems() == ["q"]
