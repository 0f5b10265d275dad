"""The key of code that vLLM has compiled, for weights of one and of another shape.

vLLM compiles on a GPU only, but makes its configuration and the key on a CPU too. It runs in a
process of its own, which runs this file as a script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from core_hpc.engines import EngineSpec, worker_environment
from core_hpc.engines.vllm import _engine_arguments
from tests.support.harness import ROOT
from tests.support.tiny import make_tiny_model


def _print_keys(folders: list[Path]) -> None:
    """The process of vLLM: keys as vLLM makes them, and as our engines make them."""
    from vllm.engine.arg_utils import EngineArgs

    from core_hpc.engines import vllm_process  # the processes of an engine on several GPUs import it

    assert vllm_process.Extension

    def keys() -> list[str]:
        specs = [EngineSpec(kind="vllm", model_folder=folder, max_context_tokens=128) for folder in folders]
        arguments = [_engine_arguments(spec, on_cpu=True) for spec in specs]
        return [EngineArgs(**given).create_engine_config().compute_hash() for given in arguments]

    ours = keys()
    from vllm.config import ModelConfig

    ModelConfig.compute_hash = ModelConfig.compute_hash.__wrapped__
    print(json.dumps([keys(), ours]))


def test_weights_of_one_shape_share_compiled_code(tmp_path: Path) -> None:
    folders = [
        make_tiny_model(tmp_path / name, hidden=hidden) for name, hidden in (("a", 64), ("b", 64), ("other", 128))
    ]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, folders)],
        env=os.environ | worker_environment("vllm", 1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stock, ours = json.loads(done.stdout.splitlines()[-1])
    assert len(set(stock)) == 3
    assert ours[0] == ours[1] != ours[2]


if __name__ == "__main__":
    _print_keys([Path(argument) for argument in sys.argv[1:]])
