"""Metrics of one optimizer step: summed over micro-batches, then over ranks, in float64.

Also remembers which problems had a loss that is not finite, so that every rank stops with the same message.
This module computes no loss.

Shapes: N completions and M completion tokens of a micro-batch.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core_hpc.training.batching import MicroBatch, Row, StepPlan
from core_hpc.training.losses import LossTerms, TokenBatch
from core_hpc.training.zero2 import reduce_metrics

SUMS = ("loss", "policy_loss", "kl", "clipped", "entropy", "mismatch", "importance")
MAXIMA = ("mismatch_max", "ratio_max")


class StepTotals:
    """Sums and maxima of one optimizer step, over micro-batches and then over ranks."""

    def __init__(self, plan: StepPlan, rows: Sequence[Row], device: torch.device) -> None:
        self.plan = plan
        self.rows = rows
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.maxima = torch.zeros(len(MAXIMA) + len(plan.problem_ids), dtype=torch.float64, device=device)

    def add(self, batch: MicroBatch, tokens: TokenBatch, terms: LossTerms, entropy_M: Tensor) -> None:
        mismatch_M = (tokens.old_M - batch.behaviour_M).abs()
        parts = (terms.loss.detach(), terms.policy, terms.k3_N.sum(), terms.clipped_M.sum(), entropy_M.sum(), mismatch_M.sum(),
                 tokens.importance_M.sum())  # fmt: skip
        self.sums += torch.stack([p.double() for p in parts])
        bad_N = ~torch.isfinite(terms.loss_N * tokens.weight_N)
        problems = [self.plan.problem_ids.index(self.rows[i].problem_id) for i in batch.rows]
        self.maxima[len(MAXIMA) :].index_add_(0, torch.tensor(problems, device=bad_N.device), bad_N.double())
        highest = torch.stack([mismatch_M.max(), terms.ratio_M.max()]).double()
        self.maxima[: len(MAXIMA)] = torch.maximum(self.maxima[: len(MAXIMA)], highest)

    def reduce(self) -> None:
        reduce_metrics(self.sums, self.maxima)

    def bad_problems(self) -> list[str]:
        flags = self.maxima[len(MAXIMA) :].tolist()
        return [problem for problem, flag in zip(self.plan.problem_ids, flags, strict=True) if flag]

    def means(self, *, with_kl: bool) -> dict[str, float | int]:
        """Metrics of schema.STEPS; kl is NaN where no reference was computed."""
        sums = dict(zip(SUMS, self.sums.tolist(), strict=True))
        num_tokens, num_completions = self.plan.num_completion_tokens, len(self.plan.rows)
        per_token = max(num_tokens, 1)
        return {
            "num_completions": num_completions,
            "num_tokens": num_tokens,
            "loss": sums["loss"],
            "policy_loss": sums["policy_loss"],
            "kl": sums["kl"] / num_completions if with_kl else float("nan"),
            "clip_share": sums["clipped"] / per_token,
            "entropy": sums["entropy"] / per_token,
            "mismatch_mean": sums["mismatch"] / per_token,
            "importance_mean": sums["importance"] / per_token,
            **dict(zip(MAXIMA, self.maxima.tolist(), strict=False)),
        }
