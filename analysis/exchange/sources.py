"""Files of predictions: the records of JSON Lines, Parquet and logs of Inspect.

In: a file. Out: its records, each a number and a mapping, or a number and the ValueError that
explains why it cannot be read. The content of a record is not checked here; `exchange/converters.py`
converts records of other software.

JSON Lines may begin with a byte order mark. A log of Inspect is a zip archive (`.eval`) or JSON
(`.json`); its records are its samples, with the header of the log under the key `LOG`.
"""

from __future__ import annotations

import codecs
import io
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
from pydantic_core import from_json

from analysis.exchange.lines import parsed
from core_hpc.common.errors import InputError
from core_hpc.store import parquet

MAX_LINE_BYTES = 256 << 20
LOG = "_log"
"""The key of an Inspect sample under which the header of its log is."""
_HEADER = "header.json"
_SAMPLES = "samples/"
_PARQUET_MAGIC, _ZIP_MAGIC = b"PAR1", b"PK\x03\x04"
_ZSTANDARD = 93
"""The number of this compression in a zip archive. `zipfile` of Python 3.13 and older cannot read it."""
_LOCAL_HEADER_BYTES = 30
_BLOCK_BYTES = 1 << 20

Record = tuple[int, dict[str, Any] | ValueError]


def place_of(file: Path, *, inspect_log: bool = False) -> str:
    """What the number of a record counts: sample, row or line.

    Raises:
        InputError: the file cannot be read.
    """
    return "sample" if inspect_log else "row" if _starts_with(file, _PARQUET_MAGIC) else "line"


def records(file: Path, digest: Any, *, inspect_log: bool = False) -> Iterator[Record]:
    """Yield the records of a file, and update `digest` with the bytes of the file.

    Raises:
        InputError: the file is damaged, or not of its format.
        OSError: the file cannot be opened.
    """
    if inspect_log:
        _hash(file, digest)
        yield from _inspect_records(file)
    elif _starts_with(file, _PARQUET_MAGIC):
        _hash(file, digest)
        try:
            yield from enumerate(parquet.read(file).iter_rows(named=True), start=1)
        except pl.exceptions.PolarsError as e:
            raise InputError(f"{file}: not a readable Parquet file ({e})") from e
    else:
        yield from _json_lines(file, digest)


def _starts_with(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as f:
            return f.read(len(magic)) == magic
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror or e})") from e


def _hash(file: Path, digest: Any) -> None:
    with file.open("rb") as f:
        while block := f.read(_BLOCK_BYTES):
            digest.update(block)


def _json_lines(file: Path, digest: Any) -> Iterator[Record]:
    """The lines that are not blank. A line that is too long is not kept in memory."""
    with file.open("rb") as f:
        for number in count(1):
            line = f.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            digest.update(line)
            rest = line
            while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
                rest = f.readline(MAX_LINE_BYTES)
                digest.update(rest)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            if len(line) > MAX_LINE_BYTES:
                yield number, ValueError(f"longer than {MAX_LINE_BYTES >> 20} MiB; write one line per completion")
                continue
            try:
                yield number, parsed(line)
            except ValueError as e:
                yield number, e


# --- logs of Inspect -----------------------------------------------------------------------------


def _inspect_records(file: Path) -> Iterator[Record]:
    if not _starts_with(file, _ZIP_MAGIC):
        log = _json(file, file.read_bytes(), file.name)
        samples = log.pop("samples", None)
        if not isinstance(samples, list) or not samples:
            raise _without_samples(file)
        for number, sample in enumerate(samples, start=1):
            yield number, {**sample, LOG: log} if isinstance(sample, dict) else ValueError("not a JSON object")
        return
    try:
        with zipfile.ZipFile(file) as archive:
            # A sample that was attempted again has several entries; the last one counts.
            entries = {info.filename: info for info in archive.infolist()}
            if _HEADER not in entries:
                raise InputError(f"{file}: has no {_HEADER}, so the evaluation has not ended; wait, or repair the log")
            log = _json(file, _content(file, archive, entries[_HEADER]), _HEADER)
            names = [name for name in entries if name.startswith(_SAMPLES) and name.endswith(".json")]
            if not names:
                raise _without_samples(file)
            for number, name in enumerate(names, start=1):
                yield number, {**_json(file, _content(file, archive, entries[name]), name), LOG: log}
    except (zipfile.BadZipFile, NotImplementedError) as e:
        raise InputError(f"{file}: not a readable log of Inspect ({e})") from e


def _without_samples(file: Path) -> InputError:
    return InputError(f"{file}: a log of Inspect without samples; run Inspect without --no-log-samples")


def _content(file: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The content of an entry of an archive, also with the compression Zstandard."""
    if entry.compress_type != _ZSTANDARD:
        return archive.read(entry)
    with file.open("rb") as f:
        f.seek(entry.header_offset)
        header = f.read(_LOCAL_HEADER_BYTES)
        # The lengths of the name and of the extra field, which precede the data.
        f.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), io.SEEK_CUR)
        data = f.read(entry.compress_size)
    import pyarrow as pa  # type: ignore[import-untyped]  # late, because only these logs need it

    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            return bytes(stream.read())
    except (OSError, pa.ArrowException) as e:
        raise zipfile.BadZipFile(f"{entry.filename}: {e}") from e


def _json(file: Path, data: bytes, name: str) -> dict[str, Any]:
    """An object of a log.

    Raises:
        InputError: the text is not a JSON object.
    """
    try:
        value = from_json(data.removeprefix(codecs.BOM_UTF8))
    except ValueError as e:
        raise InputError(f"{file}: {name} is not JSON ({e}); give a log of Inspect (.eval or .json)") from e
    if not isinstance(value, dict):
        raise InputError(f"{file}: {name} is not a JSON object; give a log of Inspect (.eval or .json)")
    return value
