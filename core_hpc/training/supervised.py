"""Supervised fine-tuning of one model: the mean negative log-likelihood of worked solutions.

In: rows of a prompt and a solution, and the base weights. Out: an ordinary model folder, and
metrics of every optimizer step. Batches, ranks, optimizer, and exact resume are those of an update
(`trainer.py`). There is no policy ratio, because nothing was sampled. An adapter is merged into the
weights at the end. This module chooses no examples and publishes nothing.

Shapes: N completions and M completion tokens of a micro-batch.
"""

# Tensor names end in their shape.
# ruff: noqa: N806

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from core_hpc.training.batching import StepPlan
from core_hpc.training.full import write_model
from core_hpc.training.lora import LoraPolicy
from core_hpc.training.losses import LossTerms, TokenBatch, completion_sum
from core_hpc.training.metrics import StepTotals
from core_hpc.training.passes import LogProbs, micro_batches
from core_hpc.training.state_io import TrainingState
from core_hpc.training.task import UpdateTask
from core_hpc.training.timings import UpdateTimings
from core_hpc.training.trainer import RunningTask, Trainer


class SupervisedTrainer(Trainer):
    """One rank of the warm-up of one model."""

    def _passes(
        self, spec: UpdateTask, plans: list[StepPlan], timings: UpdateTimings
    ) -> tuple[LogProbs, LogProbs | None]:
        """None: a likelihood is compared with no other policy."""
        return {}, None

    def _losses(self, task: RunningTask, index: int, totals: StepTotals) -> Iterator[Tensor]:
        """Negative log-likelihood of each of this rank's micro-batches, per token of the whole step."""
        plan = task.plans[index]
        for batch in micro_batches(task.spec.rows, plan.micro_batches[self.rank], self.policy.layout, self.device):
            current_M, entropy_M = self.policy.log_probs(batch, temperature=1.0)
            loss_N = completion_sum(-current_M, batch.row_M, len(batch.lengths_N)) / plan.num_completion_tokens
            constant_M, none_N = torch.ones_like(current_M).detach(), torch.zeros_like(loss_N).detach()
            tokens = TokenBatch(
                old_M=current_M.detach(),
                reference_M=None,
                importance_M=constant_M,
                row_M=batch.row_M,
                lengths_N=batch.lengths_N,
                advantage_N=batch.advantage_N,
                weight_N=batch.weight_N,
                rescue_N=batch.rescue_N,
            )
            terms = LossTerms(
                loss=loss_N.sum(),
                policy=loss_N.detach().sum(),
                loss_N=loss_N.detach(),
                k3_N=none_N,
                ratio_M=constant_M,
                clipped_M=torch.zeros_like(constant_M),
            )
            totals.add(batch, tokens, terms, entropy_M)
            yield terms.loss

    def _write_files(self, task: RunningTask, state: TrainingState, folder: Path) -> None:
        """Write the model, without the optimizer, which nothing continues from."""
        if isinstance(self.policy, LoraPolicy):
            write_model(self.policy.base, self.policy.merged(), folder, source=self.settings.model_folder)
        else:
            self.policy.write(folder, state.parts["weight"])
