"""The text of every token of a completion, for colouring text by log-probability.

The input is token ids and the stored text. The output is one piece of the text per token. This
needs the model's tokenizer.json. It is looked for on this machine only: in the published model
folders of the run, in the folder or package cache that the configuration names, and in the cache of
the hub. Nothing is downloaded, and no model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core_hpc.config.model import ModelSection
from core_hpc.config.run import RunConfig
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import UPDATE

_FILE = "tokenizer.json"
_PYPI = "pypi:"
_BROKEN = "\ufffd"
"""What an incomplete character decodes to."""
_MAX_TOKENS_PER_CHARACTER = 8
_MAX_OPENED = 64
"""Longest beginning of a text, in characters, that may come from the prompt (`<think>`)."""


class TokenTexts:
    """One tokenizer, which turns ids into pieces of text.

    Args:
        file: a tokenizer.json.
    """

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        self._special = {token for token, content in added.items() if content.special}
        # Some decoders drop the space before the first token, so another token stands before it.
        self._anchor = self._tokenizer.encode("a", add_special_tokens=False).ids[:1]
        self._before = len(self._decode(self._anchor))
        self._known: dict[int, str] = {}

    def pieces(self, ids: Sequence[int], text: str) -> list[str] | None:
        """One piece of the text per token, or None if the tokens do not give this text.

        The pieces together are the text. A special token that the text does not show has an empty
        piece, as has a token behind the end of the text (a stop string). All bytes of a character
        that is made of several tokens belong to the last of them. A text that begins before the
        first token (in a thought that the prompt opened) has this beginning in its first piece.
        """
        found = self._texts(ids)
        hidden = ["" if token in self._special else piece for token, piece in zip(ids, found, strict=True)]
        for candidate in (hidden, found):
            whole = "".join(candidate)
            if text in whole:
                return _cut(candidate, whole.index(text), len(text))
            if whole and text.endswith(whole) and len(text) - len(whole) <= _MAX_OPENED:
                return [text.removesuffix(whole) + candidate[0], *candidate[1:]]
        return None

    def text(self, ids: Sequence[int]) -> str:
        """The text of the tokens, special ones included."""
        return self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _piece(self, ids: Sequence[int]) -> str:
        return self._decode([*self._anchor, *ids])[self._before :]

    def _texts(self, ids: Sequence[int]) -> list[str]:
        pieces: list[str] = []
        waiting: list[int] = []  # tokens of a character that is not complete yet
        for token in ids:
            if token not in self._known:
                self._known[token] = self._piece([token])
            piece = self._known[token]
            if not waiting and _BROKEN not in piece:
                pieces.append(piece)
                continue
            waiting.append(token)
            joined = self._piece(waiting)
            if joined.endswith(_BROKEN) and len(waiting) < _MAX_TOKENS_PER_CHARACTER:
                pieces.append("")
            else:
                pieces.append(joined)
                waiting = []
        if waiting:
            pieces[-1] = self._piece(waiting)
        return pieces


def _cut(pieces: Sequence[str], start: int, length: int) -> list[str]:
    """The pieces of a part of the whole text."""
    cut, position = [], 0
    for piece in pieces:
        first, last = max(start - position, 0), max(start + length - position, 0)
        cut.append(piece[first:last])
        position += len(piece)
    return cut


def find_tokenizer(run: Path, config: RunConfig | None, model: str) -> tuple[Path | None, list[Path]]:
    """Look for the tokenizer.json of a model.

    Returns:
        The file, or None, and the places that were searched.
    """
    searched = []
    section = next((m for m in config.team if m.name == model), None) if config is not None else None
    for folder in _places(run, section, model):
        searched.append(folder)
        if (folder / _FILE).is_file():
            return folder / _FILE, searched
    return None, searched


def _places(run: Path, section: ModelSection | None, model: str) -> Iterator[Path]:
    updates = RunPaths(run).phase_folder(UPDATE, 1)
    yield from sorted(updates.glob(f"{model}-p000.*/")) or [updates]
    if section is None:
        return
    reference = section.model
    if reference.startswith(_PYPI):
        own, caches = os.environ.get("CORE_HPC_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        models = Path(own or f"{caches}/core_hpc").expanduser() / "models"
        yield from sorted(models.glob(f"{reference.removeprefix(_PYPI)}-*/")) or [models]
        return
    yield Path(reference).expanduser()
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    snapshots = hub / f"models--{reference.strip('/').replace('/', '--')}" / "snapshots"
    yield from sorted(snapshots.glob("*/")) or [snapshots]
