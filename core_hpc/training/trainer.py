"""One update task of one model, in one of its rank processes (METHOD section 5).

In: the model's completions of this iteration and its previously published adapter. Out: a folder with the new
adapter (rank 0) and metrics of every optimizer step (all ranks). A `Trainer` keeps the base model between tasks;
adapter and optimizer always start from the published state, so a warm process and a restarted one do the same.
The only random draws are the initial adapter and the order of problems, both from seeds in the task.
This module publishes nothing and knows no paths but the two folders it is given.

Shapes: N completions and M completion tokens of a micro-batch.
"""

# Tensor names end in their shape.
# ruff: noqa: N806

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from core_hpc.config import LoraSection, UpdateSection
from core_hpc.errors import NonFiniteError, StoreError
from core_hpc.schema import STEPS
from core_hpc.training.batching import MicroBatch, Row, StepPlan, collate, plan_steps
from core_hpc.training.losses import TokenBatch, importance_weights, objective
from core_hpc.training.metrics import StepTotals
from core_hpc.training.policy import Dtype, Policy, load_base_model
from core_hpc.training.schedule import learning_rate
from core_hpc.training.state_io import TrainingState, read_state, write_state
from core_hpc.training.zero2 import Zero2, all_true, rank_and_size, start_process_group, stop_process_group

STEP_COLUMNS = {name: dtype for name, dtype in STEPS.schema.items() if name not in ("run_id", "iteration", "model")}


@dataclass(frozen=True, kw_only=True)
class UpdateTask:
    """Everything that one update computes from, the same on every rank."""

    rows: Sequence[Row]
    settings: UpdateSection
    temperature: float
    total_steps: int
    """Optimizer steps of this model in the whole run: horizon of warm-up and cosine."""
    shuffle_seed: int
    lora_seed: int
    previous: Path | None
    """Published adapter folder to continue from; None: a fresh adapter and optimizer."""
    out_folder: Path
    on_progress: Callable[[int, int], None] | None = None
    """Called with (optimizer steps done, optimizer steps of the task)."""


@dataclass
class UpdateTimings:
    """Seconds are those of this rank; tokens are of all ranks, one pass over the data."""

    prepare_s: float = 0.0
    old_s: float = 0.0
    reference_s: float = 0.0
    train_s: float = 0.0
    save_s: float = 0.0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_completion_tokens: int = 0
    num_unshared_tokens: int = 0
    """What num_tokens would be if no prompt were shared."""
    peak_rss_mb: float = 0.0


@dataclass(frozen=True)
class UpdateResult:
    """`steps` has the columns of schema.STEPS without run_id, iteration and model."""

    steps: pl.DataFrame
    steps_done: int
    num_ranks: int
    timings: UpdateTimings


@dataclass
class _Task:
    """What an update holds while it runs; log-probabilities are keyed by (step, micro-batch of this rank)."""

    spec: UpdateTask
    plans: list[StepPlan]
    zero: Zero2
    first_step: int
    old: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    reference: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class Trainer:
    """One rank of the update of one model."""

    def __init__(
        self, model_folder: Path, lora: LoraSection, *, model_name: str, dtype: Dtype = "auto", gradient_checkpointing: bool = False,
        trust_remote_code: bool = False, allow_pickle: bool = False,
    ) -> None:  # fmt: skip
        """Join the process group and load the base model. `model_name` is the reference written into adapters."""
        self.device = start_process_group()
        self.rank, self.num_ranks = rank_and_size()
        self.lora = lora
        self.model_name = model_name
        base = load_base_model(
            model_folder, dtype=dtype, device=self.device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
        self.policy = Policy(base, gradient_checkpointing=gradient_checkpointing)

    def close(self) -> None:
        """Leave the process group."""
        stop_process_group()

    def update(self, spec: UpdateTask) -> UpdateResult:
        """Run all optimizer steps of the task and write the new adapter.

        Raises:
            InputError: rows, LoRA targets or environment are wrong.
            StoreError: the previous adapter folder is incomplete or of another model.
            NonFiniteError: a loss or gradient is NaN or infinite; raised on every rank, and nothing was written.
        """
        timings = UpdateTimings()
        with _Clock(timings, "prepare_s"):
            plans = self._plan(spec, timings)
            parameters, state = self._reset_adapter(spec)
            zero = Zero2(parameters, spec.settings, state)
        try:
            task = _Task(spec, plans, zero, state.steps_done if state else 0)
            self._measure_before(task, timings)
            with _Clock(timings, "train_s"):
                records = [self._step(task, index) for index in range(len(plans))]
            steps_done = task.first_step + len(plans)
            with _Clock(timings, "save_s"):
                self._write(task, steps_done)
        finally:
            zero.close()
        timings.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return UpdateResult(pl.DataFrame(records, schema=STEP_COLUMNS), steps_done, self.num_ranks, timings)

    def _plan(self, spec: UpdateTask, timings: UpdateTimings) -> list[StepPlan]:
        plans = plan_steps(
            spec.rows, problems_per_step=spec.settings.problems_per_step, seed=spec.shuffle_seed, num_ranks=self.num_ranks,
            max_tokens=spec.settings.micro_batch_tokens, max_shared_length=self.policy.max_shared_length,
        )  # fmt: skip
        timings.num_tokens = sum(p.num_tokens for p in plans)
        timings.num_padded_tokens = sum(p.num_padded_tokens for p in plans)
        timings.num_completion_tokens = sum(p.num_completion_tokens for p in plans)
        timings.num_unshared_tokens = sum(len(r.prompt_token_ids) + len(r.completion_token_ids) for r in spec.rows)
        return plans

    def _reset_adapter(self, spec: UpdateTask) -> tuple[dict[str, torch.nn.Parameter], TrainingState | None]:
        """A fresh adapter with the weights of the previous published state, if there is one."""
        parameters = self.policy.attach(self.lora, seed=spec.lora_seed, name=self.model_name)
        if spec.previous is None:
            return parameters, None
        state = read_state(spec.previous, {name: p.shape for name, p in parameters.items()})
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state.parts["weight"][name])
        return parameters, state

    def _measure_before(self, task: _Task, timings: UpdateTimings) -> None:
        """Old and reference log-probabilities, with the weights before any update of this task.

        Those of the first step come from its own forward pass, which sees the same weights. A fresh adapter is the
        reference (B = 0), so then one pass serves both.
        """
        with _Clock(timings, "old_s"):
            task.old = self._log_probs(task, range(1, len(task.plans)), reference=False)
        if task.spec.settings.kl_weight > 0 and task.spec.previous is not None:
            with _Clock(timings, "reference_s"):
                task.reference = self._log_probs(task, range(len(task.plans)), reference=True)

    @torch.no_grad()
    def _log_probs(self, task: _Task, steps: range, *, reference: bool) -> dict[tuple[int, int], Tensor]:
        found = {}
        for step in steps:
            for number, batch in enumerate(self._batches(task, step)):
                found[step, number] = self.policy.log_probs(batch, temperature=task.spec.temperature, reference=reference)[0]
        return found

    def _batches(self, task: _Task, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of a step."""
        for sequences in task.plans[step].micro_batches[self.rank]:
            yield collate(task.spec.rows, sequences, dtype=self.policy.dtype).to(self.device)

    def _step(self, task: _Task, index: int) -> dict[str, float | int]:
        """One optimizer step; returns its row of metrics, global over ranks."""
        spec, plan = task.spec, task.plans[index]
        global_step = task.first_step + index
        rate = learning_rate(spec.settings, steps_done=global_step, total_steps=spec.total_steps)
        totals = StepTotals(plan, spec.rows, self.device)
        task.zero.backward(self._losses(task, index, totals))
        totals.reduce()
        where = f"update: optimizer step {index + 1} of {len(task.plans)} (global step {global_step + 1})"
        advice = "nothing was written and the last good adapter is kept; lower update.learning_rate or look at these problems' rows"
        if bad := totals.bad_problems():
            raise NonFiniteError(f"{where}: the loss is not finite for problems {', '.join(bad)}; {advice}")
        norm = task.zero.apply(rate)
        if norm is None:
            raise NonFiniteError(f"{where}: gradients are not finite; its problems are {', '.join(plan.problem_ids)}; {advice}")
        if spec.on_progress is not None:
            spec.on_progress(index + 1, len(task.plans))
        values = totals.means(with_kl=spec.settings.kl_weight > 0)
        return {**values, "step": index + 1, "global_step": global_step + 1, "grad_norm": norm, "learning_rate": rate}

    def _losses(self, task: _Task, index: int, totals: StepTotals) -> Iterator[Tensor]:
        """Loss of each of this rank's micro-batches; the graph of one is freed before the next is built."""
        settings = task.spec.settings
        for number, batch in enumerate(self._batches(task, index)):
            current_M, entropy_M = self.policy.log_probs(batch, temperature=task.spec.temperature)
            old_M = task.old.get((index, number), current_M.detach())
            reference_M = None
            if settings.kl_weight > 0:
                reference_M = task.reference.get((index, number), old_M)
            tokens = TokenBatch(
                old_M=old_M, reference_M=reference_M, importance_M=importance_weights(old_M, batch.behaviour_M, settings.importance),
                row_M=batch.row_M, lengths_N=batch.lengths_N, advantage_N=batch.advantage_N, weight_N=batch.weight_N,
            )  # fmt: skip
            terms = objective(current_M, tokens, settings, normaliser=len(task.plans[index].rows))
            totals.add(batch, tokens, terms, entropy_M)
            yield terms.loss

    def _write(self, task: _Task, steps_done: int) -> None:
        """Rank 0 writes. No rank returns before the files are complete, and all fail where writing fails."""
        state = task.zero.state(steps_done)
        written = False
        try:
            if self.rank == 0:
                assert self.policy.config is not None
                write_state(task.spec.out_folder, state, self.policy.config, self._details(task.spec, steps_done))
            written = True
        finally:
            agreed = all_true(written, self.device)
        if not agreed:
            raise StoreError(f"{task.spec.out_folder}: rank 0 could not write the adapter; its log says why")

    def _details(self, spec: UpdateTask, steps_done: int) -> dict[str, Any]:
        """What trainer_state.json says besides the number of steps; nothing of it is needed to resume."""
        return {
            "total_steps": spec.total_steps,
            "next_learning_rate": learning_rate(spec.settings, steps_done=steps_done, total_steps=spec.total_steps),
            "settings": spec.settings.model_dump(mode="json"),
            "lora": self.lora.model_dump(mode="json"),
            "seeds": {"lora": spec.lora_seed, "shuffle": spec.shuffle_seed},
            "num_ranks": self.num_ranks,
        }


class _Clock:
    """Adds the seconds of a block to one field of the timings."""

    def __init__(self, timings: UpdateTimings, name: str) -> None:
        self.timings, self.name = timings, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        setattr(self.timings, self.name, getattr(self.timings, self.name) + time.perf_counter() - self.start)
