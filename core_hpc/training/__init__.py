"""Training: one update of one model (GRPO and its kin under DeepSpeed ZeRO-2; METHOD section 5).

losses (pure) -> batching (rows to padded batches) -> policy, full (model with an adapter, or with all its weights to
train) -> zero2 (optimizer over ranks) -> trainer (one update task). This package knows nothing of phases, Slurm or
publishing, and this file loads no heavy package: import the modules themselves.
"""
