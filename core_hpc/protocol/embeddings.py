"""Sentence embeddings of completions (METHOD.md section 3).

In: texts. Out: one finite, non-zero vector per text, in the order of the texts. Within a call each
distinct text is embedded once, so equal texts have equal vectors. This module does not resolve
`pypi:` references (the caller passes a folder) and computes no distances.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

EMPTY_TEXT = "(empty)"
"""Replaces texts without visible characters, so that their embedding is not zero."""
MAX_TEXT_CHARS = 20_000
"""Longer texts are cut before tokenization; all-MiniLM-L6-v2 reads at most 256 word pieces."""
FAKE_HASHING = "fake:hashing"

_TOKEN = re.compile(r"\w+|[^\w\s]")


class Embedder(Protocol):
    """Computes vectors of texts."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), d] in the order of the texts. A text may be empty."""
        ...


def text_as_embedded(text: str) -> str:
    """What an embedder reads of a text: its first `MAX_TEXT_CHARS` characters, or `EMPTY_TEXT`."""
    beginning = text[:MAX_TEXT_CHARS]
    return beginning if beginning.strip() else EMPTY_TEXT


def _embed_distinct(texts: Sequence[str], embed: Callable[[list[str]], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The vector of every text; each distinct text is embedded once."""
    prepared = [text_as_embedded(text) for text in texts]
    rows = {text: i for i, text in enumerate(dict.fromkeys(prepared))}
    vectors = embed(list(rows))
    return vectors[[rows[text] for text in prepared]]


class HashingEmbedder:
    """An embedder for tests: counts of hashed words.

    Texts with the same words have equal vectors.
    """

    def __init__(self, dimensions: int = 256) -> None:
        self.dimensions = dimensions

    def _vector(self, text: str) -> NDArray[np.float32]:
        vector = np.zeros(self.dimensions, dtype=np.float32)
        for token in _TOKEN.findall(text.lower()) or [EMPTY_TEXT]:
            digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            vector[int.from_bytes(digest, "big") % self.dimensions] += 1.0
        return vector

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), dimensions]."""
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        return _embed_distinct(texts, lambda distinct: np.stack([self._vector(t) for t in distinct]))


class SentenceEmbedder:
    """A sentence-transformers model (float32), such as all-MiniLM-L6-v2."""

    def __init__(self, reference: str, *, device: str, batch_size: int) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(reference, device=device, model_kwargs={"dtype": "float32"})
        self._batch_size = batch_size

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        vectors = self._model.encode(texts, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [len(texts), d]; d is 384 for all-MiniLM-L6-v2.

        Long texts are cut (`MAX_TEXT_CHARS`).
        """
        if not texts:
            return np.zeros((0, self._model.get_embedding_dimension() or 0), dtype=np.float32)
        return _embed_distinct(texts, self._encode)


def create_embedder(reference: str | Path, *, device: str = "cpu", batch_size: int = 32) -> Embedder:
    """The embedder of `reward.distance.embedder`.

    Args:
        reference: `fake:hashing`, or a folder or hub name of a sentence-transformers model.
        device: where the model runs.
        batch_size: texts per batch.

    Raises:
        ValueError: the reference is `pypi:...`; the caller resolves it to a folder first.

    >>> create_embedder("fake:hashing").embed(["one two", "", "one two"]).shape
    (3, 256)
    """
    name = str(reference)
    if name == FAKE_HASHING:
        return HashingEmbedder()
    if name.startswith(("pypi:", "fake:")):
        raise ValueError(
            f"embedder {name!r}: pass a folder, a hub name or {FAKE_HASHING!r}; "
            "resolve pypi: references to a folder first"
        )
    return SentenceEmbedder(name, device=device, batch_size=batch_size)
