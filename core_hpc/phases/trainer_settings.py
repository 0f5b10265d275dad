"""Trainer settings that updates and warm-ups take from the configuration in the same way.

In: the task. Out: the `TrainerSettings` of its model. What differs between the two phases (the
weights, the adapter, the context) is an argument. The trainers themselves are in `training/`.
"""

from __future__ import annotations

from pathlib import Path

from core_hpc.config.model import LoraSection
from core_hpc.phases.context import TaskContext
from core_hpc.training.task import TrainerSettings


def trainer_settings(
    context: TaskContext,
    *,
    folder: Path,
    name: str,
    lora: LoraSection | None,
    context_tokens: int,
    four_bit: bool = False,
    shard_base: bool = False,
    with_reference: bool = False,
) -> TrainerSettings:
    """How the trainer of the task's model is built. The arguments are those of `TrainerSettings`."""
    model, update = context.model, context.run.config.update
    return TrainerSettings(
        model_folder=folder,
        model_name=name,
        lora=lora,
        dtype=model.dtype,
        context_tokens=context_tokens,
        four_bit=four_bit,
        shard_base=shard_base,
        with_reference=with_reference,
        gradient_checkpointing=update.gradient_checkpointing,
        compile_layers=update.compile,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
    )
