"""A run whose engine would silently sample with base weights is stopped.

vLLM loads an adapter file whose tensors belong to modules that the model does not have, and ignores
them without a message. The trainer notices it, because the probabilities of the samples are those
of the base weights (`training/guard.py`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from tests.support.harness import launch, the_run
from tests.support.tiny import make_tiny_model, tiny_vllm_sweep

pytestmark = [pytest.mark.slow, pytest.mark.full(reason="test_zero2.py has an engine that ignores its adapter")]
ADAPTER = "adapter_model.safetensors"


def rename_tensors(run: Path) -> None:
    """Give the tensors of the first adapter another prefix, and correct its manifest."""
    path = RunPaths(run).task_manifest(TaskKey(1, "update", "m0"))
    file = manifests.read_manifest(path).folder / ADAPTER
    tensors = load_file(file)
    renamed = {name.replace(".model.layers.", ".model.language_model.layers."): t for name, t in tensors.items()}
    assert not renamed.keys() & tensors.keys()
    file.unlink()
    save_file(renamed, file, metadata={"format": "pt"})
    content, body = file.read_bytes(), json.loads(path.read_text())
    (entry,) = (f for f in body["files"] if f["name"].endswith(ADAPTER))
    entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.unlink()
    path.write_text(json.dumps(body))


def test_an_adapter_that_the_engine_ignores_stops_the_run(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", hidden=256)
    sweep = tiny_vllm_sweep(
        tmp_path / "tiny.yaml", model, tmp_path / "out", samples=1, iterations=1, evaluation={"before": False}
    )
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    run = the_run(tmp_path / "out" / "tiny")
    rename_tensors(run)
    refused = launch(sweep, "--set", "iterations=2")
    text = " ".join((refused.stdout + refused.stderr).split())
    assert refused.returncode != 0, text
    assert "the engine seems to ignore the adapter" in text
    assert "Compare the tensor names in adapter_model.safetensors" in text
    assert not RunPaths(run).task_manifest(TaskKey(2, "update", "m0")).exists()
