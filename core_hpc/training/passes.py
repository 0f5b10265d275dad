"""Passes before training: log-probabilities of a task's completions under the weights before it, and under the reference policy.

In: the policy as it is before the first optimizer step, and the plan of all steps. Out: log-probabilities by row, of the rows of
this rank. No gradients, so that the rows of several steps go together, and what they share is computed once.

Shapes: M completion tokens.
"""

# Tensor names end in their shape.
# ruff: noqa: N806

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core_hpc.training.batching import Layout, MicroBatchPlan, Row, StepPlan, plan_pass
from core_hpc.training.micro_batch import MicroBatch, collate
from core_hpc.training.policy import Policy
from core_hpc.training.task import UpdateTask

LogProbs = dict[int, Tensor]
"""By row of the task: of its completion tokens."""
PASS_STEPS = 8
"""Optimizer steps whose rows go together."""


class Passes:
    """The passes of one task on one rank. `num_tokens`: computed so far, on all ranks."""

    def __init__(
        self, policy: Policy, task: UpdateTask, plans: Sequence[StepPlan], *, rank: int, num_ranks: int
    ) -> None:
        self.num_tokens = 0
        self._policy, self._task, self._plans = policy, task, plans
        self._rank, self._num_ranks = rank, num_ranks

    def old(self) -> LogProbs:
        """Under the weights before the task. Those of its first step come from that step's own pass, which sees the same weights."""
        return self._log_probs(range(1, len(self._plans)), reference=False)

    def reference(self) -> LogProbs | None:
        """Under the reference policy; None where that is what the weights are before the first task (of a fresh adapter, B = 0)."""
        if self._task.settings.kl_weight == 0 or self._task.previous is None:
            return None
        return self._log_probs(range(len(self._plans)), reference=True)

    @torch.no_grad()
    def _log_probs(self, wanted: range, *, reference: bool) -> LogProbs:
        """Steps go together by their number, whichever of them are left to do: last digits depend on it."""
        found: LogProbs = {}
        done = self._task.resume.steps.height if self._task.resume else 0
        for start in range(0, len(self._plans), PASS_STEPS):
            steps = [step for step in range(start, start + PASS_STEPS) if step in wanted]
            if not steps or steps[-1] < done:
                continue
            for rank in range(self._num_ranks):
                planned = self._plan(steps, rank)
                self.num_tokens += sum(batch.num_tokens for batch in planned)
                if rank == self._rank:
                    for batch in micro_batches(self._task.rows, planned, self._policy.layout, self._policy.device):
                        logp_M, _ = self._policy.log_probs(
                            batch, temperature=self._task.temperature, reference=reference
                        )
                        found.update(zip(batch.rows, logp_M.split(batch.lengths_N.tolist()), strict=True))
        return found

    def _plan(self, steps: Sequence[int], rank: int) -> list[MicroBatchPlan]:
        indices = [i for step in steps for batch in self._plans[step].micro_batches[rank] for i in batch.rows]
        return plan_pass(
            self._task.rows, indices, max_tokens=self._task.settings.micro_batch_tokens, layout=self._policy.layout
        )


def micro_batches(
    rows: Sequence[Row], planned: Sequence[MicroBatchPlan], layout: Layout, device: torch.device
) -> Iterator[MicroBatch]:
    """The tensors of each, one after the other."""
    for batch in planned:
        yield collate(rows, batch.rows, layout).to(device)
