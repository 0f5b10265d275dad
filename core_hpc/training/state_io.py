"""Files of a published adapter: an ordinary PEFT folder plus optimizer state, without pickles.

    adapter_config.json, adapter_model.safetensors    what PEFT and vLLM load
    optimizer.safetensors                             per parameter: float32 weight, exp_avg, exp_avg_sq
    trainer_state.json                                steps done, schedule, versions

No random state is kept, since none exists: dropout is 0, and the order of problems and the initial adapter come from
seeds. Base weights are never written. This module reads and writes files of one rank; it knows no process group.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from core_hpc.errors import StoreError

STATE_VERSION = 1
PARTS = ("weight", "exp_avg", "exp_avg_sq")
ADAPTER_CONFIG, ADAPTER, OPTIMIZER, TRAINER = (
    "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingState:
    """Adapter and optimizer of one model after `steps_done` optimizer steps; {part: {parameter: float32 tensor}}."""

    parts: dict[str, dict[str, Tensor]]
    steps_done: int


def write_state(folder: Path, state: TrainingState, config: LoraConfig, details: dict[str, Any]) -> None:
    """Write the four files into `folder`; the caller publishes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    fields["inference_mode"] = True
    _write_json(folder / ADAPTER_CONFIG, fields)
    _write_tensors(folder / ADAPTER, state.parts["weight"])
    write_position(folder, state, details)


def write_position(folder: Path, state: TrainingState, details: dict[str, Any]) -> None:
    """Write the two files that `read_state` reads: what it takes to go on, without the adapter for others."""
    flat = {f"{part}:{name}": tensor for part in PARTS for name, tensor in state.parts[part].items()}
    _write_tensors(folder / OPTIMIZER, {**flat, "step": torch.tensor(state.steps_done, dtype=torch.int64)})
    versions = {p: importlib.metadata.version(p) for p in ("torch", "deepspeed", "peft", "transformers")}
    _write_json(folder / TRAINER, {"version": STATE_VERSION, "steps_done": state.steps_done, **details, "versions": versions})


def read_state(folder: Path, shapes: dict[str, torch.Size]) -> TrainingState:
    """The published state, which must have exactly the parameters and shapes of `shapes`; else StoreError."""
    try:
        meta = json.loads((folder / TRAINER).read_text())
        with safe_open(folder / OPTIMIZER, framework="pt") as file:
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"{folder}: not a complete adapter folder ({error}); remove it and run the same command again") from error
    if meta.get("version") != STATE_VERSION:
        raise StoreError(f"{folder}: trainer state of version {meta.get('version')}; this software reads version {STATE_VERSION}")
    step = int(flat.pop("step", torch.tensor(-1)))
    if step != meta["steps_done"]:
        raise StoreError(f"{folder}: optimizer is at step {step}, {TRAINER} at {meta['steps_done']}: files of different updates")
    expected = {f"{part}:{name}": shape for part in PARTS for name, shape in shapes.items()}
    found = {key: tensor.shape for key, tensor in flat.items()}
    if found != expected:
        differing = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise StoreError(
            f"{folder}: {len(differing)} tensors do not fit the model and its lora section, first {differing[0]}: "
            f"{found.get(differing[0])} in the file, {expected.get(differing[0])} in the model"
        )
    parts = {part: {name: flat[f"{part}:{name}"] for name in shapes} for part in PARTS}
    return TrainingState(parts, step)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    # Not safetensors' save_file: it makes files that the group cannot read, whatever the umask.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
