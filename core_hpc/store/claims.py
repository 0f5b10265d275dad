"""The claim of a controller on a sweep: never two at once, and never lost to a crash.

In: the path of the claim file. The claim names host, process, user and (inside one) SLURM job; it is broken only on
proof of death: same host and that process (by id and start time) is gone, or SLURM says that its job has ended. What is
published is store.py's.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from core_hpc.common.errors import ClaimError, StoreError
from core_hpc.store.manifests import make_folder, read_json, write_synced, writer_identity

HasEnded = Callable[[int], bool | None]
"""Whether SLURM says that a job has ended; None, or a CoreHpcError, when it says nothing."""


def own_job() -> int | None:
    """The SLURM job that this process runs in; None outside."""
    job = os.environ.get("SLURM_JOB_ID")
    return int(job) if job else None


def _process_start(pid: int) -> float | None:
    """When a living process started; None when there is none. A killed process that nobody waited for is dead, too."""
    try:
        process = psutil.Process(pid)
        return None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else process.create_time()
    except psutil.NoSuchProcess:
        return None


def describe_holder(holder: dict[str, Any]) -> str:
    """Who holds a claim, in words."""
    job = f", SLURM job {holder['job']}" if holder.get("job") else ""
    return f"host {holder['host']}, process {holder['pid']}{job}, user {holder['user']}"


def holder_lives(holder: Mapping[str, Any], has_ended: HasEnded | None) -> bool | None:
    """Whether the holder of a claim lives; None when neither can be proven: another host, and no job or no word of SLURM."""
    if holder["host"] == socket.gethostname():
        started = _process_start(holder["pid"])  # of another process with the same id if the times differ
        return started is not None and abs(started - holder["process_start"]) < 1.0
    if holder.get("job") is None or has_ended is None:
        return None
    ended = has_ended(holder["job"])
    return None if ended is None else not ended


@contextmanager
def claim(path: Path, *, has_ended: HasEnded | None = None) -> Iterator[None]:
    """Hold the claim file while the block runs; ClaimError names the holder when another controller has it.

    `has_ended` asks SLURM about the job of a holder on another host.
    """
    make_folder(path.parent)
    mine = {**writer_identity(), "process_start": _process_start(os.getpid()), "job": own_job()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    write_synced(temporary, json.dumps(mine, indent=1).encode())
    try:
        for _ in range(2):
            try:
                os.link(temporary, path)
                break
            except FileExistsError:
                _break_dead_claim(path, mine["job"], has_ended)
        else:
            raise ClaimError(f"{path}: another controller took this sweep just now; start again when it has ended")
    finally:
        temporary.unlink(missing_ok=True)
    try:
        yield
    finally:
        if path.exists() and read_json(path) == mine:
            path.unlink()


def _break_dead_claim(path: Path, my_job: int | None, has_ended: HasEnded | None) -> None:
    try:
        holder = read_json(path)
    except StoreError as e:
        if not path.exists():
            return
        raise ClaimError(f"{path}: unreadable claim. If no controller of this sweep runs, remove this file") from e
    who = describe_holder(holder)
    mine = my_job is not None and holder.get("job") == my_job and holder["pid"] != os.getpid()
    if not mine:  # else of an earlier life of this job, which SLURM has put back into the queue
        lives = holder_lives(holder, has_ended)
        if lives:
            raise ClaimError(
                f"{path}: this sweep is already being run ({who}). Wait for it, or stop it: python -m core_hpc.cancel"
            )
        if lives is None:
            raise ClaimError(
                f"{path}: this sweep is being run from {who}. Look there, or stop it: python -m core_hpc.cancel; "
                "only if that process is surely dead, remove this file"
            )
    # Two controllers may see the same dead claim: moving it to a unique name lets exactly one of them remove it.
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.dead")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    if read_json(grave) != holder:  # it was a newer, living claim: give it back
        os.link(grave, path)
    grave.unlink()
