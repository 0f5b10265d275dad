# shellcheck shell=bash
# Caches of compilers and kernels on the node's own disk. To be sourced in a job before Python starts; in a profile:
#
#     setup: ["source slurm/setup/node_local.sh"]        (the path as seen from the folder where the job is submitted)
#
# These caches are many small files, written by all ranks at once: they do not belong on a network file system. Each job
# has a folder of its own, removed when its script ends; what remains after a power cut, and on the further nodes of a
# cancelled job, is the node's own cleaning to remove. XDG_CACHE_HOME and HF_HOME are left alone: the model weights lie
# there, and are read by all nodes. This file sets the script's EXIT trap.

CORE_HPC_NODE_LOCAL=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/core_hpc-${SLURM_JOB_ID:-$$}-XXXXXX") || exit
export CORE_HPC_NODE_LOCAL
export TRITON_CACHE_DIR=$CORE_HPC_NODE_LOCAL/triton
export TORCHINDUCTOR_CACHE_DIR=$CORE_HPC_NODE_LOCAL/inductor
export TORCH_EXTENSIONS_DIR=$CORE_HPC_NODE_LOCAL/torch_extensions # kernels that DeepSpeed builds
export VLLM_CACHE_ROOT=$CORE_HPC_NODE_LOCAL/vllm
export FLASHINFER_WORKSPACE_BASE=$CORE_HPC_NODE_LOCAL/flashinfer
export CUDA_CACHE_PATH=$CORE_HPC_NODE_LOCAL/cuda

core_hpc_remove_node_local() {
    if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then # the other nodes made the folder under the same name
        timeout 30 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$CORE_HPC_NODE_LOCAL" >/dev/null 2>&1
    fi
    rm -rf "$CORE_HPC_NODE_LOCAL"
}
trap core_hpc_remove_node_local EXIT
