"""TensorBoard's event files of a run, which later starts continue, and the record of their content.

In: events, and the tasks that they are computed from. Out: one event file per folder below
`tensorboard/`, and `tensorboard/written.jsonl`. The record has a line per task: its name, and size
and checksum of what was appended for it. So a start knows which points exist without reading them.
Event files that do not end as the record states are removed, and the caller writes all points again.
No file stays open, and no thread is started. What the points are is decided in `run_tracker.py`.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core_hpc.store.manifests import make_folder

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

RECORD = "written.jsonl"
PREFIX = "events.out.tfevents."
END = ".end"
"""Suffix of the event file with the end of a start. The next start replaces it."""
_FILE_VERSION = "brain.Event:2"
_BLOCK = 1024


@dataclass(frozen=True)
class Content:
    """What event files contain, by their record.

    Attributes:
        made_from: what the points depend on besides the tasks.
        written: tasks whose points are in the files.
        final: the figures of the last evaluation.
        files: the file of each folder.
        sizes: their recorded sizes. What follows was not recorded.
        record_size: size of the whole lines of the record.
        is_ended: whether the end of a start was written after the last task.
    """

    made_from: Mapping[str, Any]
    written: set[str]
    final: dict[str, float]
    files: dict[str, Path]
    sizes: dict[str, int]
    record_size: int
    is_ended: bool


def read_content(folder: Path, names: Sequence[str]) -> Content | None:
    """Read the record of event files, and compare the files with it. None if they do not fit.

    Args:
        folder: `tensorboard/` of the run.
        names: its folders.
    """
    try:
        whole, _, _ = (folder / RECORD).read_bytes().rpartition(b"\n")
        head, *lines = (json.loads(line) for line in whole.split(b"\n"))
        ends: dict[str, tuple[int, int, int]] = {}
        final: dict[str, float] = {}
        for line in (head, *lines):
            for name, (size, checksum) in line["files"].items():
                ends[name] = ends[name][1] if name in ends else 0, int(size), int(checksum)
            final = line.get("final", final)
        found = {name: sorted((folder / name).glob(f"{PREFIX}*")) for name in names}
        files = {name: [path for path in paths if path.suffix != END] for name, paths in found.items()}
        if set(head["files"]) != set(names) or any(len(paths) != 1 for paths in files.values()):
            return None
        if not all(_ends_with(files[name][0], *end) for name, end in ends.items()):
            return None
        return Content(
            made_from=dict(head["made_from"]),
            written={str(line["task"]) for line in lines},
            final=final,
            files={name: paths[0] for name, paths in files.items()},
            sizes={name: size for name, (_, size, _) in ends.items()},
            record_size=len(whole) + 1,
            is_ended=any(path.suffix == END for paths in found.values() for path in paths),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class EventFiles:
    """The event files of one run.

    Attributes:
        written: tasks whose points are in the files.
        final: the figures of the last evaluation, as they were given to `record`.
        is_new: whether the files are empty, because there were none or they were removed.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, made_from: Mapping[str, Any], anew: bool = False) -> None:
        """Continue the files of an earlier start, or begin them.

        Args:
            folder: `tensorboard/` of the run.
            names: its folders: the models and the team.
            made_from: what the points depend on besides the tasks. Files of another value are
                removed.
            anew: remove the files of earlier starts.
        """
        self._folder, self._names = folder, tuple(names)
        self._pending: dict[str, list[bytes]] = {}
        self.written: set[str] = set()
        self.final: dict[str, float] = {}
        for name in names:
            make_folder(folder / name)
        self._remove(f"*{END}")
        self.is_new = anew or not self._continue(made_from)
        if self.is_new:
            self._begin(made_from)

    def add(self, name: str, event: Event) -> None:
        """Add an event to the file of a model or the team. It is written with the next `record`."""
        self._pending.setdefault(name, []).append(framed(event.SerializeToString()))

    def discard(self) -> None:
        """Forget the events since the last `record`, because their task could not be completed."""
        self._pending.clear()

    def record(self, task: str, *, final: Mapping[str, float]) -> None:
        """Write the events since the last call, and then that they are those of this task."""
        line: dict[str, Any] = {"task": task, "files": self._write_pending()}
        if final != self.final:
            line["final"] = self.final = dict(final)
        _append(self._folder / RECORD, _encoded(line))
        self.written.add(task)

    def end(self, name: str, events: Sequence[Event]) -> None:
        """Write events that hold until the next start."""
        content = b"".join(framed(event.SerializeToString()) for event in (_first_event(), *events))
        _append(self._folder / name / f"{_new_name()}{END}", content)

    # --- files -----------------------------------------------------------------------------------

    def _begin(self, made_from: Mapping[str, Any]) -> None:
        """Remove the record first. Without it, no later start continues files that are half removed."""
        (self._folder / RECORD).unlink(missing_ok=True)
        self._remove("*")
        self.written, self.final = set(), {}
        new_name, first = _new_name(), framed(_first_event().SerializeToString())
        self._files = {name: self._folder / name / new_name for name in self._names}
        for path in self._files.values():
            _append(path, first)
        sizes = {name: [len(first), zlib.crc32(first)] for name in self._names}
        self._sizes = dict.fromkeys(self._names, len(first))
        _append(self._folder / RECORD, _encoded({"made_from": made_from, "files": sizes}))

    def _write_pending(self) -> dict[str, tuple[int, int]]:
        """Append the pending events. Returns the new size of each changed file, and the checksum of its end.

        The events are written at the recorded size, so that nothing stays of a write that failed
        before its end.
        """
        changed = {}
        for name, events in self._pending.items():
            content, begin = b"".join(events), self._sizes[name]
            with self._files[name].open("r+b") as f:
                f.truncate(begin)
                f.seek(begin)
                f.write(content)
            changed[name] = begin + len(content), zlib.crc32(content)
        self._sizes |= {name: size for name, (size, _) in changed.items()}
        self._pending.clear()
        return changed

    def _continue(self, made_from: Mapping[str, Any]) -> bool:
        """Take over the files of an earlier start. Returns False when they do not fit.

        A killed controller may have appended events without recording them. They are cut off, and
        the points of their task are written again.
        """
        content = read_content(self._folder, self._names)
        if content is None or content.made_from != made_from:
            return False
        self.written, self.final = content.written, content.final
        self._files, self._sizes = content.files, content.sizes
        try:
            for name, file in self._files.items():
                os.truncate(file, self._sizes[name])
            os.truncate(self._folder / RECORD, content.record_size)
        except OSError:
            return False
        return True

    def _remove(self, pattern: str) -> None:
        for path in self._folder.glob(f"*/{PREFIX}{pattern}"):
            path.unlink()


def _ends_with(path: Path, start: int, size: int, checksum: int) -> bool:
    """Whether the bytes from start to size have this checksum. The file may be longer than size."""
    with path.open("rb") as f:
        f.seek(start)
        content = f.read(size - start)
    return 0 <= start < size and len(content) == size - start and zlib.crc32(content) == checksum


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as f:
        f.write(content)


def _first_event() -> Event:
    """The event with which TensorBoard expects a file to begin."""
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), file_version=_FILE_VERSION)


def _new_name() -> str:
    """A name by which TensorBoard recognizes an event file. Later files have later names."""
    return f"{PREFIX}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"


# --- format --------------------------------------------------------------------------------------


def framed(data: bytes) -> bytes:
    """One record of an event file: length, masked CRC-32C of the length, data, masked CRC-32C of the data.

    This is the TFRecord format. TensorBoard's own writer computes the checksums byte by byte in
    Python, which took most of the controller's time.
    """
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _masked(data: bytes) -> int:
    checksum = crc32c(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4).

    A CRC is linear: that of a block is the XOR of one table entry per byte, selected by the byte
    and its distance from the end. The checksum so far is added to the first four bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    tables, checksum = _tables(), 0xFFFFFFFF
    for begin in range(0, len(data), _BLOCK):
        block = data[begin : begin + _BLOCK]
        first = int.from_bytes(block[:4], "little") ^ (checksum & ((1 << 8 * min(4, len(block))) - 1))
        values = np.frombuffer(first.to_bytes(4, "little")[: len(block)] + block[4:], dtype=np.uint8)
        entries = tables.take(values + _offsets()[_BLOCK - len(block) :])
        checksum = int(np.bitwise_xor.reduce(entries)) ^ (checksum >> 8 * len(block))
    return checksum ^ 0xFFFFFFFF


@functools.cache
def _offsets() -> NDArray[np.int64]:
    """Where the table of a byte begins, [_BLOCK]: the last byte of a block has table 0."""
    return 256 * np.arange(_BLOCK - 1, -1, -1, dtype=np.int64)


@functools.cache
def _tables() -> NDArray[np.uint32]:
    """CRC-32C of one byte followed by k zero bytes, [_BLOCK * 256]; table k begins at 256 * k."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0x82F63B78), table >> np.uint32(1))
    tables = [table.astype(np.uint32)]
    for _ in range(_BLOCK - 1):
        tables.append((tables[-1] >> np.uint32(8)) ^ tables[0][tables[-1] & np.uint32(0xFF)])
    return np.concatenate(tables)
