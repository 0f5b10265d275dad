"""Why a file cannot be read as UTF-8 text: the reason and the remedy, for messages.

In: the path of a file in which decoding failed. Out: the end of a sentence that begins with the file.
"""

from __future__ import annotations

from pathlib import Path

_STARTS = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first, for example with gunzip",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first, for example with unzstd",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
    b"PAR1": "is a Parquet file, not text",
}
"""The first bytes of a file -> what it is, and what to do."""


def why_not_utf8(path: Path) -> str:
    """What a file that is not UTF-8 is, or its first line that is not, with what to do.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as f:
        start = f.read(4)
        for known, reason in _STARTS.items():
            if start.startswith(known):
                return reason
        f.seek(0)
        for number, line in enumerate(f, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as e:
                return f"is not UTF-8 (line {number}, byte {e.start + 1}); save it as UTF-8"
    return "is not UTF-8; save it as UTF-8"
