r"""Verdicts on extracted answers: at once where notation decides, else by algebra in worker processes with a deadline.

In: (answer, gold answer, kind). Out: correct, wrong, no_answer or timeout (core_hpc.store.schema). A verdict depends on its answer
and gold answer alone: not on the batch, its order, or how busy the machine is, since the limit is one of processor time.
The processes are started when the first question needs algebra, and never for other kinds. What they compute is symbolic.py's.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from core_hpc.answers import symbolic
from core_hpc.answers.kinds import answer_kind
from core_hpc.answers.latex import clean_latex
from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.store.schema import CORRECT, NO_ANSWER, TIMEOUT, WRONG

if TYPE_CHECKING:
    from pebble import ProcessPool

Claim = tuple[str | None, str, str]
"""(extracted answer, gold answer, answer kind)"""
_Pair = tuple[str, str]

CPU_LIMIT_S = 5.0
"""Processor time of one comparison; a usual one takes 5 ms."""
WALL_FACTOR = 12
"""A comparison that got so little of a processor that it takes so many times its limit is ended as well."""
MEMORY_GB = 2.0
MAX_WORKERS = 4
_TASKS_PER_WORKER = 1000
_MAX_CACHED = 100_000
_MAX_POOLS = 3
_HARMLESS = ("1", "2")
# Sets of texts in the same order in every process, and no words about semaphores when a killed process leaves some.
_WORKER_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}


class Verifier:
    """Verdicts, a cache of those that needed algebra, and the processes which do it."""

    def __init__(self, *, num_workers: int | None = None, cpu_limit_s: float = CPU_LIMIT_S) -> None:
        """By default as many workers as this process has processors, up to `MAX_WORKERS`."""
        self._num_workers = num_workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._cpu_limit_s = cpu_limit_s
        self._cache: dict[_Pair, str] = {}
        self._pool: ProcessPool | None = None

    def verify_many(self, claims: Sequence[Claim]) -> list[str]:
        """Verdict on each claim.

        Raises:
            ValueError: a gold answer is not of its kind: a mistake in the data, not of the model.
            CoreHpcError: the worker processes cannot be started.
        """
        verdicts = [_at_once(claim) for claim in claims]
        pairs = {
            i: (clean_latex(answer or ""), gold)
            for i, ((answer, gold, _), verdict) in enumerate(zip(claims, verdicts, strict=True))
            if verdict is None
        }
        decided = {pair: self._cache[pair] for pair in pairs.values() if pair in self._cache}
        decided |= self._decide(list(dict.fromkeys(pair for pair in pairs.values() if pair not in decided)))
        return [decided[pairs[i]] if verdict is None else verdict for i, verdict in enumerate(verdicts)]

    def close(self) -> None:
        """End the worker processes; a later question starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _decide(self, pairs: list[_Pair]) -> dict[_Pair, str]:
        """Verdicts by algebra. A pool that broke (a signal, no memory) is replaced a few times."""
        verdicts: dict[_Pair, str] = {}
        for _ in range(_MAX_POOLS):
            missing = [pair for pair in pairs if pair not in verdicts]
            if not missing:
                break
            verdicts |= self._ask(missing)
        else:
            if not self._ask([_HARMLESS]):
                raise CoreHpcError(
                    f"verification: its worker processes end before they answer; {self._num_workers} of them need up to "
                    f"{MEMORY_GB:g} GB of address space each (see ulimit -v), and what they said last is in this process's log"
                )
            verdicts |= {pair: TIMEOUT for pair in pairs if pair not in verdicts}  # so it is these that end them
        self._cache |= verdicts
        for pair in list(self._cache)[: max(0, len(self._cache) - _MAX_CACHED)]:
            del self._cache[pair]
        return verdicts

    def _ask(self, pairs: list[_Pair]) -> dict[_Pair, str]:
        """Verdicts on those pairs that were answered before the pool broke, if it did (then it is closed)."""
        from pebble import ProcessExpired

        verdicts: dict[_Pair, str] = {}
        wall_s = WALL_FACTOR * self._cpu_limit_s
        try:
            pool = self._running_pool()
            asked = [
                pool.schedule(symbolic.equal_within, args=[*pair, self._cpu_limit_s], timeout=wall_s) for pair in pairs
            ]
            for pair, future in zip(pairs, asked, strict=True):
                try:
                    verdicts[pair] = CORRECT if future.result() else WRONG
                except (TimeoutError, ProcessExpired, MemoryError):
                    verdicts[pair] = TIMEOUT
        except (BrokenProcessPool, RuntimeError):
            self.close()
        return verdicts

    def _running_pool(self) -> ProcessPool:
        if self._pool is None:
            require_algebra()
            from pebble import ProcessPool

            # A server without threads, in which sympy is loaded: forking a worker from it is safe and takes milliseconds.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["math_verify", "core_hpc.answers.symbolic"])
            self._pool = ProcessPool(
                max_workers=self._num_workers,
                max_tasks=_TASKS_PER_WORKER,
                initializer=symbolic.initialise_worker,
                initargs=[MEMORY_GB],
                context=context,
            )
            with _environment(_WORKER_ENVIRONMENT):
                if not self._pool.active:  # asking starts it
                    raise BrokenProcessPool("did not start")
        return self._pool


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """What is started within sees these variables."""
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


def _at_once(claim: Claim) -> str | None:
    answer, gold, kind = claim
    rules = answer_kind(kind)
    expected = rules.gold(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold[:80]!r} is not of the kind {kind}; correct the problem data")
    if answer is None or not answer.strip():
        return NO_ANSWER
    return rules.compare(answer, expected)


def require_algebra() -> None:
    """InputError unless the packages that latex answers need are installed."""
    missing = [
        package
        for module, package in (("math_verify", "math-verify"), ("pebble", "pebble"))
        if find_spec(module) is None
    ]
    if missing:
        raise InputError(f"answer_kind latex needs {' and '.join(missing)}; run: pip install 'core_hpc[latex]'")


@cache
def _shared() -> Verifier:
    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier


def verify_many(claims: Sequence[Claim]) -> list[str]:
    """Verdicts by this process's shared `Verifier`; see `Verifier.verify_many`.

    >>> verify_many([("0.750", "3/4", "number"), ("0.7501", "3/4", "number"), (None, "3/4", "number"), ("(b)", "B", "letter")])
    ['correct', 'wrong', 'no_answer', 'correct']
    """
    return _shared().verify_many(claims)


def verify(answer: str | None, gold: str, kind: str) -> str:
    """Verdict on one answer; `verify_many` is faster for several.

    >>> verify("x = 1/2", "0.5", "latex")
    'correct'
    """
    return verify_many([(answer, gold, kind)])[0]
