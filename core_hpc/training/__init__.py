"""Training: one update of one model (GRPO with a LoRA adapter under DeepSpeed ZeRO-2; METHOD section 5).

losses (pure) -> batching (rows to padded batches) -> policy (model with adapter) -> zero2 (optimizer over ranks)
-> trainer (one update task). This package knows nothing of phases, Slurm or publishing, and this file loads no
heavy package: import the modules themselves.
"""
