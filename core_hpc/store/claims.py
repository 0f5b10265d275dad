"""The claim of a controller on a sweep, so that a sweep has one controller at a time.

In: the path of the claim file, which names host, process, user and SLURM job (if any) of its
holder. Out: a `Claim`, with which the holder finds out whether it still has the sweep. A claim
survives a crash of its holder, and it is broken only if the holder is proven dead: it ran on this
host and its process (by machine, boot, id and start) is gone, SLURM reports that its job has ended,
or its job is this one and was requeued since. Publishing is in `manifests.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from core_hpc.common.environment import number_in
from core_hpc.common.errors import ClaimError, ClaimLostError, StoreError
from core_hpc.store.manifest_body import LARGEST
from core_hpc.store.manifests import (
    NO_HARD_LINKS,
    is_same_file,
    link_new,
    make_folder,
    read_json,
    write_synced,
    writer_identity,
)

HasEnded = Callable[[int, str], bool | None]
"""Asks SLURM whether a job of a user has ended. None, or a CoreHpcError, means that SLURM does not know."""


def own_job() -> int | None:
    """The SLURM job that this process runs in, or None.

    A shell of salloc on a login node has the job's id and is outside the job: it may outlive it, for example in tmux.
    slurmd names the node to batch scripts and to tasks of srun only.
    """
    return number_in("SLURM_JOB_ID") if os.environ.get("SLURMD_NODENAME") else None


def _restarts() -> int:
    """How often SLURM has requeued the job of this process."""
    return number_in("SLURM_RESTART_COUNT") or 0


def _process_start(pid: int) -> float | None:
    """When a living process started, in epoch seconds, or None. A zombie is not alive."""
    try:
        process = psutil.Process(pid)
        return None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _start_ticks(pid: int) -> int | None:
    """When a living process started, in clock ticks after the boot, or None for a zombie.

    Raises:
        OSError: /proc does not show the process.
    """
    # The second field is the name of the program in parentheses, and it may contain spaces.
    state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return None if state in "ZXx" else int(fields[18])  # fields 3 (state) and 22 (starttime) of proc(5)


def _boot() -> dict[str, str]:
    """This machine, its boot, and the PID namespace in which this process counts process ids."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"machine": _machine(), "boot_id": boot_id, "pid_namespace": str(Path("/proc/self/ns/pid").readlink())}


def _machine() -> str:
    """A digest of the machine's id, which is confidential (machine-id(5)); empty if it has none."""
    try:
        machine_id = MACHINE_ID.read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(b"core_hpc" + machine_id).hexdigest()[:16] if machine_id else ""


def _own_process() -> dict[str, Any]:
    """What tells this process from all others of this host, in a claim file.

    The start in epoch seconds is for earlier versions, and for systems without /proc. It moves when
    the clock is set, because it is computed from the boot time.
    """
    pid = os.getpid()
    own: dict[str, Any] = {"process_start": _process_start(pid)}
    try:
        return {**own, "start_ticks": _start_ticks(pid), **_boot()}
    except OSError:
        return own


def _is_of_original(path: Path, holder: Mapping[str, Any]) -> bool:
    """Whether a claim is that of another folder, which still exists: this folder is a copy of it."""
    folder = holder.get("folder")
    return isinstance(folder, str) and Path(folder).is_dir() and not is_same_file(Path(folder), path.parent)


def describe_holder(holder: Mapping[str, Any]) -> str:
    """Describe the holder of a claim for a message."""
    job = f", SLURM job {holder['job']}" if holder.get("job") else ""
    return f"host {holder['host']}, process {holder['pid']}{job}, user {holder['user']}"


MACHINE_ID = Path("/etc/machine-id")
AWAY_S = 2.0
"""A claim file that is away for longer was removed."""
LARGEST_PID = 2**31
"""Every process id of a claim is smaller. Other numbers are smaller than LARGEST."""
_FIELDS: dict[str, type | tuple[type, ...]] = {"host": str, "pid": int, "user": str, "time": (int, float)}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "job": int,
    "restarts": int,
    "start_ticks": int,
    "process_start": (int, float),
    "machine": str,
    "boot_id": str,
    "pid_namespace": str,
    "token": str,
    "folder": str,
}


def read_holder(path: Path) -> dict[str, Any] | None:
    """The holder of a claim; None if there is no claim, or if the file came with a copied folder.

    A copied folder contains the claim of the controller that works on the original.

    Raises:
        StoreError: The file cannot be read, or is not a claim.
    """
    try:
        holder = _read(path)
    except StoreError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            return None
        raise
    return None if _is_of_original(path, holder) else holder


def _read(path: Path) -> dict[str, Any]:
    """Read a claim. StoreError if the file does not exist, cannot be read, or is not a claim."""
    holder = read_json(path)
    if not isinstance(holder, dict):
        raise StoreError(f"{path}: is not a claim (it holds no JSON object)")
    optional = {name: kind for name, kind in _OPTIONAL.items() if holder.get(name) is not None}
    wanted = {**_FIELDS, **optional, **({"boot_id": str, "pid_namespace": str} if "start_ticks" in optional else {})}
    for name, kind in wanted.items():
        value = holder.get(name)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise StoreError(f"{path}: is not a claim (its field {name!r} is {str(value)[:40]!r})")
        if isinstance(value, int | float) and not 0 <= value < (LARGEST_PID if name == "pid" else LARGEST):
            raise StoreError(f"{path}: is not a claim (its field {name!r} is {str(value)[:40]})")
    return holder


def holder_lives(holder: Mapping[str, Any], has_ended: HasEnded | None) -> bool | None:
    """Whether the holder of a claim is alive.

    Returns:
        None if neither can be proven: the holder is on another host or in another container, or its
        process is hidden, and it has no job or SLURM does not know the job.
    """
    lives = _lives_here(holder) if holder["host"] == socket.gethostname() else None
    if lives is not None or holder.get("job") is None or has_ended is None:
        return lives
    ended = has_ended(holder["job"], holder["user"])
    return None if ended is None else not ended


def _lives_here(holder: Mapping[str, Any]) -> bool | None:
    """Whether the process of a holder on this host is alive. None if this process cannot see it."""
    pid = holder["pid"]
    if holder.get("start_ticks") is None:  # a claim of an earlier version, or a system without /proc
        started, recorded = _process_start(pid), holder.get("process_start")
        return started is not None and (recorded is None or abs(started - recorded) < 1.0)
    boot = _boot()
    if holder["boot_id"] != boot["boot_id"]:
        # Another machine or container may have the same name. A claim of an earlier version names no machine.
        return False if holder.get("machine") in (None, boot["machine"]) else None
    if holder["pid_namespace"] != boot["pid_namespace"]:
        return None
    try:
        # If the starts differ, another process has the same id now.
        return _start_ticks(pid) == int(holder["start_ticks"])
    except OSError:
        return None if _is_hidden(pid) else False


def _is_hidden(pid: int) -> bool:
    """Whether a process exists that /proc does not show, as with its mount option hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # of another user
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class Claim:
    """A claim that this process has taken."""

    path: Path
    content: Mapping[str, Any]

    def require(self) -> str:
        """Check that this process still holds the claim. Call it before work that only a holder may do.

        A file system that does not answer proves nothing, so the holder continues.

        Returns:
            The token of the claim. No other claim has it, so a record with it shows who wrote it.

        Raises:
            ClaimLostError: The claim was removed, or another controller has it.
        """
        try:
            found = json.loads(self._content())
        except FileNotFoundError:
            self._raise_lost("its claim was removed")
        except OSError:
            found = self.content
        except (ValueError, RecursionError):
            self._raise_lost("its claim was overwritten")
        if found != self.content:
            self._raise_lost(self._who())
        return str(self.content["token"])

    def _content(self) -> bytes:
        """The content of the claim file. Another start may take it away for a moment (`_break_dead_claim`)."""
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return self.path.read_bytes()
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(AWAY_S / 20)

    def _who(self) -> str:
        try:
            return f"another controller has taken the sweep ({describe_holder(_read(self.path))})"
        except StoreError:
            return "its claim was overwritten"

    def _raise_lost(self, why: str) -> NoReturn:
        raise ClaimLostError(
            f"{self.path}: {why}, so this controller stops and changes nothing more. Jobs that it submitted continue, "
            "and the controller that holds the sweep takes them over"
        )

    def release(self) -> None:
        """Remove the claim file if it is still this claim."""
        with contextlib.suppress(OSError, ValueError, RecursionError):  # an error that ends the holder goes first
            if json.loads(self._content()) == self.content:
                self.path.unlink()


@contextmanager
def claim(path: Path, *, has_ended: HasEnded | None = None) -> Iterator[Claim]:
    """Hold the claim file while the block runs.

    Args:
        path: The claim file of the sweep.
        has_ended: Asks SLURM about the job of a holder on another host.

    Raises:
        ClaimError: Another controller holds the claim. The message names it.
    """
    make_folder(path.parent)
    token = uuid.uuid4().hex
    mine = {**writer_identity(), **_own_process(), "job": own_job(), "restarts": _restarts(), "token": token}
    mine["folder"] = str(path.parent.absolute())
    temporary = path.with_name(f".{path.name}.{token[:8]}.tmp")
    write_synced(temporary, json.dumps(mine, indent=1).encode())
    try:
        for _ in range(2):
            try:
                link_new(temporary, path)
                break
            except FileExistsError:
                _break_dead_claim(path, mine, has_ended)
            except OSError as e:
                if e.errno not in NO_HARD_LINKS:
                    raise
                raise ClaimError(
                    f"{path}: this file system has no hard links ({e.strerror}), and without them two controllers "
                    "could work on one sweep. Set `output` to a folder on another file system"
                ) from e
        else:
            raise ClaimError(f"{path}: another controller has just taken this sweep; start again when it has ended")
    finally:
        temporary.unlink(missing_ok=True)
    held = Claim(path, mine)
    try:
        yield held
    finally:
        held.release()


def _break_dead_claim(path: Path, mine: Mapping[str, Any], has_ended: HasEnded | None) -> None:
    """Remove the claim file if its holder is dead. ClaimError otherwise."""
    try:
        holder = _read(path)
    except StoreError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            return
        raise ClaimError(f"{e}. If no controller of this sweep is running, remove this file") from e
    who = describe_holder(holder)
    if not _was_requeued(holder, mine) and not _is_of_original(path, holder):
        lives = holder_lives(holder, has_ended)
        if lives:
            raise ClaimError(
                f"{path}: another controller is running this sweep ({who}). Wait for it, or stop it: "
                "python -m core_hpc.cancel"
            )
        if lives is None:
            raise ClaimError(
                f"{path}: this sweep is claimed by a controller on another machine or in another container ({who}). "
                "Look there, or stop it: python -m core_hpc.cancel. Remove this file only if you are sure that the "
                "process is dead"
            )
    # Two controllers may see the same dead claim. Only one of them can rename it and remove it.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.dead")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if read_json(aside) != holder:  # another controller has claimed the sweep meanwhile: undo
        with contextlib.suppress(FileExistsError):  # a third one has claimed it; the second will notice
            os.link(aside, path)
    aside.unlink()


def _was_requeued(holder: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the holder is an earlier execution of the job that this process runs in.

    Two processes of one execution, as in two terminals of an allocation, are two controllers.
    """
    if mine["job"] is None or holder.get("job") != mine["job"]:
        return False
    if holder.get("restarts") is None:  # a claim of an earlier version: only its host can tell
        return bool(holder["host"] != mine["host"])
    return bool(holder["restarts"] < mine["restarts"])
