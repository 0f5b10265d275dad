"""Passes before training: log-probabilities of a task's completions under fixed weights.

In: the policy as it is before the first optimizer step, and the plan of all steps. Out:
log-probabilities by row, for the rows of this rank, under the weights before the task and under the
reference policy. Without gradients the rows of several steps are computed together, and what they
share is computed once.

Shapes: M completion tokens.
"""

# Tensor names end in their shape.
# ruff: noqa: N806

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core_hpc.training.batching import Layout, MicroBatchPlan, Row, StepPlan, idle_batches, plan_pass
from core_hpc.training.micro_batch import MicroBatch, collate
from core_hpc.training.policy import Policy
from core_hpc.training.task import UpdateTask

LogProbs = dict[int, Tensor]
"""Log-probabilities of the completion tokens of a row, by the index of the row in its task."""
PASS_STEPS = 8
"""Optimizer steps whose rows are computed together."""


class Passes:
    """The passes of one task on one rank. `num_tokens` counts computed tokens, on all ranks."""

    def __init__(
        self, policy: Policy, task: UpdateTask, plans: Sequence[StepPlan], *, rank: int, num_ranks: int
    ) -> None:
        self.num_tokens = 0
        self._policy, self._task, self._plans = policy, task, plans
        self._rank, self._num_ranks = rank, num_ranks

    def old(self) -> LogProbs:
        """Log-probabilities under the weights before the task.

        Rows of the first step are left out: that step itself computes them, with the same weights.
        With `old_log_probs: engine`, so are rows that the model's engine has sampled, unless they are
        also those of the reference policy.
        """
        settings = self._task.settings
        are_reference = settings.kl_weight > 0 and self._task.begins_at_base
        known = settings.old_log_probs == "engine" and not are_reference
        return self._log_probs(range(1, len(self._plans)), reference=False, only_unsampled=known)

    def reference(self) -> LogProbs | None:
        """Log-probabilities under the reference policy.

        Returns:
            None if no KL term needs them, or if they equal the old ones: before the first task of a
            run the weights are those of the reference policy (the B of a fresh adapter is 0), unless
            the run begins with an adapter.
        """
        if self._task.settings.kl_weight == 0 or self._task.begins_at_base:
            return None
        return self._log_probs(range(len(self._plans)), reference=True)

    def of_rows(self, indices: Sequence[int]) -> LogProbs:
        """Log-probabilities of some rows under the present weights, computed on this rank alone."""
        planned = plan_pass(
            self._task.rows, indices, max_tokens=self._task.settings.micro_batch_tokens, layout=self._policy.layout
        )
        return self._run(planned, reference=False)

    def _log_probs(self, wanted: range, *, reference: bool, only_unsampled: bool = False) -> LogProbs:
        """Compute fixed groups of steps, or of them only the rows that the engine has not sampled.

        The groups do not depend on how many steps a checkpoint holds: the last digits of a result
        depend on which rows are computed together.
        """
        found: LogProbs = {}
        done = self._task.resume.steps.height if self._task.resume else 0
        for start in range(0, len(self._plans), PASS_STEPS):
            steps = [step for step in range(start, start + PASS_STEPS) if step in wanted]
            if not steps or steps[-1] < done:
                continue
            planned = [self._plan(steps, rank, only_unsampled=only_unsampled) for rank in range(self._num_ranks)]
            self.num_tokens += sum(batch.num_tokens for own in planned for batch in own)
            found |= self._run(planned[self._rank], reference=reference)
            if self._policy.is_sharded:
                self._run(idle_batches(planned, self._rank), reference=reference)
        return found

    def _run(self, planned: Sequence[MicroBatchPlan], *, reference: bool) -> LogProbs:
        found: LogProbs = {}
        with torch.no_grad():
            for batch in micro_batches(self._task.rows, planned, self._policy.layout, self._policy.device):
                logp_M, _ = self._policy.log_probs(batch, temperature=self._task.temperature, reference=reference)
                found.update(zip(batch.rows, logp_M.split(batch.lengths_N.tolist()), strict=True))
        return found

    def _plan(self, steps: Sequence[int], rank: int, *, only_unsampled: bool) -> list[MicroBatchPlan]:
        indices = [i for step in steps for batch in self._plans[step].micro_batches[rank] for i in batch.rows]
        if only_unsampled:
            indices = [i for i in indices if self._task.rows[i].behaviour_logprobs is None]
        if not indices:
            return []
        return plan_pass(
            self._task.rows, indices, max_tokens=self._task.settings.micro_batch_tokens, layout=self._policy.layout
        )


def micro_batches(
    rows: Sequence[Row], planned: Sequence[MicroBatchPlan], layout: Layout, device: torch.device
) -> Iterator[MicroBatch]:
    """The tensors of each planned micro-batch, one after the other."""
    for batch in planned:
        yield collate(rows, batch.rows, layout).to(device)
