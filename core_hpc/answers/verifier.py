r"""Verdicts on extracted answers: by notation, or by algebra in processes with a time limit.

In: (answer, gold answer, kind). Out: correct, wrong, no_answer or timeout
(`store.schema.VERDICTS`). A verdict depends only on the answer and the gold answer. It does not
depend on the batch, its order or the load of the machine, because the limit is CPU time. The only
exception is a batch with so many comparisons at the limit that its budget (`TIMEOUT_BUDGET_S`) is
spent. The worker processes start when the first claim needs algebra. `symbolic.py` contains the
algebra.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from core_hpc.answers import symbolic
from core_hpc.answers.kinds import answer_kind
from core_hpc.answers.latex import clean_latex
from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.pools import MAX_POOLS, WALL_FACTOR, default_num_workers, require_guard, start_pool, stop_pool
from core_hpc.store.schema import CORRECT, NO_ANSWER, TIMEOUT, WRONG

if TYPE_CHECKING:
    from pebble import ProcessPool

Claim = tuple[str | None, str, str]
"""(extracted answer, gold answer, answer kind)"""
_Pair = tuple[str, str]

CPU_LIMIT_S = 5.0
"""CPU time limit of one comparison; a typical comparison takes 5 ms."""
TIMEOUT_BUDGET_S = 300.0
"""CPU time that the comparisons of one call may lose at their limit (60 of them at 5 s).

A task of a few thousand completions has a handful of such comparisons. A model that writes a
different endless expression each time would otherwise stop a task for hours: 1,000 of them take
5,000 CPU seconds.
"""
MEMORY_GB = 2.0
_MAX_CACHED = 100_000
_HARMLESS = ("1", "2")

_logger = logging.getLogger(__name__)


class Verifier:
    """Makes verdicts; holds the worker processes for algebra and a cache of their results."""

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        cpu_limit_s: float = CPU_LIMIT_S,
        timeout_budget_s: float = TIMEOUT_BUDGET_S,
    ) -> None:
        """By default there are `default_num_workers()` workers."""
        self._timeout_budget_s = timeout_budget_s
        self._num_timeouts = 0  # comparisons of this call that ended at a limit
        self.num_not_compared = 0
        """Comparisons that were not made because the budget of their call was spent."""
        self._num_workers = num_workers or default_num_workers()
        self._cpu_limit_s = cpu_limit_s
        self._cache: dict[_Pair, str] = {}
        self._pool: ProcessPool | None = None

    def verify_many(self, claims: Sequence[Claim]) -> list[str]:
        """The verdict on each claim, in order.

        When the comparisons at the time limit have used `TIMEOUT_BUDGET_S`, the comparisons that
        are left get the verdict timeout. Their number is logged, and a later call makes them.

        Raises:
            ValueError: a gold answer is not of its kind; this is an error in the problem data.
            InputError: a script without `if __name__ == "__main__":` calls verification.
            CoreHpcError: the worker processes cannot be started.
        """
        verdicts = [_verdict_by_notation(claim) for claim in claims]
        _compare_by_own_functions(claims, verdicts)
        pairs = {
            i: (clean_latex(answer or ""), gold)
            for i, ((answer, gold, _), verdict) in enumerate(zip(claims, verdicts, strict=True))
            if verdict is None
        }
        decided = {pair: self._cache[pair] for pair in pairs.values() if pair in self._cache}
        decided |= self._decide(list(dict.fromkeys(pair for pair in pairs.values() if pair not in decided)))
        return [decided[pairs[i]] if verdict is None else verdict for i, verdict in enumerate(verdicts)]

    def close(self) -> None:
        """End the worker processes; a later claim starts new ones."""
        if self._pool is not None:
            stop_pool(self._pool)
            self._pool = None

    def _decide(self, pairs: list[_Pair]) -> dict[_Pair, str]:
        """Verdicts by algebra. A broken pool (a signal, no memory) is replaced a few times."""
        verdicts: dict[_Pair, str] = {}
        self._num_timeouts = 0
        for _ in range(MAX_POOLS):
            missing = [pair for pair in pairs if pair not in verdicts]
            if not missing or self._budget_is_spent():
                break
            verdicts |= self._compare(missing)
            if not verdicts:
                require_guard("verification")
        else:
            if not self._compare([_HARMLESS]):
                raise CoreHpcError(
                    "verification: the worker processes end before they return a result. Each of the "
                    f"{self._num_workers} processes needs up to {MEMORY_GB:g} GB of address space (see ulimit -v); "
                    "their last output is in the log of this process"
                )
            # A harmless pair works, so these pairs are what ends the workers.
            verdicts |= {pair: TIMEOUT for pair in pairs if pair not in verdicts}
        self._cache |= verdicts
        for pair in list(self._cache)[: max(0, len(self._cache) - _MAX_CACHED)]:
            del self._cache[pair]
        left = [pair for pair in pairs if pair not in verdicts]
        if left:
            self.num_not_compared += len(left)
            _logger.warning(
                "verification: %d comparisons ended at their limit of %g s of CPU time, which uses up the budget of "
                "%g s per call. The other %d comparisons of this call were not made; their verdict is timeout",
                self._num_timeouts,
                self._cpu_limit_s,
                self._timeout_budget_s,
                len(left),
            )
        return verdicts | dict.fromkeys(left, TIMEOUT)

    def _budget_is_spent(self) -> bool:
        return self._num_timeouts * self._cpu_limit_s >= self._timeout_budget_s

    def _compare(self, pairs: list[_Pair]) -> dict[_Pair, str]:
        """Verdicts on the pairs; only on some of them if the pool breaks, which is then closed."""
        from pebble import ProcessExpired

        verdicts: dict[_Pair, str] = {}
        wall_s = WALL_FACTOR * self._cpu_limit_s
        try:
            pool = self._running_pool()
            futures = [
                pool.schedule(symbolic.equal_within, args=[*pair, self._cpu_limit_s], timeout=wall_s) for pair in pairs
            ]
            for pair, future in zip(pairs, futures, strict=True):
                # In the order of the pairs, so that the verdicts do not depend on the speed of the workers.
                if self._budget_is_spent():
                    future.cancel()  # type: ignore[no-untyped-call]  # pebble has no annotation here
                    continue
                try:
                    verdicts[pair] = CORRECT if future.result() else WRONG
                except (TimeoutError, ProcessExpired, MemoryError):
                    verdicts[pair] = TIMEOUT
                    self._num_timeouts += 1
        except (BrokenProcessPool, RuntimeError):
            self.close()
        return verdicts

    def _running_pool(self) -> ProcessPool:
        if self._pool is None:
            require_algebra()
            self._pool = start_pool(
                what="verification",
                num_workers=self._num_workers,
                initializer=symbolic.initialise_worker,
                initargs=[MEMORY_GB],
            )
        return self._pool


def _compare_by_own_functions(claims: Sequence[Claim], verdicts: list[str | None]) -> None:
    """Add the verdicts on answers of kinds with a `compare_many`."""
    by_kind: dict[str, list[int]] = {}
    for i, (claim, verdict) in enumerate(zip(claims, verdicts, strict=True)):
        if verdict is None and answer_kind(claim[2]).compare_many is not None:
            by_kind.setdefault(claim[2], []).append(i)
    for kind, rows in by_kind.items():
        rules = answer_kind(kind)
        assert rules.compare_many is not None
        pairs = [(claims[i][0] or "", rules.gold(claims[i][1]) or "") for i in rows]
        for i, verdict in zip(rows, rules.compare_many(pairs), strict=True):
            verdicts[i] = verdict


def _verdict_by_notation(claim: Claim) -> str | None:
    """The verdict on a claim, or None if algebra is needed."""
    answer, gold, kind = claim
    rules = answer_kind(kind)
    expected = rules.gold(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold[:80]!r} is not of the kind {kind}; correct the problem data")
    if answer is None or not answer.strip():
        return NO_ANSWER
    return rules.compare(answer, expected)


def require_algebra() -> None:
    """Raise InputError unless the package for answers of the kind `latex` is installed."""
    if find_spec("math_verify") is None:
        raise InputError("answer_kind latex needs math-verify; run: pip install 'core_hpc[latex]'")


@cache
def _shared() -> Verifier:
    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier


def verify_many(claims: Sequence[Claim]) -> list[str]:
    """Verdicts by the shared `Verifier` of this process; see `Verifier.verify_many`.

    >>> verify_many([("0.750", "3/4", "number"), ("0.7501", "3/4", "number"), (None, "3/4", "number")])
    ['correct', 'wrong', 'no_answer']
    >>> verify_many([("(b)", "B", "letter")])
    ['correct']
    """
    return _shared().verify_many(claims)


def verify(answer: str | None, gold: str, kind: str) -> str:
    """The verdict on one answer; `verify_many` is faster for several answers.

    >>> verify("x = 1/2", "0.5", "latex")
    'correct'
    """
    return verify_many([(answer, gold, kind)])[0]
