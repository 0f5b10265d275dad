# shellcheck shell=bash
# Puts the caches of compilers and kernels on the node's own disk. Source it in a job before Python starts. In a profile:
#
#     slurm: {setup: ["source slurm/setup/node_local.sh"]}    (relative to the folder where the job is submitted)
#
# These caches are many small files that all ranks write at once, which is slow on a network file system. Each job has its
# own folder, which is removed when its script ends. After a power cut, and on the other nodes of a cancelled job, the
# folder remains until the node cleans its disk. XDG_CACHE_HOME and HF_HOME do not change, because the model weights are
# there and all nodes read them. This file sets the script's EXIT trap.
#
# Compiling takes a minute or two. With CORE_HPC_COMPILED=/shared/folder a job starts with what earlier jobs have compiled,
# and adds what it had to compile itself as one file. Use another folder for another kind of GPU, and after an update of
# torch or vLLM; files that do not fit are compiled again. The folder gets 20 files at most.

CORE_HPC_NODE_LOCAL=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/core_hpc-${SLURM_JOB_ID:-$$}-XXXXXX") || exit
export CORE_HPC_NODE_LOCAL
export TRITON_CACHE_DIR=$CORE_HPC_NODE_LOCAL/triton
export TORCHINDUCTOR_CACHE_DIR=$CORE_HPC_NODE_LOCAL/inductor
export TORCH_EXTENSIONS_DIR=$CORE_HPC_NODE_LOCAL/torch_extensions # kernels that DeepSpeed builds
export VLLM_CACHE_ROOT=$CORE_HPC_NODE_LOCAL/vllm
export FLASHINFER_WORKSPACE_BASE=$CORE_HPC_NODE_LOCAL/flashinfer
export CUDA_CACHE_PATH=$CORE_HPC_NODE_LOCAL/cuda

if [[ -n ${CORE_HPC_COMPILED:-} ]]; then
    mkdir -p "$CORE_HPC_COMPILED"
    for core_hpc_file in "$CORE_HPC_COMPILED"/*.tar; do
        [[ ! -e $core_hpc_file ]] || tar -xf "$core_hpc_file" -C "$CORE_HPC_NODE_LOCAL" || echo "$core_hpc_file is damaged and is skipped" >&2
    done
    sleep 0.01 # so that new files have a later time than the unpacked ones on this file system
    touch "$CORE_HPC_NODE_LOCAL/.begun"
fi

core_hpc_keep_compiled() {
    local name=$CORE_HPC_COMPILED/${SLURM_JOB_ID:-$$} known=("$CORE_HPC_COMPILED"/*.tar)
    cd "$CORE_HPC_NODE_LOCAL" || return
    find . -type f -newer .begun ! -path ./.new -print0 >.new
    if [[ -s .new ]] && ((${#known[@]} < 20)); then
        tar -cf "$name.part" --null -T .new && mv "$name.part" "$name.tar"
    fi
}

core_hpc_remove_node_local() {
    [[ -z ${CORE_HPC_COMPILED:-} ]] || (core_hpc_keep_compiled) || echo "the compiled files could not be saved in $CORE_HPC_COMPILED" >&2
    if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then # the other nodes created a folder with the same name
        timeout 30 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$CORE_HPC_NODE_LOCAL" >/dev/null 2>&1
    fi
    rm -rf "$CORE_HPC_NODE_LOCAL"
}
trap core_hpc_remove_node_local EXIT
