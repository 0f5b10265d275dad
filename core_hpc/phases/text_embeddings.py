"""Embeddings of completions for the hint and score phases; each distinct text is embedded once.

The hint phase embeds the texts of the cold phase and publishes their vectors beside its hints. The
score phase reads these vectors and embeds only the texts that are missing: those of the rescue
phase, or all texts if no vectors are published (a run without a rescue phase, or hints of an
earlier version).

In: texts. Out: one vector per text, and the file `embeddings.safetensors` of a hint publication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from core_hpc.common.tensor_files import os_errors
from core_hpc.phases.context import TaskContext
from core_hpc.protocol.embeddings import text_as_embedded
from core_hpc.store import manifests
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import HINT

Vectors = NDArray[np.float32]

FILE = "embeddings.safetensors"
_KEY_BYTES = 16


def embed_texts(context: TaskContext, texts: Sequence[str], known: Mapping[bytes, Vectors] | None = None) -> Vectors:
    """Vectors [len(texts), d]. Texts whose vectors are in `known` are not embedded again.

    The missing texts are embedded in one call. The last digits of a vector depend on the other
    texts of its call, so the calls must not depend on what a warm worker has done before.
    """
    keys = [_key(text) for text in texts]
    vectors = dict(known or {})
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
    if missing:
        reference = context.run.config.reward.distance.embedder
        vectors |= zip(missing, context.warm.embed(reference, list(missing.values())), strict=True)
    return np.stack([vectors[key] for key in keys]) if keys else np.zeros((0, 0), dtype=np.float32)


def write_embeddings(path: Path, reference: str, texts: Sequence[str], vectors: Vectors) -> None:
    """Write the vectors [len(texts), d] of the distinct texts. `reference` names the embedder."""
    rows = {_key(text): row for row, text in enumerate(texts)}
    keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), _KEY_BYTES)
    with os_errors(path):
        save_file({"keys": keys, "vectors": vectors[list(rows.values())]}, path, metadata={"embedder": reference})


def published_embeddings(context: TaskContext) -> dict[bytes, Vectors]:
    """The vectors that the hint phase published for this task's part; empty if there are none.

    Raises:
        DamagedError: the publication of the hint phase differs from its manifest.
    """
    path = context.paths.task_manifest(TaskKey(context.key.iteration, HINT, TEAM, context.key.part))
    # Listing the folder refreshes the view of a network file system; a look for one file does not.
    if path.name not in manifests.list_names(path.parent):
        return {}
    manifest = manifests.read_manifest(path)
    if not any(entry.name.endswith(FILE) for entry in manifest.files):
        return {}
    manifests.check_files(manifest, checksum=True)
    with safe_open(manifest.file(FILE), framework="numpy") as file:
        if file.metadata()["embedder"] != context.run.config.reward.distance.embedder:
            return {}
        keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
    return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}


def _key(text: str) -> bytes:
    """A digest of what the embedder reads of a text."""
    data = text_as_embedded(text).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=_KEY_BYTES).digest()
