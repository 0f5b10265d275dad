"""Files of a published update: a PEFT or model folder plus optimizer state, without pickles.

    adapter_config.json, adapter_model.safetensors    an adapter: PEFT and vLLM load them
    config.json, model*.safetensors, tokenizer files  full tuning: transformers and vLLM load them
    optimizer/state.safetensors                       per trained parameter: float32 weight, exp_avg, exp_avg_sq
    trainer_state.json                                steps done, schedule, versions

No random state is kept, since there is none: dropout is 0, and the order of problems and the
initial adapter come from seeds. The optimizer state is in a subfolder, because vLLM loads every
safetensors file beside the weights; earlier versions wrote it there. Frozen base weights are never
written. This module reads and writes files of one rank, and it knows no process group.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core_hpc.common.errors import StoreError
from core_hpc.common.tensor_files import os_errors
from core_hpc.store.paths import EARLIER_OPTIMIZER_STATE, OPTIMIZER_STATE

STATE_VERSION = 1
PARTS = ("weight", "exp_avg", "exp_avg_sq")
ADAPTER_CONFIG, ADAPTER, TRAINER = "adapter_config.json", "adapter_model.safetensors", "trainer_state.json"


@dataclass(frozen=True)
class TrainingState:
    """Trained weights and optimizer of one model after `steps_done` optimizer steps."""

    parts: dict[str, dict[str, Tensor]]
    """{part: {parameter: float32 tensor}}, with the parts of PARTS."""
    steps_done: int


def write_adapter(folder: Path, weights: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write an adapter as PEFT and vLLM load it; the caller publishes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    fields["inference_mode"] = True
    _write_json(folder / ADAPTER_CONFIG, fields)
    _write_tensors(folder / ADAPTER, weights)


def write_position(folder: Path, state: TrainingState, details: dict[str, Any]) -> None:
    """Write the two files that `read_state` reads, which suffice to continue."""
    flat = {f"{part}:{name}": tensor for part in PARTS for name, tensor in state.parts[part].items()}
    (folder / OPTIMIZER_STATE).parent.mkdir(exist_ok=True)
    _write_tensors(folder / OPTIMIZER_STATE, {**flat, "step": torch.tensor(state.steps_done, dtype=torch.int64)})
    versions = {p: importlib.metadata.version(p) for p in ("torch", "deepspeed", "peft", "transformers")}
    _write_json(
        folder / TRAINER, {"version": STATE_VERSION, "steps_done": state.steps_done, **details, "versions": versions}
    )


def read_state(folder: Path, shapes: dict[str, torch.Size]) -> TrainingState:
    """Read a published state.

    Args:
        shapes: the parameters, and the shapes, that the state must have.

    Raises:
        StoreError: files are missing, damaged or of another version, or do not fit `shapes`.
    """
    try:
        meta = json.loads((folder / TRAINER).read_text())
        with safe_open(_optimizer_file(folder), framework="pt") as file:
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(
            f"{folder}: this is not a complete folder of an update ({error}); remove it and run the same command again"
        ) from error
    if meta.get("version") != STATE_VERSION:
        raise StoreError(
            f"{folder}: the trainer state has version {meta.get('version')}, but this software reads version "
            f"{STATE_VERSION}; continue with the software that wrote it, or start a new run"
        )
    step = int(flat.pop("step", torch.tensor(-1)))
    if step != meta["steps_done"]:
        raise StoreError(
            f"{folder}: the optimizer is at step {step}, but {TRAINER} at step {meta['steps_done']}, so the files are "
            "of different updates; remove the folder and run the same command again"
        )
    _check_shapes(folder, flat, {f"{part}:{name}": shape for part in PARTS for name, shape in shapes.items()})
    parts = {part: {name: flat[f"{part}:{name}"] for name in shapes} for part in PARTS}
    return TrainingState(parts, step)


def read_adapter(folder: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Read the weights of an adapter, without an optimizer state.

    Args:
        folder: A PEFT folder.
        shapes: The parameters, and the shapes, that the adapter must have.

    Raises:
        StoreError: It cannot be read, or does not fit `shapes`.
    """
    try:
        tensors: dict[str, Tensor] = load_file(folder / ADAPTER)
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"{folder}: the adapter cannot be read ({error})") from error
    _check_shapes(folder, tensors, shapes)
    return tensors


def _check_shapes(folder: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        differing = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise StoreError(
            f"{folder}: {len(differing)} tensors do not fit the model and its tuning, first {differing[0]}: "
            f"{found.get(differing[0])} in the file, {expected.get(differing[0])} in the model"
        )


def _optimizer_file(folder: Path) -> Path:
    """The file of the optimizer state, which may be of an earlier version."""
    earlier = folder / EARLIER_OPTIMIZER_STATE
    return earlier if earlier.is_file() else folder / OPTIMIZER_STATE


def share_with_group(path: Path) -> None:
    """Make a file readable for other users.

    safetensors makes files that only their owner can read, whatever the umask. Access to the run is
    controlled by the permissions of its folder.
    """
    path.chmod(0o644)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with os_errors(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})
    share_with_group(path)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
