"""The claim of a controller on a sweep: never two at once, and never lost to a crash.

In: the path of the claim file. The claim names host, process and user; it is broken only on proof of death: same
host, and that process (by id and start time) is gone. What is published is store.py's.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from core_hpc.errors import ClaimError, StoreError
from core_hpc.store import make_folder, read_json, write_synced, writer_identity


def _process_start(pid: int) -> float | None:
    """When a living process started; None when there is none. A killed process that nobody waited for is dead, too."""
    try:
        process = psutil.Process(pid)
        return None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else process.create_time()
    except psutil.NoSuchProcess:
        return None


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Hold the claim file while the block runs; ClaimError names the holder when another controller has it.

    A claim is broken only on proof of death: same host, and that process (by id and start time) is gone.
    """
    make_folder(path.parent)
    mine = {**writer_identity(), "process_start": _process_start(os.getpid())}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    write_synced(temporary, json.dumps(mine, indent=1).encode())
    try:
        for _ in range(2):
            try:
                os.link(temporary, path)
                break
            except FileExistsError:
                _break_dead_claim(path)
        else:
            raise ClaimError(f"{path}: another controller took this sweep just now; start again when it has ended")
    finally:
        temporary.unlink(missing_ok=True)
    try:
        yield
    finally:
        if read_json(path) == mine:
            path.unlink()


def _break_dead_claim(path: Path) -> None:
    try:
        holder = read_json(path)
    except StoreError as e:
        if not path.exists():
            return
        raise ClaimError(f"{path}: unreadable claim. If no controller of this sweep runs, remove this file") from e
    who = f"host {holder['host']}, process {holder['pid']}, user {holder['user']}"
    if holder["host"] != socket.gethostname():
        raise ClaimError(
            f"{path}: this sweep is being run from {who}. Look there; only if that process is surely dead, remove this file"
        )
    started = _process_start(holder["pid"])
    if started is not None and abs(started - holder["process_start"]) < 1.0:
        raise ClaimError(f"{path}: this sweep is already being run ({who}). Wait for it, or stop that process first")
    # Two controllers may see the same dead claim: moving it to a unique name lets exactly one of them remove it.
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.dead")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    if read_json(grave) != holder:  # it was a newer, living claim: give it back
        os.link(grave, path)
    grave.unlink()
