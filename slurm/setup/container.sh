#!/usr/bin/env bash
# container.sh IMAGE COMMAND [ARGUMENT...]: run a command in an Apptainer (or Singularity) image. In a profile:
#
#     slurm: {python: slurm/setup/container.sh /project/images/core_hpc.sif python}
#
# The image needs the packages of pyproject.toml; core_hpc itself comes from the working directory. These folders are
# bound into the container under the same paths: the working directory, outputs/ (which is often a link to another disk),
# the weights of $CORE_HPC_CACHE (or its default) and $HF_HOME, and the folder of node_local.sh. For other folders, such
# as another `output` of the sweep, set Apptainer's own APPTAINER_BIND=/scratch/me in the profile's `setup`. The
# environment (SLURM_*, PYTHON*, CORE_HPC_*, MASTER_ADDR, caches) is passed on, unless the site has set --cleanenv.
# Slurm's commands are not needed inside, because the controller runs outside.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 IMAGE COMMAND [ARGUMENT...]" >&2
    exit 2
fi
image=$1
shift
runtime=$(command -v apptainer || command -v singularity) || {
    echo "$0: neither apptainer nor singularity on $(hostname): add 'module load apptainer' to the profile's setup" >&2
    exit 127
}

binds=()
for folder in "$PWD" outputs "${CORE_HPC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/core_hpc}" "${HF_HOME:-}" "${CORE_HPC_NODE_LOCAL:-}"; do
    if [[ -n $folder ]] && real=$(realpath -e -- "$folder" 2>/dev/null); then binds+=(--bind "$real"); fi
done
if [[ $PWD != "$(pwd -P)" ]]; then binds+=(--bind "$(pwd -P):$PWD"); fi # so that paths through a link stay valid

export PYTHONNOUSERSITE=1 # otherwise packages in ~/.local would hide those of the image
exec "$runtime" exec --nv --pwd "$PWD" "${binds[@]}" "$image" "$@"
