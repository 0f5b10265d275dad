"""DeepSpeed ZeRO-2 over the trained parameters (METHOD.md section 5).

In: the losses of this rank. Out: one AdamW step, the same on every rank. The engine sees only the
trainable parameters and never the model, so building it costs no broadcast of base weights. It is
built again for every task, so a warm process and a restarted one start alike. Losses are local sums
over a global divisor, hence gradients are summed over ranks, not averaged. This module knows no
model and no loss.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_optimizer_state
from torch import Tensor, nn

from core_hpc.common.errors import InputError
from core_hpc.config.update import UpdateSection
from core_hpc.training.state_io import PARTS, TrainingState

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LONGEST_WAIT = timedelta(hours=4)
"""How long a rank waits for another one. Rank 0 alone writes and hashes weights and moments, which may be hundreds of
GiB. A rank that dies or fails is noticed earlier: all executors then end the whole group."""


def start_process_group() -> torch.device:
    """Join the process group of the environment, unless this is done: NCCL on a GPU, gloo on a CPU.

    Returns:
        The device of this rank.

    Raises:
        InputError: the environment variables of a rank are missing.
    """
    missing = [name for name in RANK_VARIABLES if name not in os.environ]
    if missing:
        raise InputError(
            f"update: environment variables {', '.join(missing)} are not set; start the ranks with core_hpc.launch"
        )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        # Otherwise DeepSpeed compiles a C++ communication library for a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False, timeout=LONGEST_WAIT
    )
    return device


def engine_config(settings: UpdateSection) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Its micro-batch and accumulation counters stay at 1, since `batching` makes the batches.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "gradient_allreduce_op": "sum",
        "zero_optimization": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True, "reduce_scatter": True},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


class Zero2:
    """One optimizer over the ranks, for one task. All methods are collective."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], settings: UpdateSection, state: TrainingState | None = None
    ) -> None:
        """Build the optimizer.

        Args:
            parameters: already have the weights to start from.
            state: of a previous task, whose moments are used.
        """
        self.parameters = parameters
        # An optimizer of torch: those of DeepSpeed are compiled at first use, which takes minutes.
        optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=settings.learning_rate,
            betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=nn.ParameterList(parameters.values()),
            model_parameters=list(parameters.values()),
            optimizer=optimizer,
            config=engine_config(settings),
        )
        if state is not None:
            self._load_moments(state)

    @property
    def bytes_to_come(self) -> int:
        """Memory of this rank that is not allocated yet, and in use while later micro-batches are computed.

        Gradients of all parameters stay whole until the micro-batches of a step are done. DeepSpeed
        makes the moments of a fresh optimizer in the first step.
        """
        partitions, state = self.optimizer.single_partition_of_fp32_groups, self.optimizer.optimizer.state
        gradients: int = sum(parameter.nbytes for parameter in self.parameters.values())
        moments: int = sum(2 * partition.nbytes for partition in partitions if partition not in state)
        return gradients + moments

    def backward(self, losses: Iterable[Tensor]) -> None:
        """Sum the gradients of this rank's losses (there may be none), then those of all ranks."""
        with self.engine.coalesce_grad_reduction():
            for loss in losses:
                self.engine.backward(loss, scale_wrt_gas=False)
            # Every rank needs a gradient of every parameter, although it may have no loss at all,
            # and a layer (an expert) may have seen no token. Otherwise the reductions of the ranks
            # do not match, and gloo aborts.
            nothing = torch.stack([(p * 0.0).sum() for p in self.parameters.values()]).sum()
            self.engine.backward(nothing, scale_wrt_gas=False)

    def apply(self, learning_rate: float) -> float | None:
        """Clip the gradients and step.

        Returns:
            The global gradient norm before clipping; None if it is not finite, and nothing changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else None

    def state(self, steps_done: int, *, keep: bool = True) -> TrainingState:
        """Float32 weights and moments of every parameter, gathered on every rank.

        Args:
            keep: False leaves the result of this rank empty.
        """
        self.optimizer._lazy_init_hp_params_optimizer_state()
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        for name, parameter in self.parameters.items():
            for part in PARTS:
                if part == "weight":
                    full = safe_get_full_fp32_param(parameter)
                else:
                    full = safe_get_full_optimizer_state(parameter, part)
                if keep:
                    parts[part][name] = full.detach().cpu().clone()
        return TrainingState(parts, steps_done)

    def close(self) -> None:
        """Detach DeepSpeed's hooks and buffers from the parameters."""
        self.engine.destroy()
        del self.engine, self.optimizer
        gc.collect()

    def _load_moments(self, state: TrainingState) -> None:
        """Fill the partitioned optimizer state; otherwise the first step starts with an empty one."""
        for partition in self.optimizer.single_partition_of_fp32_groups:
            self.optimizer.optimizer.state[partition] = {
                "step": torch.tensor(float(state.steps_done)),
                "exp_avg": torch.zeros_like(partition),
                "exp_avg_sq": torch.zeros_like(partition),
            }
        self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.parameters.items():
            for part in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(parameter, state.parts[part][name].to(parameter.device), part)


def reduce_metrics(sums: Tensor, maxima: Tensor) -> None:
    """Make both vectors global over ranks, in place. Collective."""
    dist.all_reduce(sums, op=dist.ReduceOp.SUM)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)


def all_true(value: bool, device: torch.device) -> bool:
    """Whether `value` is true on every rank. Collective."""
    flag = torch.tensor(int(value), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def any_true(values: Sequence[bool], device: torch.device) -> list[bool]:
    """For each of `values`, whether it is true on some rank. Collective."""
    flags = torch.tensor([int(v) for v in values], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def from_rank_zero(value: int, device: torch.device) -> int:
    """The value that rank 0 passes, on every rank. Collective."""
    number = torch.tensor(value, dtype=torch.int64, device=device)
    dist.broadcast(number, src=0)
    return int(number.item())


def broadcast(values: Tensor) -> Tensor:
    """The values of rank 0, on every rank. Collective."""
    dist.broadcast(values, src=0)
    return values


def rank_and_size() -> tuple[int, int]:
    """This rank, and the number of ranks."""
    return dist.get_rank(), dist.get_world_size()
