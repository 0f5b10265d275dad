"""Training: one update of one model under DeepSpeed ZeRO-2 (METHOD.md section 5).

Data: `batching` turns rows into optimizer steps and micro-batches, `prefix_tree` and `micro_batch`
make the tensors of one forward pass. Arithmetic: `losses`, `token_log_probs`, `learning_rate`,
`metrics`. The model, where each module imports only those before it:

    forward        one forward pass of a transformers model
    probes         which faster ways of computing give the results of the plain one
    sharding       base weights divided among the ranks
    policy         the model of which something is trained; `lora` and `full` are the two kinds
    memory         how many layers compute their activations again, and what then fits
    compilation    compiled layers, and their comparison with the plain ones

The task: `build` (the model from the settings), `zero2` (the optimizer over ranks), `passes`,
`interruption`, `state_io`, and `trainer`,
which runs one update task. This package knows nothing of phases, SLURM or publishing. This file
imports no heavy package: import the modules themselves.
"""
