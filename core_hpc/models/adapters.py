"""Adapters with which a model begins: finds them, checks that they fit, and copies them.

In: the value of `team[].adapter`, which is a PEFT folder, or an update that another run has
published. Out: an `AdapterSource`, whose two files `copy_adapter` takes into a run folder
(`runs/adapters.py`). Names and shapes of tensors are read from the header of the file, so no weights
are loaded here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import InputError, StoreError
from core_hpc.models.folder import fingerprint
from core_hpc.models.loading import auto_class, linear_layers, load_config, match_targets
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import UPDATE, WARMUP

if TYPE_CHECKING:
    from core_hpc.config.model import LoraSection

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAST = "last"
"""Stands for the last published iteration of a run."""
SHOWN = 3
"""A message names at most this many tensors."""
_OF_RUN = re.compile(rf"(?P<run>.+)@(?P<iteration>[0-9]+|{LAST})(:(?P<name>[a-z0-9][a-z0-9_-]*))?")
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_MERGE = "merge it into its base weights (`merge_and_unload` of PEFT) and set the merged folder as `model`"
_PLAIN: dict[str, Any] = {"use_rslora": False, "use_dora": False, "bias": "none"}
"""Settings of PEFT that change what an adapter computes, and the values that this project trains."""
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of init_lora_weights with which PEFT leaves the base weights alone, as vLLM checks them."""


@dataclass(frozen=True)
class AdapterSource:
    """An adapter on disk.

    Attributes:
        folder: A PEFT folder.
        base: Fingerprint of the base weights; None for a folder of which it is not known.
    """

    folder: Path
    base: str | None = None


@dataclass(frozen=True)
class AdapterShape:
    """What the files of an adapter have in common with `team[].lora`.

    Attributes:
        modules: The adapted layers, by their names in the base model, with (inputs, outputs).
    """

    rank: int
    alpha: float
    modules: Mapping[str, tuple[int, int]]

    @property
    def targets(self) -> list[str]:
        """The last name parts of the adapted layers, in the order of their first use."""
        return list(dict.fromkeys(name.rpartition(".")[2] for name in self.modules))

    @property
    def as_lora(self) -> str:
        """The section `lora` that fits, as it is written in a sweep file."""
        return f"lora: {{rank: {self.rank}, alpha: {self.alpha:g}, targets: [{', '.join(self.targets)}]}}"


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter of PEFT."""
    return (folder / ADAPTER_CONFIG).is_file()


def split_reference(reference: str) -> tuple[Path, str, str | None] | None:
    """(run folder, iteration, name of the model or None); None if the reference is a folder.

    >>> split_reference("outputs/a/run-1@20:left")
    (PosixPath('outputs/a/run-1'), '20', 'left')
    """
    match = _OF_RUN.fullmatch(reference)
    if match is None or Path(reference).expanduser().is_dir():
        return None
    return Path(match["run"]).expanduser(), match["iteration"], match["name"]


def find_adapter(reference: str, *, name: str) -> AdapterSource:
    """Find the adapter that a reference means.

    Args:
        reference: A PEFT folder, or RUN_FOLDER@ITERATION or RUN_FOLDER@ITERATION:MODEL.
        name: The model in that run, if the reference names none.

    Raises:
        InputError: There is no such adapter. The message names what there is.
    """
    parts = split_reference(reference)
    if parts is not None:
        return _of_run(reference, *parts, name=name)
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"adapter {reference}: there is no such folder; set a folder with {ADAPTER_CONFIG}, or "
            "RUN_FOLDER@ITERATION for an adapter of another run"
        )
    if missing := [file for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / file).is_file()]:
        if RunPaths(folder).identity.is_file():
            raise InputError(f"adapter {reference}: is a run; add an iteration, for example {reference}@{LAST}")
        raise InputError(
            f"adapter {reference}: has no {' and no '.join(missing)}; set a folder that PEFT has written with "
            "safetensors. A folder with a whole model belongs in `model`"
        )
    return AdapterSource(folder.resolve())


def published_iterations(run: Path, model: str) -> list[int]:
    """The iterations of which a run has published the update of a model, in order."""
    return [key.iteration for key in shards.published_keys(run, (UPDATE,)) if key.model == model]


def _of_run(reference: str, run: Path, iteration: str, named: str | None, *, name: str) -> AdapterSource:
    paths, model = RunPaths(run), named or name
    if not paths.identity.is_file():
        raise InputError(f"adapter {reference}: {run} is not a run folder (it has no {paths.identity.name})")
    try:
        config = manifests.read_json(paths.config)
        team = {member["name"]: member for member in config["team"]}
        facts = manifests.read_json(paths.identity)["models"]
    except (KeyError, TypeError) as e:
        raise InputError(f"adapter {reference}: {run} is not a run that trains models") from e
    if model not in team:
        more = "" if named else f"; add the name, for example {reference}:{next(iter(team))}"
        raise InputError(f"adapter {reference}: {run} has no model {model}, only {', '.join(team)}{more}")
    published = published_iterations(run, model)
    if not published or (iteration != LAST and int(iteration) not in published):
        have = f"only {', '.join(map(str, published))}" if published else "and no other one"
        raise InputError(f"adapter {reference}: {run} has published no update {iteration} of {model}, {have}")
    number = published[-1] if iteration == LAST else int(iteration)
    manifest = manifests.read_manifest(paths.task_manifest(TaskKey(number, UPDATE, model)))
    manifests.check_files(manifest, checksum=True)
    if team[model].get("tuning") == "full":
        raise InputError(
            f"adapter {reference}: {model} of {run} was trained with tuning: full, so the update is a whole model; "
            f"set it as `model: {manifest.folder}`, without `adapter`"
        )
    base = facts[model]["fingerprint"]
    if team[model].get("warmup"):
        base = fingerprint(manifests.read_manifest(paths.task_manifest(TaskKey(0, WARMUP, model))).folder)
    return AdapterSource(manifest.folder.absolute(), base)


# --- checks --------------------------------------------------------------------------------------


def read_shape(folder: Path) -> AdapterShape:
    """Read rank, scale and layers of an adapter.

    Raises:
        InputError: It is not an adapter of a kind that this project trains.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as e:
        raise InputError(f"adapter {folder}: cannot be read ({e})") from e
    if config.get("peft_type", "LORA") != "LORA":
        raise InputError(
            f"adapter {folder}: is of the kind {config['peft_type']}, and only LORA is supported; {_MERGE}"
        )
    odd = [name for name, plain in _PLAIN.items() if config.get(name, plain) != plain]
    odd += [name for name in ("alpha_pattern", "rank_pattern", "alora_invocation_tokens") if config.get(name)]
    first = config.get("init_lora_weights", True)
    if isinstance(first, str) and first not in _KEEPS_BASE:
        raise InputError(
            f"adapter {folder}: init_lora_weights of {ADAPTER_CONFIG} is {first}, which changes the base weights too, "
            "and this is not supported. Convert it to plain LoRA (`save_pretrained` of PEFT with "
            f"`path_initial_model_for_weight_conversion`), or {_MERGE}"
        )
    if odd:
        raise InputError(f"adapter {folder}: {', '.join(odd)} of {ADAPTER_CONFIG} is not supported; {_MERGE}")
    return _shape_of(folder, float(config.get("lora_alpha", 0)), shapes)


def _shape_of(folder: Path, alpha: float, shapes: Mapping[str, Sequence[int]]) -> AdapterShape:
    found: dict[str, dict[str, Sequence[int]]] = {}
    other = []
    for name, shape in shapes.items():
        match = _TENSOR.fullmatch(name)
        if match is None or len(shape) != 2:
            other.append(name)
        else:
            found.setdefault(match["module"], {})[match["part"]] = shape
    ranks = {n for parts in found.values() for n in ({parts["A"][0], parts["B"][1]} if len(parts) == 2 else {0})}
    if other or len(ranks) != 1 or 0 in ranks:
        what = (
            f"has other tensors than lora_A and lora_B ({', '.join(other[:SHOWN])})" if other else "has no single rank"
        )
        raise InputError(f"adapter {folder}: {what}, which is not supported; {_MERGE}")
    modules = {module: (parts["A"][1], parts["B"][0]) for module, parts in found.items()}
    return AdapterShape(ranks.pop(), alpha, modules)


def check_adapter(source: AdapterSource, lora: LoraSection, base: Path, *, trust_remote_code: bool = False) -> None:
    """Check that a model can begin with an adapter.

    Args:
        source: The adapter.
        lora: The section of the model, with which the adapter is trained further.
        base: Folder of the base weights.
        trust_remote_code: As for the model.

    Raises:
        InputError: It does not fit. The message names what to write.
    """
    import torch

    if source.base is not None and source.base != fingerprint(base):
        raise InputError(
            f"adapter {source.folder}: was trained on other base weights than those in {base}; set `model` to the "
            "model of that run (after a warm-up: to the folder that its warmup phase has published)"
        )
    shape = read_shape(source.folder)
    config = load_config(base, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    layers = {name: (layer.in_features, layer.out_features) for name, layer in linear_layers(model).items()}
    if strange := [name for name, size in shape.modules.items() if layers.get(name) != size]:
        raise InputError(
            f"adapter {source.folder}: does not fit the model in {base}: {len(strange)} of its {len(shape.modules)} "
            f"layers are missing there or have another size, first {strange[0]}; set the model that it was trained on"
        )
    found, _ = match_targets({name.rpartition(".")[2] for name in layers}, lora.targets)
    wanted = {name for name in layers if name.rpartition(".")[2] in found}
    if (shape.rank, shape.alpha, set(shape.modules)) != (lora.rank, lora.alpha, wanted):
        raise InputError(
            f"adapter {source.folder}: the model's `lora` is not that of the adapter; write {shape.as_lora}"
        )


# --- files ---------------------------------------------------------------------------------------


def adapter_digest(folder: Path) -> str:
    """A digest of what an adapter computes: scale and weights, not the name of its base model."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    kept = {name: config.get(name) for name in ("lora_alpha", "r", *_PLAIN)}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(manifests.sha256_file(folder / ADAPTER_WEIGHTS).encode())
    return digest.hexdigest()


def copy_adapter(source: Path, folder: Path) -> None:
    """Copy the two files of an adapter into a folder.

    Raises:
        StoreError: They cannot be read.
    """
    try:
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(source / name, folder / name)
    except FileNotFoundError as e:
        raise StoreError(f"{source}: {e.strerror}") from e
