"""Functions of the benchmarks of speed: settings, mixes of lengths, slopes, and a plain loss."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from core_hpc.config.update import UpdateSection
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.paths import TaskKey
from core_hpc.training.losses import StepSize, TokenBatch, objective
from tests.benchmarks import gpu_update, hot_swap, overhead, reference_loop, scoring, staleness, update_trl
from tests.benchmarks.real_run import MODELS, SWEEP, sampled_length, settings


class Tokens:
    """The end token and the padding token of a tokenizer."""

    def __init__(self, end: int, padding: int | None) -> None:
        self.eos_token_id, self.pad_token_id = end, padding


def test_settings_give_a_sweep_of_the_wanted_size() -> None:
    values = settings(problems=32, cold=2, rescue=1, iterations=3, dtype="bfloat16")
    for driver in ("local", "arrays"):
        (plan,) = load_sweep(SWEEP, values + overhead.driver_settings(driver)).runs
        config = plan.config
        assert (config.cluster.driver, config.iterations, config.protocol.problems_per_iteration) == (driver, 3, 32)
        # The cost of a problem does not depend on which models solve it.
        assert config.protocol.even_budget
        assert (config.protocol.cold_samples, config.protocol.rescue_samples) == (2, 1)
        assert {m.name: m.dtype for m in config.team} == dict.fromkeys(MODELS, "bfloat16")
    (alone,) = load_sweep(SWEEP, settings(problems=4, cold=1)).runs
    assert not alone.config.protocol.even_budget


@pytest.mark.parametrize("work", staleness.WORKS.values(), ids=str)
def test_the_simulated_iteration_by_hand(work: staleness.Work) -> None:
    """Engines and trainers with GPUs of their own: without staleness every phase waits for the slower model."""

    def slower(phase: str) -> float:
        return max(staleness.seconds_of(TaskKey(1, phase, model), work, 1) for model in staleness.BILLIONS)

    sampling, update, gpus = slower("cold") + slower("rescue"), slower("update"), staleness.placement(4, shared=False)
    newest = staleness.simulate(staleness.graph_of(0), work, gpus)
    assert newest == pytest.approx(sampling + update + 2 * staleness.SCORE_S)
    # With staleness an iteration takes as long as the slower half, once the first one is sampled.
    runs = {n: n * staleness.simulate(staleness.graph_of(1, n), work, gpus) for n in (8, 12)}
    period = (runs[12] - runs[8]) / 4
    assert max(sampling, update) <= period <= max(sampling + staleness.SCORE_S, update) + staleness.SCORE_S
    # In turns on one GPU per model nothing overlaps within a model, so only the waiting gets shorter.
    shared = staleness.simulate(staleness.graph_of(1), work, staleness.placement(2, shared=True))
    assert sampling + update <= shared <= newest


def test_length_of_a_padded_completion() -> None:
    assert sampled_length([5, 6, 2, 0, 0], Tokens(end=2, padding=0)) == 3
    assert sampled_length([5, 6, 7], Tokens(end=2, padding=0)) == 3
    assert sampled_length([5, 6, 0, 0], Tokens(end=2, padding=0)) == 2  # ended by a stop string
    assert sampled_length([5, 2, 2, 2], Tokens(end=2, padding=2)) == 2
    assert sampled_length([5, 6, 7], Tokens(end=2, padding=None)) == 3


@pytest.mark.parametrize("size", update_trl.SIZES)
def test_both_mixes_have_the_same_work(size: str) -> None:
    problems, samples, mean, _ = update_trl.SIZES[size]
    uniform, long = (update_trl.make_rows(mix, size, 1000) for mix in ("uniform", "long_tail"))
    assert update_trl.num_tokens(uniform) == problems * samples * (update_trl.PROMPT_TOKENS + mean)
    assert update_trl.num_tokens(long) == pytest.approx(update_trl.num_tokens(uniform), rel=0.01)
    assert max(len(r.completion_token_ids) for r in long) > 3 * mean
    for rows in (uniform, long):
        assert len({r.problem_id for r in rows}) == problems
        assert all(
            a.prompt_token_ids == b.prompt_token_ids
            for a, b in itertools.pairwise(rows)
            if a.problem_id == b.problem_id
        )
        # The batches of TRL must fill its optimizer steps exactly.
        assert len(rows) % (update_trl.STEPS * min(update_trl.BATCHES)) == 0


def test_growth_of_memory_is_a_slope() -> None:
    rng = random.Random(0)
    flat = [1000 + rng.uniform(-1, 1) for _ in range(100)]
    assert hot_swap.growth(flat) == pytest.approx(0, abs=0.02)
    # Memory that is allocated once at the beginning is not a leak.
    assert hot_swap.growth([500 + 25 * i for i in range(20)] + flat[20:]) == pytest.approx(0, abs=0.02)
    assert hot_swap.growth([m + 0.5 * i for i, m in enumerate(flat)]) == pytest.approx(0.5, abs=0.02)


def test_the_plain_loss_equals_the_objective_of_training() -> None:
    """Loss and gradients summed over single completions equal those of a whole step."""
    generator, lengths = torch.Generator().manual_seed(0), [3, 1, 7, 4]
    total, row = sum(lengths), torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    old, reference, shift = (-3 * torch.rand(total, generator=generator, dtype=torch.float64) for _ in range(3))
    advantage = torch.tensor([1.3, -0.7, -0.2, 0.9], dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0, 0.8, 0.8], dtype=torch.float64)
    options = UpdateSection(importance={"kind": "none"})

    mine = (old + 0.3 * (shift + 1.5)).requires_grad_()
    batch = TokenBatch(
        old_M=old,
        reference_M=reference,
        importance_M=torch.ones_like(old),
        row_M=row,
        lengths_N=torch.tensor(lengths),
        advantage_N=advantage,
        weight_N=weight,
        rescue_N=weight < 1,
    )
    terms = objective(mine, batch, options, StepSize(4, total, 16))
    assert terms.clipped_M.any()
    terms.loss.backward()

    plain, value = mine.detach().clone().requires_grad_(), 0.0
    for n in range(4):
        own = row == n
        loss = reference_loop.grpo_loss(plain[own], old[own], reference[own], float(advantage[n]), options)
        (part := loss * weight[n] / 4).backward()
        value += part.item()
    assert value == pytest.approx(terms.loss.item(), rel=1e-12)
    torch.testing.assert_close(plain.grad, mine.grad, rtol=1e-12, atol=0)


def test_rows_to_score_and_rows_to_train() -> None:
    rows = scoring.make_rows(5)
    assert rows.height == 5 * 6
    assert rows.group_by("problem_id", "model", "phase").len().height == 5 * 2 * 2
    assert 0 < rows["correct"].sum() < rows.height
    assert all(60 <= len(text.split()) < 440 for text in rows["text"])
    updates = gpu_update.make_rows(512, 4096, 1000)
    assert {len(r.prompt_token_ids) + len(r.completion_token_ids) for r in updates} == {512}
    assert len(updates) * 512 == 4096
