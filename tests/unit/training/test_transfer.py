"""Texts that the policy has not sampled: their objectives against float64 loops, and their metrics."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from core_hpc.config.update import UpdateSection
from core_hpc.training.batching import OBJECTIVES, SOURCES, Row, plan_steps
from core_hpc.training.losses import LOSSES, StepSize, TokenBatch, objective
from core_hpc.training.metrics import StepTotals
from core_hpc.training.micro_batch import collate

ROW = Row(
    key=("p", 0),
    problem_id="p",
    prompt_token_ids=[5, 6, 7],
    completion_token_ids=[8, 9, 4],
    behaviour_logprobs=[-0.5, -0.7, -0.1],
    advantage=1.0,
    weight=1.0,
)


def make_rows() -> list[Row]:
    """Own completions of both phases, texts of peers, and rehearsed ones; some tokens differ."""
    own = [replace(ROW, key=("p", k), advantage=a, rescue=k == 2) for k, a in enumerate((1.3, -0.6, 0.9))]
    lesson = replace(ROW, behaviour_logprobs=None, weight=0.5, completion_token_ids=[9, 9, 1, 3])
    return [
        *own,
        replace(lesson, key=("p", 3), lesson="taught", objective="likelihood"),
        replace(lesson, key=("p", 4), lesson="taught", objective="shaped", advantage=1.7),
        replace(lesson, key=("p", 5), lesson="rehearsed", objective="likelihood", advantage=0.8),
    ]


def reference_loss(rows: list[Row], currents: list[list[float]], olds: list[list[float]]) -> float:
    """The loss of grpo without KL term, and of the other objectives, one token at a time."""
    total = 0.0
    for row, current, old in zip(rows, currents, olds, strict=True):
        share = row.weight / (len(rows) * len(current))
        for now, before in zip(current, old, strict=True):
            if row.objective == "likelihood":
                gain = row.advantage * now
            elif row.objective == "shaped":
                gain = row.advantage * math.exp(now) / (math.exp(now) + 0.1)
            else:
                ratio = math.exp(now - before)
                gain = min(ratio * row.advantage, min(max(ratio, 0.8), 1.2) * row.advantage)
            total -= share * gain
    return total


def drawn(rows: list[Row], seed: int) -> tuple[list[list[float]], list[list[float]]]:
    draw = random.Random(seed)
    olds = [[-draw.uniform(0.1, 6) for _ in row.completion_token_ids] for row in rows]
    return [[min(-0.01, old + draw.uniform(-0.5, 0.5)) for old in values] for values in olds], olds


def batch_of(rows: list[Row], olds: list[list[float]]) -> TokenBatch:
    lengths = torch.tensor([len(row.completion_token_ids) for row in rows])
    old = torch.tensor([v for values in olds for v in values], dtype=torch.float64)
    return TokenBatch(
        old_M=old,
        reference_M=None,
        importance_M=torch.ones_like(old),
        row_M=torch.repeat_interleave(torch.arange(len(rows)), lengths),
        lengths_N=lengths,
        advantage_N=torch.tensor([row.advantage for row in rows], dtype=torch.float64),
        weight_N=torch.tensor([row.weight for row in rows], dtype=torch.float64),
        rescue_N=torch.tensor([row.rescue for row in rows]),
        objective_N=torch.tensor([OBJECTIVES.index(row.objective) for row in rows]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_objectives_and_slopes_equal_a_plain_loop(seed: int) -> None:
    rows = make_rows()
    currents, olds = drawn(rows, seed)
    current = torch.tensor([v for values in currents for v in values], dtype=torch.float64, requires_grad=True)
    step = StepSize(len(rows), sum(map(len, currents)), 16)
    terms = objective(current, batch_of(rows, olds), UpdateSection(kl_weight=0), step)
    assert terms.loss.item() == pytest.approx(reference_loss(rows, currents, olds), abs=1e-12)
    terms.loss.backward()
    assert current.grad is not None
    slopes = []
    for values in currents:
        for t, value in enumerate(values):
            sides = []
            for shift in (1e-6, -1e-6):
                values[t] = value + shift
                sides.append(reference_loss(rows, currents, olds))
            values[t] = value
            slopes.append((sides[0] - sides[1]) / 2e-6)
    assert current.grad.tolist() == pytest.approx(slopes, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_text_of_a_peer_keeps_its_slope_when_it_is_learned_and_changes_no_other(loss: str) -> None:
    """With every loss, also far from the weights before the update, where a ratio is clipped or overflows."""
    settings, rows = UpdateSection(loss=loss, kl_weight=0), make_rows()
    currents, olds = drawn(rows, 0)
    step, own = StepSize(len(rows), sum(map(len, currents)), 16), sum(map(len, currents[:3]))
    found = []
    for learned in (0.0, 3.0, 800.0):
        below = [*olds[:3], *([v - learned for v in values] for values in olds[3:])]
        current = torch.tensor([v for values in currents for v in values], dtype=torch.float64, requires_grad=True)
        terms = objective(current, batch_of(rows, below), settings, step)
        terms.loss.backward()
        assert current.grad is not None
        assert not terms.clipped_M[own:].any()
        found.append(current.grad.tolist())
    assert found[0] == found[1] == found[2]
    assert all(slope < 0 for slope in found[0][own:])
    alone = torch.tensor([v for values in currents[:3] for v in values], dtype=torch.float64, requires_grad=True)
    batch = batch_of(rows[:3], olds[:3])
    objective(alone, replace(batch, objective_N=None), settings, step).loss.backward()
    assert alone.grad is not None
    assert found[0][:own] == pytest.approx(alone.grad.tolist(), abs=1e-15)


def test_metrics_are_given_for_each_source() -> None:
    """Against a loop over rows and tokens; the row without advantage has no forward pass."""
    settings = UpdateSection(kl_weight=0)
    rows = [*make_rows(), replace(ROW, key=("p", 6), advantage=0.0)]
    (plan,) = plan_steps(
        rows, problems_per_step=1, seed=0, num_ranks=1, max_tokens=100, layout="tree", with_zero_signal=False
    )
    (planned,) = plan.micro_batches[0]
    batch = collate(rows, planned.rows, "tree")
    run = [rows[i] for i in planned.rows]
    currents, olds = drawn(run, 1)
    current = torch.tensor([v for values in currents for v in values], dtype=torch.float64, requires_grad=True)
    terms = objective(current, batch_of(run, olds), settings, StepSize(7, 24, 16))
    (slope,) = torch.autograd.grad(terms.loss, current)
    totals = StepTotals(plan, rows, torch.device("cpu"))
    totals.add(batch, batch_of(run, olds), terms, torch.zeros(len(current)), slope_M=slope)
    means = totals.means(with_kl=False)
    slopes, clipped = dict.fromkeys(SOURCES, 0.0), dict.fromkeys(SOURCES, 0)
    for n, row in enumerate(run):
        for t in range(len(row.completion_token_ids)):
            m = sum(map(len, currents[:n])) + t
            slopes[row.source] += abs(slope[m].item())
            clipped[row.source] += bool(terms.clipped_M[m])
    for source in SOURCES:
        assert means[f"slope_share_{source}"] == pytest.approx(slopes[source] / sum(slopes.values()))
        assert (means[f"slope_share_{source}"] > 0) == any(row.source == source for row in run)
    # Three own cold completions (one without advantage) and one rescue, of three tokens each.
    assert (means["clip_share_cold"], means["clip_share_rescue"]) == (clipped["cold"] / 9, clipped["rescue"] / 3)
    assert clipped["cold"]
    assert means["num_lessons"] == 3
