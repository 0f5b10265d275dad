#!/usr/bin/env bash
# Checks and times on one GPU what no CPU can show. See tests/gpu/README.md.
#
#   bash tests/gpu/acceptance.sh prepare
#   bash tests/gpu/acceptance.sh run OUT [--minutes 9] [--device cpu --size tiny]
set -euo pipefail
cd "$(dirname "$0")/../.."
archive=.gpu/site.tar.xz
# What the update imports besides torch, without the dependencies that torch brings.
packages="accelerate annotated-types certifi charset-normalizer deepspeed einops hjson huggingface_hub idna iniconfig
msgpack ninja numpy packaging peft pluggy polars polars-runtime-32 psutil py-cpuinfo pydantic pydantic_core Pygments
pytest PyYAML regex requests safetensors tokenizers tqdm transformers typing-inspection typing_extensions urllib3"

case "${1:-}" in
  prepare)
    mkdir -p .gpu
    for package in $packages; do
      grep -iE "^${package//_/[-_]}==" .lock/cpu.txt || { echo "$package is not in .lock/cpu.txt" >&2; exit 1; }
    done > .gpu/packages.txt
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python -m pip install --quiet --no-deps --no-compile --target "$site" -r .gpu/packages.txt
    rm -rf "${site:?}/bin" "$site"/numpy/tests "$site"/numpy/*/tests
    tar -C "$site" -c . | xz -6 -T2 > "$archive"
    du -m "$archive"
    ;;
  run)
    out=$(mkdir -p "$2" && cd "$2" && pwd)
    shift 2
    if ! python -c "import deepspeed, peft, polars, pydantic, pytest" 2>/dev/null; then
      site=$(mktemp -d)
      trap 'rm -rf "$site"' EXIT
      tar -C "$site" -xf "$archive"
      export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    fi
    python -m tests.gpu.acceptance --out "$out/acceptance.json" "$@"
    ;;
  *)
    grep '^#  ' "$0" >&2
    exit 2
    ;;
esac
