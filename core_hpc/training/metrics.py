"""Metrics of one optimizer step: summed over micro-batches, then over ranks, in float64.

In: the loss terms of each micro-batch. Out: one row of metrics. KL, entropy, mismatch, importance
and ratio are over the completions that had a forward pass, and NaN if none had one. Losses and
clip_share are of the whole step, to which the other completions add 0. Some metrics are also given
for each source of completions. The totals also hold which problems had a loss that is not finite,
so that every rank stops with the same message. This module computes no loss.

Shapes: N completions and M completion tokens of a micro-batch.
"""

# Tensor names end in their shape.
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core_hpc.training.batching import SOURCES, Row, Source, StepPlan
from core_hpc.training.guard import Mismatch
from core_hpc.training.losses import LossTerms, TokenBatch
from core_hpc.training.micro_batch import MicroBatch
from core_hpc.training.zero2 import reduce_metrics

SUMS = ("loss", "policy_loss", "kl", "clipped", "entropy", "mismatch", "importance", "kept")
MAXIMA = ("mismatch_max", "ratio_max")
BY_SOURCE = ("clipped", "slope")
"""Sums for each source: clipped tokens, and |derivative of the loss by a log-probability|."""
CLIPPED_SOURCES: tuple[Source, ...] = ("cold", "rescue", "internalised", "peer")
"""The sources with a ratio."""


class StepTotals:
    """Sums and maxima of one optimizer step, over micro-batches and then over ranks.

    `maxima` ends with one flag per problem: the loss of one of its completions is not finite.
    """

    def __init__(
        self, plan: StepPlan, rows: Sequence[Row], device: torch.device, *, compares_engine: bool = True
    ) -> None:
        """Begin with zeros.

        Args:
            compares_engine: the old log-probabilities are the trainer's own, so that a difference
                from the engine can be measured.
        """
        self.plan = plan
        self.rows = rows
        self.compares_engine = compares_engine
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.maxima = torch.zeros(len(MAXIMA) + len(plan.problem_ids), dtype=torch.float64, device=device)
        self.by_source = torch.zeros(len(BY_SOURCE), len(SOURCES), dtype=torch.float64, device=device)
        # Sums of |policy - engine| and |base - engine| by problem.
        self.mismatch = torch.zeros(2, len(plan.problem_ids), dtype=torch.float64, device=device)

    def add(
        self,
        batch: MicroBatch,
        tokens: TokenBatch,
        terms: LossTerms,
        entropy_M: Tensor,
        base_M: Tensor | None = None,
        *,
        slope_M: Tensor | None = None,
    ) -> None:
        """Add one micro-batch.

        Args:
            base_M: log-probabilities under the base weights, if the guard needs them.
            slope_M: derivative of the loss by the current log-probabilities.
        """
        mismatch_M = _distance(tokens.old_M, batch.behaviour_M)
        parts = (
            terms.loss.detach(),
            terms.policy,
            terms.k3_N.sum(),
            terms.clipped_M.sum(),
            entropy_M.sum(),
            mismatch_M.sum(),
            tokens.importance_M.sum(),
            torch.where(batch.behaviour_M.isnan(), 0.0, (tokens.old_M - batch.behaviour_M).exp()).sum(),
        )
        self.sums += torch.stack([p.double() for p in parts])
        bad_N = ~torch.isfinite(terms.loss_N)
        problems = [self.plan.problem_ids.index(self.rows[i].problem_id) for i in batch.rows]
        problem_N = torch.tensor(problems, device=bad_N.device)
        self.maxima[len(MAXIMA) :].index_add_(0, problem_N, bad_N.double())
        problem_M = problem_N[batch.row_M]
        self.mismatch[0].index_add_(0, problem_M, mismatch_M.double())
        if base_M is not None:
            self.mismatch[1].index_add_(0, problem_M, _distance(base_M, batch.behaviour_M).double())
        source_N = torch.tensor([SOURCES.index(self.rows[i].source) for i in batch.rows], device=bad_N.device)
        slopes_M = torch.zeros_like(entropy_M) if slope_M is None else slope_M.abs()
        for sums, values_M in zip(self.by_source, (terms.clipped_M, slopes_M), strict=True):
            sums.index_add_(0, source_N[batch.row_M], values_M.double())
        highest = torch.stack([mismatch_M.max(), terms.ratio_M.max()]).double()
        self.maxima[: len(MAXIMA)] = torch.maximum(self.maxima[: len(MAXIMA)], highest)

    def reduce(self) -> None:
        """Make the totals global over ranks. Collective."""
        parts = (self.sums, self.mismatch, self.by_source)
        sums = torch.cat([part.flatten() for part in parts])
        reduce_metrics(sums, self.maxima)
        split = sums.split([part.numel() for part in parts])
        self.sums, self.mismatch, self.by_source = (
            values.view_as(part) for values, part in zip(split, parts, strict=True)
        )

    def differences(self, *, with_base: bool) -> Mismatch:
        """By how much trainer and engine differ, after `reduce`. `with_base`: base weights were compared as well."""
        num_tokens = dict.fromkeys(self.plan.problem_ids, 0)
        for i in self.plan.rows_run:
            if self.rows[i].behaviour_logprobs is not None:
                num_tokens[self.rows[i].problem_id] += len(self.rows[i].completion_token_ids)
        policy, base = (dict(zip(self.plan.problem_ids, sums, strict=True)) for sums in self.mismatch.tolist())
        return Mismatch(policy, base if with_base else None, num_tokens)

    def bad_problems(self) -> list[str]:
        """The problems whose loss is not finite."""
        flags = self.maxima[len(MAXIMA) :].tolist()
        return [problem for problem, flag in zip(self.plan.problem_ids, flags, strict=True) if flag]

    def means(self, *, with_kl: bool) -> dict[str, Any]:
        """The metrics of schema.STEPS; kl is NaN without a KL term."""
        sums = dict(zip(SUMS, self.sums.tolist(), strict=True))
        num_tokens, run = self.plan.num_completion_tokens, self.plan.rows_run
        lengths = {i: len(self.rows[i].completion_token_ids) for i in run}
        num_tokens_run = sum(lengths.values())
        num_tokens_sampled = sum(length for i, length in lengths.items() if self.rows[i].behaviour_logprobs is not None)
        maxima = self.maxima.tolist() if run else [math.nan] * len(MAXIMA)
        if not self.compares_engine:
            num_tokens_sampled, maxima[MAXIMA.index("mismatch_max")] = 0, math.nan
        return {
            "num_completions": len(self.plan.rows),
            "num_tokens": num_tokens,
            "loss": sums["loss"],
            "policy_loss": sums["policy_loss"],
            "kl": _mean(sums["kl"], sum(self.rows[i].objective != "cross" for i in run)) if with_kl else math.nan,
            "clip_share": _mean(sums["clipped"], num_tokens),
            "entropy": _mean(sums["entropy"], num_tokens_run),
            "mismatch_mean": _mean(sums["mismatch"], num_tokens_sampled),
            "importance_mean": _mean(sums["importance"], num_tokens_run),
            "kept_mass": _mean(sums["kept"], num_tokens_sampled),
            **dict(zip(MAXIMA, maxima, strict=False)),
            **self._of_sources(),
        }

    def _of_sources(self) -> dict[str, Any]:
        """The metrics of single sources of completions; None if there is nothing to average."""
        rows = [self.rows[i] for i in self.plan.rows]
        num_tokens = dict.fromkeys(SOURCES, 0)
        for row in rows:
            num_tokens[row.source] += len(row.completion_token_ids)
        clipped, slopes = (dict(zip(SOURCES, sums, strict=True)) for sums in self.by_source.tolist())
        return {
            "reliance": _mean_of([row.reliance for row in rows if row.reliance is not None]),
            "self_teacher_factor": _mean_of([factor for row in rows for factor in row.token_factors or ()]),
            "num_lessons": sum(row.lesson is not None for row in rows),
            **{f"clip_share_{source}": _share(clipped[source], num_tokens[source]) for source in CLIPPED_SOURCES},
            **{f"slope_share_{source}": _share(slopes[source], sum(slopes.values())) for source in SOURCES},
        }


def _distance(logp_M: Tensor, behaviour_M: Tensor) -> Tensor:
    """|difference| from the engine; 0 for tokens that this model's engine has not sampled."""
    return torch.where(behaviour_M.isnan(), 0.0, (logp_M - behaviour_M).abs())


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


def _mean_of(values: Sequence[float]) -> float | None:
    return _share(sum(values), len(values))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
