"""The content of a manifest: from parsed JSON to checked entries.

In: what was read from a manifest. Out: its files, statistics and writer. A value of a wrong type is
a ValueError; `manifests.py` turns it into damage. This module does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LARGEST = 2**53
"""Every number in a file of a run is smaller, also a point in time. NaN is not."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a publication.

    `name` is relative to the folder of the manifest. A Parquet file also has its number of rows,
    and in `table` the name of its schema.
    """

    name: str
    bytes: int
    sha256: str
    rows: int | None = None
    table: str | None = None


def parse_body(body: Any) -> tuple[tuple[FileEntry, ...], dict[str, Any], dict[str, Any]]:
    """Files, statistics and writer of a manifest. ValueError if one of them has a wrong shape."""
    stats, writer = checked_field(body, "stats", dict), checked_field(body, "writer", dict)
    for name, kind in (("time", float), ("host", str), ("pid", int)):
        checked_field(writer, name, kind)
    _check_statistics(stats)
    return parse_files(body), stats, writer


def checked_field(body: Any, name: str, kind: type) -> Any:
    """The value of a field. ValueError if the field is missing or has another type."""
    value = body.get(name) if isinstance(body, dict) else None
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ValueError(f"field {name!r} is missing or not of type {kind.__name__}")
    if isinstance(value, int | float) and not abs(value) < LARGEST:
        raise ValueError(f"field {name!r} is not a number of this kind")
    return value


def _check_statistics(stats: dict[str, Any]) -> None:
    """Check that times and numbers are numbers. ValueError otherwise."""
    for name in stats:
        if name == "seconds":
            for item in checked_field(stats, name, dict):
                checked_field(stats[name], item, float)
        elif name.startswith("num_") or name.endswith(("_s", "_started", "_ready")):
            checked_field(stats, name, float)


def parse_files(body: Any) -> tuple[FileEntry, ...]:
    """The files that the content of a manifest names. ValueError if they are not complete."""
    files = checked_field(body, "files", list)
    if not files:
        raise ValueError("it names no files")
    return tuple(_parse_file(file) for file in files)


def _parse_file(file: Any) -> FileEntry:
    name, num_bytes, sha256 = (checked_field(file, *f) for f in (("name", str), ("bytes", int), ("sha256", str)))
    table = None if file.get("table") is None else checked_field(file, "table", str)
    rows = None if table is None else checked_field(file, "rows", int)
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{name!r} is not a file below its folder")
    if num_bytes < 0 or (rows is not None and rows < 0):
        raise ValueError(f"a negative number at {name}")
    return FileEntry(name, num_bytes, sha256, rows, table)
