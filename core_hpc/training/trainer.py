"""One update task of one model, in one of its rank processes (METHOD section 5).

In: the model's completions of this iteration and its previously published weights (an adapter, or the whole model). Out: a
folder with the new ones (rank 0) and metrics of every optimizer step (all ranks). A `Trainer` keeps the base model between
tasks; trained weights and optimizer always start from the published state, so a warm process and a restarted one do the same. A
task that was interrupted between two steps goes on at its checkpoint, and gives what it would have given.
The only random draws are the initial adapter and the order of problems, both from seeds in the task.
This module publishes nothing and knows no paths but the folders it is given.

Shapes: N completions and M completion tokens of a micro-batch.
"""

# Tensor names end in their shape.
# ruff: noqa: N806

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from core_hpc.common.errors import NonFiniteError, StoppedError, StoreError
from core_hpc.config.run import LoraSection
from core_hpc.store.schema import STEPS
from core_hpc.training.batching import StepPlan, plan_steps
from core_hpc.training.device import COMPILE_FLOP, FLOP_PER_WEIGHT
from core_hpc.training.full import FullPolicy
from core_hpc.training.interruption import Boundaries, Checkpoint
from core_hpc.training.learning_rate import learning_rate
from core_hpc.training.lora import LoraPolicy
from core_hpc.training.losses import StepSize, TokenBatch, importance_weights, objective
from core_hpc.training.metrics import StepTotals
from core_hpc.training.passes import LogProbs, Passes, micro_batches
from core_hpc.training.policy import Dtype, Policy, load_base_model
from core_hpc.training.state_io import TrainingState, read_state, write_position
from core_hpc.training.task import UpdateResult, UpdateTask
from core_hpc.training.timings import UpdateTimings
from core_hpc.training.zero2 import Zero2, all_true, from_rank_zero, rank_and_size, start_process_group

STEP_COLUMNS = {name: dtype for name, dtype in STEPS.schema.items() if name not in ("run_id", "iteration", "model")}


@dataclass
class _Task:
    """What an update holds while it runs."""

    spec: UpdateTask
    plans: list[StepPlan]
    zero: Zero2
    first_step: int
    """Optimizer steps of the model before this task."""
    old: LogProbs
    reference: LogProbs | None
    """None: that of the weights before the task."""
    records: list[dict[str, Any]]
    """Metrics of the steps done so far, those before an interruption included."""


class Trainer:
    """One rank of the update of one model."""

    def __init__(
        self,
        model_folder: Path,
        lora: LoraSection | None,
        *,
        model_name: str,
        dtype: Dtype = "auto",
        four_bit: bool = False,
        with_reference: bool = True,
        gradient_checkpointing: bool | None = None,
        compile_layers: bool | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        """Join the process group and load the base model.

        Args:
            lora: the adapter to train; None: every weight is trained.
            model_name: the reference written into adapters.
            four_bit: base weights of 4 bits under the adapter.
            with_reference: some task has a KL term. An adapter can be disabled for it; else the base weights are kept beside.
            gradient_checkpointing: of all layers or none; None: of as many as memory demands, on a GPU.
            compile_layers: on a GPU; None: where tasks are long enough for it to pay.
        """
        self.compile_layers = compile_layers
        self.device = start_process_group()
        self.rank, self.num_ranks = rank_and_size()
        self.lora = lora
        load = partial(
            load_base_model,
            model_folder,
            dtype=dtype,
            device=self.device,
            four_bit=four_bit,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        self.policy: Policy
        if lora is None:
            self.policy = FullPolicy(
                load, model_folder, with_reference=with_reference, gradient_checkpointing=gradient_checkpointing
            )
        else:
            self.policy = LoraPolicy(load(), lora, name=model_name, gradient_checkpointing=gradient_checkpointing)

    def close(self) -> None:
        """Release the model. The process group stays, for another trainer: DeepSpeed holds on to the first one of a process."""
        del self.policy
        gc.collect()

    def from_rank_zero(self, value: int) -> int:
        """The value that rank 0 brings, on every rank. Collective."""
        return from_rank_zero(value, self.device)

    def update(self, spec: UpdateTask, out_folder: Path | None) -> UpdateResult:
        """Run all optimizer steps of the task, or those after its checkpoint; rank 0 writes the new weights to `out_folder`.

        Raises:
            InputError: rows, LoRA targets or environment are wrong.
            StoreError: the previous folder is incomplete or of another model.
            NonFiniteError: a loss or gradient is NaN or infinite; raised on every rank, and nothing was written.
            StoppedError: told to stop; raised on every rank once the position is stored.
        """
        timings = UpdateTimings()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with timings.clock("prepare_s"):
            plans = self._plan(spec, timings)
            parameters, state = self._reset(spec)
        with timings.clock("compile_s"):
            if self._pays_to_compile(spec, plans):
                self.policy.compile()
        first_step = state.steps_done if state else 0
        passes = Passes(self.policy, spec, plans, rank=self.rank, num_ranks=self.num_ranks)
        with timings.clock("old_s"):
            old = passes.old()
        with timings.clock("reference_s"):
            reference = passes.reference()
        timings.num_pass_tokens = passes.num_tokens
        with timings.clock("prepare_s"):
            if spec.resume is not None:
                state = self._load_weights(spec.resume.folder, parameters)
                assert state.steps_done == first_step + spec.resume.steps.height
            zero = Zero2(parameters, spec.settings, state)
        try:
            task = _Task(
                spec, plans, zero, first_step, old, reference, spec.resume.steps.to_dicts() if spec.resume else []
            )
            with timings.clock("prepare_s"):
                self._fit(plans)
            with timings.clock("train_s"):
                self._train(task)
            steps_done = first_step + len(plans)
            with timings.clock("save_s"):
                self._write(task, steps_done, out_folder)
        finally:
            zero.close()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # an engine may have its turn on this GPU
        timings.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        timings.num_checkpointed = self.policy.num_checkpointed
        if self.device.type == "cuda":
            timings.peak_gpu_mb = torch.cuda.max_memory_allocated(self.device) / 2**20
        return UpdateResult(pl.DataFrame(task.records, schema=STEP_COLUMNS), steps_done, self.num_ranks, timings)

    def _plan(self, spec: UpdateTask, timings: UpdateTimings) -> list[StepPlan]:
        plans = plan_steps(
            spec.rows,
            problems_per_step=spec.settings.problems_per_step,
            seed=spec.shuffle_seed,
            num_ranks=self.num_ranks,
            max_tokens=spec.settings.micro_batch_tokens,
            layout=self.policy.layout,
            with_kl=spec.settings.kl_weight > 0,
        )
        todo = plans[spec.resume.steps.height if spec.resume else 0 :]
        rows = [spec.rows[i] for p in todo for i in p.rows_run]
        timings.num_tokens = sum(p.num_tokens for p in todo)
        timings.num_padded_tokens = sum(p.num_padded_tokens for p in todo)
        timings.num_completion_tokens = sum(len(r.completion_token_ids) for r in rows)
        timings.num_unshared_tokens = sum(len(r.prompt_token_ids) + len(r.completion_token_ids) for r in rows)
        return plans

    def _reset(self, spec: UpdateTask) -> tuple[dict[str, torch.nn.Parameter], TrainingState | None]:
        """Trainable parameters as they are before the first task, or with the weights of the previous published state."""
        parameters = self.policy.start(seed=spec.lora_seed, from_base=spec.previous is None)
        return parameters, None if spec.previous is None else self._load_weights(spec.previous, parameters)

    def _load_weights(self, folder: Path, parameters: dict[str, torch.nn.Parameter]) -> TrainingState:
        """Give the parameters the weights of a stored state; returns that state."""
        state = read_state(folder, {name: p.shape for name, p in parameters.items()})
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state.parts["weight"][name])
        self.policy.synchronise()
        return state

    def _pays_to_compile(self, spec: UpdateTask, plans: Sequence[StepPlan]) -> bool:
        """By the whole task, also where a checkpoint has a part of it, so that all attempts compute alike."""
        if self.compile_layers is not None:
            return self.compile_layers
        num_tokens = spec.num_alike * sum(p.num_tokens for p in plans)
        return FLOP_PER_WEIGHT * self.policy.num_weights * num_tokens > COMPILE_FLOP

    def _fit(self, plans: Sequence[StepPlan]) -> None:
        """Let the policy make room for the largest micro-batches."""
        mine = [batch for plan in plans for batch in plan.micro_batches[self.rank]]
        if mine:
            self.policy.fit(max(batch.num_padded_tokens for batch in mine), max(batch.num_keys for batch in mine))

    def _train(self, task: _Task) -> None:
        """The steps that are left; between two of them the task may be told to stop, or save its position."""
        done, num_steps = len(task.records), len(task.plans)
        boundaries = Boundaries(
            task.spec.interruption, rank=self.rank, num_ranks=self.num_ranks, device=self.device, steps_saved=done
        )
        for index in range(done, num_steps):
            stop, save = boundaries.decide(index)
            saved = not save or self._save(task)
            if stop:
                kept = (
                    ""
                    if all_true(saved, self.device)
                    else "; its position could not be stored, the log of rank 0 says why"
                )
                raise StoppedError(f"update: told to stop after {index} of {num_steps} optimizer steps{kept}")
            task.records.append(self._step(task, index))

    def _save(self, task: _Task) -> bool:
        """Gather the position and have rank 0 store it; returns whether this rank knows of no failure."""
        state = task.zero.state(task.first_step + len(task.records), keep=self.rank == 0)
        if self.rank != 0:
            return True
        steps = pl.DataFrame(task.records, schema=STEP_COLUMNS)
        return task.spec.interruption.save(Checkpoint(state, steps, self._details(task.spec, state.steps_done)))

    def _step(self, task: _Task, index: int) -> dict[str, float | int]:
        """One optimizer step; returns its row of metrics, global over ranks."""
        spec, plan = task.spec, task.plans[index]
        global_step = task.first_step + index
        rate = learning_rate(spec.settings, steps_done=global_step, total_steps=spec.total_steps)
        totals = StepTotals(plan, spec.rows, self.device)
        task.zero.backward(self._losses(task, index, totals))
        totals.reduce()
        where = f"update: optimizer step {index + 1} of {len(task.plans)} (global step {global_step + 1})"
        advice = "nothing was written and the last good weights are kept; lower update.learning_rate or look at these problems' rows"
        if bad := totals.bad_problems():
            raise NonFiniteError(f"{where}: the loss is not finite for problems {', '.join(bad)}; {advice}")
        norm = task.zero.apply(rate)
        if norm is None:
            raise NonFiniteError(
                f"{where}: gradients are not finite; its problems are {', '.join(plan.problem_ids)}; {advice}"
            )
        self.policy.synchronise()
        if spec.on_progress is not None:
            spec.on_progress(index + 1, len(task.plans))
        values = totals.means(with_kl=spec.settings.kl_weight > 0)
        return {**values, "step": index + 1, "global_step": global_step + 1, "grad_norm": norm, "learning_rate": rate}

    def _losses(self, task: _Task, index: int, totals: StepTotals) -> Iterator[Tensor]:
        """Loss of each of this rank's micro-batches; the graph of one is freed before the next is built."""
        settings, plan = task.spec.settings, task.plans[index]
        step = StepSize(len(plan.rows), plan.num_completion_tokens, task.spec.max_new_tokens)
        for batch in micro_batches(task.spec.rows, plan.micro_batches[self.rank], self.policy.layout, self.device):
            current_M, entropy_M = self.policy.log_probs(batch, temperature=task.spec.temperature)
            old_M = torch.cat([task.old[i] for i in batch.rows]) if index else current_M.detach()
            reference_M = None
            if settings.kl_weight > 0:
                reference_M = (
                    torch.cat([task.reference[i] for i in batch.rows]) if task.reference is not None else old_M
                )
            importance_M = importance_weights(
                old_M, batch.behaviour_M, batch.row_M, batch.lengths_N, settings.importance
            )
            tokens = TokenBatch(
                old_M=old_M,
                reference_M=reference_M,
                importance_M=importance_M,
                row_M=batch.row_M,
                lengths_N=batch.lengths_N,
                advantage_N=batch.advantage_N,
                weight_N=batch.weight_N,
                rescue_N=batch.rescue_N,
            )
            terms = objective(current_M, tokens, settings, step)
            totals.add(batch, tokens, terms, entropy_M)
            yield terms.loss

    def _write(self, task: _Task, steps_done: int, out_folder: Path | None) -> None:
        """Rank 0 writes. No rank returns before the files are complete, and all fail where writing fails."""
        state = task.zero.state(steps_done, keep=self.rank == 0)
        written = False
        try:
            if self.rank == 0:
                assert out_folder is not None
                self.policy.write(out_folder, state.parts["weight"])
                write_position(out_folder, state, self._details(task.spec, steps_done))
            written = True
        finally:
            agreed = all_true(written, self.device)
        if not agreed:
            raise StoreError("update: rank 0 could not write the new weights; its log says why")

    def _details(self, spec: UpdateTask, steps_done: int) -> dict[str, Any]:
        """What trainer_state.json says besides the number of steps; nothing of it is needed to resume."""
        return {
            "total_steps": spec.total_steps,
            "next_learning_rate": learning_rate(spec.settings, steps_done=steps_done, total_steps=spec.total_steps),
            "settings": spec.settings.model_dump(mode="json"),
            "lora": self.lora.model_dump(mode="json") if self.lora is not None else None,
            "seeds": {"lora": spec.lora_seed, "shuffle": spec.shuffle_seed},
            "num_ranks": self.num_ranks,
        }
