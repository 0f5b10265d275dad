"""Pools of worker processes that can be killed: for work that may hang, explode or end its process.

In: limits. Out: a running pool of pebble, whose tasks are killed at their timeout. The processes start
from a fork server without threads, which has loaded what most of them need. What the processes run is
the caller's matter (`answers/verifier.py`, `extensions/workers.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import InputError

if TYPE_CHECKING:
    from pebble import ProcessPool

MAX_WORKERS = 4
TASKS_PER_WORKER = 1000
"""A process is replaced after so many tasks."""
MAX_POOLS = 3
"""Pools that are started, one after the other, before a caller gives up."""
WALL_FACTOR = 12
"""The wall-clock limit of a task with a limit of CPU time is this multiple of it."""
# The fork server has no threads and has loaded sympy, so forking a worker is safe and takes milliseconds.
_PRELOADED = ["math_verify", "core_hpc.answers.symbolic"]
# A fixed hash seed orders sets of strings equally in every process. Warnings would report the
# semaphores that a killed process leaves behind.
_WORKER_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}


def default_num_workers() -> int:
    """One worker per CPU of this process, up to `MAX_WORKERS`."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


def start_pool(
    *, what: str, num_workers: int, initializer: Callable[..., None], initargs: Sequence[Any] = ()
) -> ProcessPool:
    """Start a pool.

    Args:
        what: the work, for messages.
        num_workers: number of processes.
        initializer: called once per process with `initargs`.
        initargs: its arguments.

    Raises:
        BrokenProcessPool: the processes did not start.
        InputError: a script without `if __name__ == "__main__":` started this process.
    """
    # True while multiprocessing imports the main script in a new process.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(f"{what}: a worker process ran the script again, {_GUARD_ADVICE.format(what=what)}")
    from pebble import ProcessPool

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    pool = ProcessPool(
        max_workers=num_workers,
        max_tasks=TASKS_PER_WORKER,
        initializer=initializer,
        initargs=list(initargs),
        context=context,
    )
    with _environment(_WORKER_ENVIRONMENT):
        if not pool.active:  # reading this property starts the pool
            raise BrokenProcessPool("did not start")
    return pool


def stop_pool(pool: ProcessPool) -> None:
    """End the processes of a pool."""
    pool.stop()  # type: ignore[no-untyped-call]  # pebble has no annotation here
    pool.join()


_GUARD_ADVICE = 'because the script calls {what} while it is imported; put the calls under `if __name__ == "__main__":`'


def require_guard(what: str) -> None:
    """Raise InputError if the main script has no `__name__` check, so that each worker runs it."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        source = Path(script).read_text(encoding="utf-8", errors="replace") if script else "__name__"
    except OSError:
        return
    if "__name__" not in source:
        raise InputError(
            f"{what}: each worker process ran the script {script} again, {_GUARD_ADVICE.format(what=what)}"
        )


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started within the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
