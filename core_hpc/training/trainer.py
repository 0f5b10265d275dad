"""One update task of one model, in one of its rank processes (METHOD.md section 5).

In: the model's completions of this iteration and its previously published weights (an adapter, or
the whole model). Out: a folder with the new weights (rank 0) and metrics of every optimizer step
(all ranks).

A `Trainer` keeps the base model between tasks. Trained weights and optimizer always start from the
published state, so a warm process and a restarted one compute the same, up to the rounding of layers
that a warm process on a GPU has compiled. A task that was interrupted between two steps continues
from its checkpoint, and its result is that of an uninterrupted task. The only random draws are the
initial adapter and the order of problems, both from seeds in the task. This module publishes nothing
and knows no paths except the folders that it is given.

Shapes: N completions and M completion tokens of a micro-batch.
"""

# Tensor names end in their shape.
# ruff: noqa: N806

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from core_hpc.common.errors import NonFiniteError, StoppedError
from core_hpc.store.schema import STEPS
from core_hpc.training.batching import StepPlan, idle_batches, plan_steps
from core_hpc.training.build import build_policy
from core_hpc.training.compilation import compile_policy, pays_to_compile
from core_hpc.training.guard import check_mismatch
from core_hpc.training.interruption import Boundaries, Checkpoint
from core_hpc.training.learning_rate import learning_rate
from core_hpc.training.losses import StepSize, TokenBatch, importance_weights, objective
from core_hpc.training.memory import ActivationMemory
from core_hpc.training.metrics import StepTotals
from core_hpc.training.micro_batch import MicroBatch
from core_hpc.training.passes import LogProbs, Passes, micro_batches
from core_hpc.training.state_io import TrainingState, read_adapter, read_state, write_position
from core_hpc.training.task import TrainerSettings, UpdateResult, UpdateTask
from core_hpc.training.timings import UpdateTimings
from core_hpc.training.transfer import prompt_weights
from core_hpc.training.zero2 import Zero2, all_true, broadcast, from_rank_zero, rank_and_size, start_process_group

STEP_COLUMNS = {name: dtype for name, dtype in STEPS.schema.items() if name not in ("run_id", "iteration", "model")}


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """What an update holds while it runs."""

    spec: UpdateTask
    plans: list[StepPlan]
    zero: Zero2
    first_step: int
    """Optimizer steps of the model before this task."""
    old: LogProbs
    reference: LogProbs | None
    """None: the reference policy is that of the weights before the task."""
    records: list[dict[str, Any]]
    """Metrics of the steps done so far, including those before an interruption."""

    @property
    def steps_done(self) -> int:
        """Optimizer steps of the model so far."""
        return self.first_step + len(self.records)


class Trainer:
    """One rank of the update of one model."""

    def __init__(self, settings: TrainerSettings) -> None:
        """Join the process group and load the base model."""
        self.settings = settings
        self.device = start_process_group()
        self.rank, self.num_ranks = rank_and_size()
        self.policy = build_policy(settings, self.device)
        self.memory = ActivationMemory(self.policy, checkpointing=settings.gradient_checkpointing)
        self._tried_to_compile = False

    def close(self) -> None:
        """Release the model.

        The process group stays for another trainer, since DeepSpeed keeps the first one of a
        process.
        """
        del self.policy, self.memory
        gc.collect()

    def from_rank_zero(self, value: int) -> int:
        """The value that rank 0 passes, on every rank. Collective."""
        return from_rank_zero(value, self.device)

    def token_log_probs(self, spec: UpdateTask) -> list[list[float]]:
        """Log-probability of each completion token under the weights before the task, [rows][tokens].

        Collective. Every rank computes all rows and returns the values of rank 0. The layers are not
        compiled, even if an earlier task of the process has compiled them: the rows of an update
        depend on these values, and must be the same in a process that begins with this task.
        """
        self._reset(spec)
        passes = Passes(self.policy, spec, (), rank=self.rank, num_ranks=self.num_ranks)
        with self.policy.uncompiled():
            found = passes.of_rows(range(len(spec.rows)))
        lengths = [len(found[i]) for i in range(len(spec.rows))]
        values = broadcast(torch.cat([found[i].double() for i in range(len(spec.rows))]))
        return [part.tolist() for part in values.cpu().split(lengths)]

    def mean_log_probs(self, spec: UpdateTask) -> list[float]:
        """The mean of `token_log_probs` over the tokens of each row, [rows]. Collective."""
        return [sum(values) / len(values) for values in self.token_log_probs(spec)]

    def update(self, spec: UpdateTask, out_folder: Path | None) -> UpdateResult:
        """Run all optimizer steps of the task, or those after its checkpoint.

        Args:
            out_folder: rank 0 writes the new weights there; the other ranks need none.

        Raises:
            InputError: rows, LoRA targets or environment are wrong.
            StoreError: the previous folder is incomplete or of another model.
            NonFiniteError: a loss or gradient is NaN or infinite. It is raised on every rank, and
                nothing is written.
            StoppedError: the task was asked to stop. It is raised on every rank after the position
                is stored.
        """
        timings = UpdateTimings()
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        task = self._prepare(spec, timings)
        try:
            with timings.clock("prepare_s"):
                self._make_room(task.plans, task.zero.bytes_to_come)
            with timings.clock("train_s"):
                self._train(task)
            with timings.clock("save_s"):
                self._write(task, out_folder)
        finally:
            task.zero.close()
            if on_gpu:
                torch.cuda.empty_cache()  # an engine may use this GPU next
        timings.num_checkpointed = self.memory.num_checkpointed
        timings.measure_memory(self.device)
        steps = pl.DataFrame(task.records, schema=STEP_COLUMNS)
        return UpdateResult(steps, task.steps_done, self.num_ranks, timings)

    def _prepare(self, spec: UpdateTask, timings: UpdateTimings) -> RunningTask:
        """Everything before the first optimizer step: plan, weights, passes, optimizer."""
        with timings.clock("prepare_s"):
            plans = self._plan(spec, timings)
            parameters, state = self._reset(spec)
        with timings.clock("compile_s"):
            if not self._tried_to_compile and self._wants_to_compile(spec, plans):
                self._tried_to_compile = True
                compile_policy(self.policy, self.memory)
        first_step = state.steps_done if state else 0
        old, reference = self._passes(spec, plans, timings)
        with timings.clock("prepare_s"):
            if spec.resume is not None:
                state = self._load_weights(spec.resume.folder, parameters)
                assert state.steps_done == first_step + spec.resume.steps.height
            zero = Zero2(parameters, spec.settings, state)
        return RunningTask(
            spec=spec,
            plans=plans,
            zero=zero,
            first_step=first_step,
            old=old,
            reference=reference,
            records=spec.resume.steps.to_dicts() if spec.resume else [],
        )

    def _passes(
        self, spec: UpdateTask, plans: list[StepPlan], timings: UpdateTimings
    ) -> tuple[LogProbs, LogProbs | None]:
        """Log-probabilities under the weights before the task, and under the reference policy."""
        passes = Passes(self.policy, spec, plans, rank=self.rank, num_ranks=self.num_ranks)
        with timings.clock("old_s"):
            old = passes.old()
        with timings.clock("reference_s"):
            reference = passes.reference()
        timings.num_pass_tokens = passes.num_tokens
        return old, reference

    def _plan(self, spec: UpdateTask, timings: UpdateTimings) -> list[StepPlan]:
        plans = plan_steps(
            spec.rows,
            problems_per_step=spec.settings.problems_per_step,
            seed=spec.shuffle_seed,
            num_ranks=self.num_ranks,
            max_tokens=spec.settings.micro_batch_tokens,
            layout=self.policy.layout,
            with_zero_signal=spec.trains_zero_signal,
        )
        timings.count_tokens(plans[spec.resume.steps.height if spec.resume else 0 :], spec.rows)
        return plans

    def _reset(self, spec: UpdateTask) -> tuple[dict[str, nn.Parameter], TrainingState | None]:
        """Trainable parameters with the weights before the task, and the optimizer of the previous update."""
        parameters = self.policy.start(seed=spec.lora_seed, from_base=spec.previous is None)
        if spec.previous is not None:
            return parameters, self._load_weights(spec.previous, parameters)
        if spec.adapter is not None:
            self._give(parameters, read_adapter(spec.adapter, {name: p.shape for name, p in parameters.items()}))
        return parameters, None

    def _load_weights(self, folder: Path, parameters: dict[str, nn.Parameter]) -> TrainingState:
        """Give the parameters the weights of a stored state; returns that state."""
        state = read_state(folder, {name: p.shape for name, p in parameters.items()})
        self._give(parameters, state.parts["weight"])
        return state

    def _give(self, parameters: dict[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        self.policy.synchronise()

    def _wants_to_compile(self, spec: UpdateTask, plans: Sequence[StepPlan]) -> bool:
        """Whether to compile.

        The whole task decides, even if a checkpoint has some of its steps, so that all attempts
        compute the same.
        """
        if self.settings.compile_layers is not None or self.policy.is_sharded:
            return bool(self.settings.compile_layers)
        num_tokens = spec.num_similar_tasks * sum(p.num_tokens for p in plans)
        return pays_to_compile(self.policy.num_weights, num_tokens)

    def _make_room(self, plans: Sequence[StepPlan], reserved: int) -> None:
        """Make room for the largest micro-batches of this rank, beside `reserved` bytes.

        Sharded weights: of all ranks, because making room is collective.
        """
        ranks = range(self.num_ranks) if self.policy.is_sharded else (self.rank,)
        mine = [batch for plan in plans for rank in ranks for batch in plan.micro_batches[rank]]
        if mine:
            num_tokens = max(batch.num_padded_tokens for batch in mine)
            self.memory.make_room(num_tokens, max(batch.num_keys for batch in mine), reserved=reserved)

    def _train(self, task: RunningTask) -> None:
        """Run the remaining steps; between two of them the task can stop, or save its position."""
        done, num_steps = len(task.records), len(task.plans)
        boundaries = Boundaries(
            task.spec.interruption, rank=self.rank, num_ranks=self.num_ranks, device=self.device, steps_saved=done
        )
        for index in range(done, num_steps):
            stop, save = boundaries.decide(index)
            # The ranks wait for rank 0 here, since DeepSpeed's own groups wait for ten minutes only.
            saved = not save or all_true(self._save(task), self.device)
            if stop:
                message = f"update: stopped on request after {index} of {num_steps} optimizer steps"
                if not saved:
                    message += "; its position could not be stored, see the log of rank 0"
                raise StoppedError(message)
            task.records.append(self._step(task, index))

    def _save(self, task: RunningTask) -> bool:
        """Gather the position, and store it on rank 0; returns False on rank 0 if that fails."""
        state = task.zero.state(task.steps_done, keep=self.rank == 0)
        if self.rank != 0:
            return True
        steps = pl.DataFrame(task.records, schema=STEP_COLUMNS)
        return task.spec.interruption.save(Checkpoint(state, steps, self._details(task.spec, state.steps_done)))

    def _step(self, task: RunningTask, index: int) -> dict[str, Any]:
        """One optimizer step; returns its row of metrics, global over ranks."""
        spec, plan = task.spec, task.plans[index]
        global_step = task.first_step + index
        rate = learning_rate(spec.settings, steps_done=global_step, total_steps=spec.total_steps)
        own_old = index == 0 or spec.settings.old_log_probs == "recompute"
        totals = StepTotals(plan, spec.rows, self.device, compares_engine=own_old)
        task.zero.backward(self._losses(task, index, totals))
        totals.reduce()
        where = f"update: optimizer step {index + 1} of {len(task.plans)} (global step {global_step + 1})"
        advice = (
            "nothing was written and the last good weights are kept; lower update.learning_rate, "
            "or look at the rows of these problems"
        )
        if spec.max_mismatch is not None and totals.compares_engine:
            differences = totals.differences(with_base=self._compares_base(spec, index))
            warning = check_mismatch(differences, spec.max_mismatch, where=where)
            if warning and self.rank == 0:
                print(f"warning: {warning}", flush=True)
        if bad := totals.bad_problems():
            raise NonFiniteError(f"{where}: the loss is not finite for problems {', '.join(bad)}; {advice}")
        norm = task.zero.apply(rate)
        if norm is None:
            problems = ", ".join(plan.problem_ids)
            raise NonFiniteError(f"{where}: gradients are not finite; its problems are {problems}; {advice}")
        self.policy.synchronise()
        if spec.on_progress is not None:
            spec.on_progress(index + 1, len(task.plans))
        values = totals.means(with_kl=spec.settings.kl_weight > 0)
        return {**values, "step": index + 1, "global_step": global_step + 1, "grad_norm": norm, "learning_rate": rate}

    def _losses(self, task: RunningTask, index: int, totals: StepTotals) -> Iterator[Tensor]:
        """Loss of each of this rank's micro-batches; only one graph exists at a time."""
        settings, plan = task.spec.settings, task.plans[index]
        step = StepSize(len(plan.rows), plan.num_completion_tokens, task.spec.max_new_tokens, index)
        for batch in micro_batches(task.spec.rows, plan.micro_batches[self.rank], self.policy.layout, self.device):
            current_M, entropy_M = self.policy.log_probs(batch, temperature=task.spec.temperature)
            old_M = _old_log_probs(task, batch) if index else current_M.detach()
            if settings.kl_weight == 0:
                reference_M = None
            elif task.reference is None:
                reference_M = old_M
            else:
                reference_M = torch.cat([task.reference[i] for i in batch.rows])
            importance_M = importance_weights(
                old_M, batch.behaviour_M, batch.row_M, batch.lengths_N, settings.importance
            ) * prompt_weights(old_M, batch.sampled_M)
            tokens = TokenBatch(
                old_M=old_M,
                reference_M=reference_M,
                importance_M=importance_M,
                row_M=batch.row_M,
                lengths_N=batch.lengths_N,
                advantage_N=batch.advantage_N,
                weight_N=batch.weight_N,
                rescue_N=batch.rescue_N,
                objective_N=batch.objective_N,
                peer_N=batch.peer_N,
                factor_M=batch.factor_M,
                teacher_M=batch.teacher_M,
            )
            terms = objective(current_M, tokens, settings, step)
            (slope_M,) = torch.autograd.grad(terms.loss, current_M, retain_graph=True)
            base_M = self._base_log_probs(task, index, batch) if reference_M is None else reference_M
            totals.add(batch, tokens, terms, entropy_M, base_M, slope_M=slope_M)
            yield terms.loss
        if self.policy.is_sharded:
            yield from self._idle_losses(task, index)

    def _idle_losses(self, task: RunningTask, index: int) -> Iterator[Tensor]:
        """Losses of 0, with the passes of a micro-batch, while other ranks have more micro-batches."""
        planned = idle_batches(task.plans[index].micro_batches, self.rank)
        for batch in micro_batches(task.spec.rows, planned, self.policy.layout, self.device):
            current_M, _ = self.policy.log_probs(batch, temperature=task.spec.temperature)
            self._base_log_probs(task, index, batch)
            yield (current_M * 0.0).sum()

    def _base_log_probs(self, task: RunningTask, index: int, batch: MicroBatch) -> Tensor | None:
        """Log-probabilities [M] under the base weights, if the guard needs them and no KL term has them.

        With sharded weights this is collective: every rank calls it for equally many micro-batches.
        """
        if task.spec.settings.kl_weight > 0 or not self._compares_base(task.spec, index):
            return None
        with torch.no_grad():
            base_M, _ = self.policy.log_probs(batch, temperature=task.spec.temperature, reference=True)
        return base_M

    def _compares_base(self, spec: UpdateTask, index: int) -> bool:
        """Whether the guard also compares the engine with the base weights: once per update of an adapter."""
        is_adapted = self.settings.lora is not None and not spec.begins_at_base
        return spec.max_mismatch is not None and is_adapted and index == 0

    def _write(self, task: RunningTask, out_folder: Path | None) -> None:
        """Let rank 0 write the new weights. Collective.

        No rank returns before the files are complete. If writing fails, all ranks fail, with the same
        error of the file system: whichever of them reports first, the reason is known.
        """
        state = task.zero.state(task.steps_done, keep=self.rank == 0)
        error = errno.EIO
        try:
            if self.rank == 0:
                assert out_folder is not None
                self._write_files(task, state, out_folder)
            error = 0
        except OSError as e:
            error = e.errno or errno.EIO
            raise
        finally:
            error = from_rank_zero(error, self.device)
        if error:
            raise OSError(error, os.strerror(error), "the new weights, which rank 0 writes (see its log)")

    def _write_files(self, task: RunningTask, state: TrainingState, folder: Path) -> None:
        """Write the weights and the optimizer."""
        self.policy.write(folder, state.parts["weight"])
        write_position(folder, state, self._details(task.spec, state.steps_done))

    def _details(self, spec: UpdateTask, steps_done: int) -> dict[str, Any]:
        """Further content of trainer_state.json, which a resumed update does not need."""
        lora = self.settings.lora
        return {
            "total_steps": spec.total_steps,
            "next_learning_rate": learning_rate(spec.settings, steps_done=steps_done, total_steps=spec.total_steps),
            "settings": spec.settings.model_dump(mode="json"),
            "lora": lora.model_dump(mode="json") if lora is not None else None,
            "seeds": {"lora": spec.lora_seed, "shuffle": spec.shuffle_seed},
            "num_ranks": self.num_ranks,
        }


def _old_log_probs(task: RunningTask, batch: MicroBatch) -> Tensor:
    """Log-probabilities [M] before the task: those of the passes, or else those of the engine."""
    of_engine = batch.behaviour_M.split(batch.lengths_N.tolist())
    return torch.cat([task.old.get(i, own) for i, own in zip(batch.rows, of_engine, strict=True)])
