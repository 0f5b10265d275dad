"""The first Python code of a job: `python -m core_hpc.slurm.job FILE SHA256`.

Outside the job: `write_calls` writes what each element of an array calls into one JSON file, and
returns its checksum, which the batch script passes on. SLURM keeps the script since sbatch has read
it, so nobody else can change the checksum. In the job: `main` reads the file once, refuses it if the
checksum differs, and calls the function with the specification of its element. The file is data:
nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from core_hpc.common.environment import number_in
from core_hpc.common.errors import CoreHpcError
from core_hpc.common.ownership import deny_writing_by_others, user_name
from core_hpc.common.terminal import show_error
from core_hpc.slurm.records import CALLS
from core_hpc.store import manifests

VISIBLE_WAIT_S = 60.0
"""How long a new file may be invisible on the node of the job."""
OWN_PACKAGE = "core_hpc."


class ChangedError(CoreHpcError):
    """What a job should run is not what was submitted."""


def write_calls(folder: Path, calls: Sequence[functools.partial[None]]) -> str:
    """Write what the elements of a job call.

    Args:
        folder: the folder of the submission.
        calls: for each element, the same function of this project with its only argument `spec`, a
            flat dataclass.

    Returns:
        The SHA-256 checksum of the file, in hex digits.
    """
    (function,) = {call.func for call in calls}
    name = f"{function.__module__}:{function.__name__}"
    content = json.dumps({"function": name, "specs": [asdict(call.args[0]) for call in calls]}, indent=1).encode()
    manifests.write_synced(folder / CALLS, content)
    return hashlib.sha256(content).hexdigest()


def read_call(path: Path, checksum: str, index: int) -> tuple[Callable[[Any], None], Any]:
    """The function and the argument of an element.

    Raises:
        ChangedError: the file differs from what was submitted.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content, found = file.read(), os.fstat(file.fileno())
    if hashlib.sha256(content).hexdigest() != checksum:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.st_mtime))
        raise ChangedError(
            f"{path}: was changed after the job was submitted (owner {user_name(found.st_uid)}, mode "
            f"{stat.S_IMODE(found.st_mode):04o}, changed {when}). Nothing of it was run. Find out who may write into "
            "this folder, withdraw that permission (chmod -R go-w), and start the sweep again"
        )
    calls = json.loads(content)
    module, _, name = calls["function"].partition(":")
    assert module.startswith(OWN_PACKAGE), module
    function: Callable[[Any], None] = getattr(importlib.import_module(module), name)
    return function, _spec(get_type_hints(function)["spec"], calls["specs"][index])


def _spec(kind: Any, data: dict[str, Any]) -> Any:
    """A specification from JSON. Fields that this version does not know are ignored."""
    known = {field.name for field in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known})


def _wait_for(path: Path) -> None:
    """Wait until a file is visible. A network file system may hide a file that was looked for too early."""
    deadline = time.monotonic() + VISIBLE_WAIT_S
    while path.name not in manifests.list_names(path.parent) and time.monotonic() < deadline:
        time.sleep(1)


def main(arguments: Sequence[str]) -> int:
    """Run the call of this element, and return the exit status of the job."""
    path, checksum = Path(arguments[0]), arguments[1]
    deny_writing_by_others()
    job, rank, size = (os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "PROCID", "NTASKS"))
    with contextlib.suppress(OSError):  # the log may be on a full disk
        print(f"job {job} on {socket.gethostname()}, rank {rank} of {size}: {path}", flush=True)
    try:
        _wait_for(path)
        function, spec = read_call(path, checksum, number_in("SLURM_ARRAY_TASK_ID") or 0)
        function(spec)
    except CoreHpcError as e:
        with contextlib.suppress(OSError):
            show_error(e)
        return e.exit_code
    except FileNotFoundError as e:
        if e.filename != str(path):
            raise
        show_error(f"{path}: is not there, so its submission was closed or the folder was moved; nothing was run")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
