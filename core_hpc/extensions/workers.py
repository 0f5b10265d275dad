"""Calls functions of users in worker processes that are killed at a time limit.

In: references of functions, arguments and options. Out: results as plain data, in order. A function
that raises an error becomes an `ExtensionError` that names the line of the user's file. One that does
not return in time, or that ends its process, is killed. Results depend on the arguments only: the
processes have a fixed hash seed, and the global random streams of Python and NumPy begin anew in
every call. `child.py` runs in the processes.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import CoreHpcError, ExtensionAttemptError, ExtensionError
from core_hpc.common.pools import MAX_POOLS, WALL_FACTOR, default_num_workers, require_guard, start_pool, stop_pool
from core_hpc.extensions import child
from core_hpc.extensions.sources import function_name, source_of

if TYPE_CHECKING:
    from pebble import ProcessPool

TIME_LIMIT_S = 60.0
"""Wall-clock limit of one call, unless the configuration sets another one."""
KILL_AFTER_S = 5.0
"""A call that does not end at its limit, for example in native code, is killed so much later."""
TIMED_OUT = object()
"""The result of a call that reached its limit of CPU time."""


class FunctionWorkers:
    """The worker processes, which start at the first call."""

    def __init__(self, *, num_workers: int | None = None) -> None:
        self._num_workers = num_workers or default_num_workers()
        self._pool: ProcessPool | None = None

    def call_many(
        self,
        reference: str,
        point: str,
        calls: Sequence[tuple[Any, ...]],
        options: Mapping[str, Any],
        *,
        limit_s: float = TIME_LIMIT_S,
        of_cpu_time: bool = False,
    ) -> list[Any]:
        """Call a function once per element of `calls`.

        Args:
            reference: the function, with the digest of its source.
            point: name of its extension point.
            calls: the positional arguments of each call.
            options: keyword arguments of every call.
            limit_s: limit of one call, in seconds.
            of_cpu_time: the limit is CPU time, and a call that reaches it has the result `TIMED_OUT`;
                otherwise the limit is wall-clock time, and it is an error to reach it.

        Raises:
            ExtensionError: the function failed, and would fail again.
            ExtensionAttemptError: it did not return in time, or could not read something (OSError).
            CoreHpcError: the processes do not start.
        """
        if not calls:
            return []
        source, name = source_of(reference), function_name(reference)
        wanted = [child.Call(source, name, point, arguments, options, limit_s, of_cpu_time) for arguments in calls]
        results: list[Any] = []
        for _ in range(MAX_POOLS):
            try:
                self._run(wanted, results)
            except (BrokenProcessPool, RuntimeError):
                self.close()
                require_guard("functions of the user")
            else:
                return results
        raise CoreHpcError(
            f"{source.path}: the worker processes for {name} end before they return a result; their last output is in "
            "the log of this process"
        )

    def _run(self, wanted: Sequence[child.Call], results: list[Any]) -> None:
        """Append the results of the calls that have none yet. The first failure is raised."""
        from pebble import ProcessExpired

        pool = self._running_pool()
        left = wanted[len(results) :]
        futures = [pool.schedule(child.run, args=[call], timeout=_kill_after(call)) for call in left]
        try:
            for call, future in zip(left, futures, strict=True):
                where = f"{call.source.path}: {call.function}"
                try:
                    result = future.result()
                except TimeoutError as e:
                    if call.of_cpu_time:
                        results.append(TIMED_OUT)
                        continue
                    message = f"{where} did not return within {call.limit_s:g} s and was killed"
                    message += child.called_with(call)
                    raise ExtensionAttemptError(message) from e
                except ProcessExpired as e:
                    raise ExtensionError(
                        f"{where} ended its process (exit status {e.exitcode}), perhaps for lack of memory"
                        + child.called_with(call)
                    ) from e
                if isinstance(result, child.Failure) and result.timed_out and call.of_cpu_time:
                    result = TIMED_OUT
                if isinstance(result, child.Failure):
                    raise (ExtensionAttemptError if result.is_temporary else ExtensionError)(result.message)
                results.append(result)
        except CoreHpcError:
            for future in futures:
                future.cancel()  # type: ignore[no-untyped-call]  # pebble has no annotation here
            raise

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        if self._pool is not None:
            stop_pool(self._pool)
            self._pool = None

    def _running_pool(self) -> ProcessPool:
        if self._pool is None:
            self._pool = start_pool(
                what="functions of the user",
                num_workers=self._num_workers,
                initializer=child.initialise_worker,
            )
        return self._pool


def _kill_after(call: child.Call) -> float:
    """Seconds of wall-clock time after which the process of a call is killed."""
    return call.limit_s * (WALL_FACTOR if call.of_cpu_time else 1) + KILL_AFTER_S


@cache
def shared_workers() -> FunctionWorkers:
    """The workers of this process."""
    workers = FunctionWorkers()
    atexit.register(workers.close)
    return workers
