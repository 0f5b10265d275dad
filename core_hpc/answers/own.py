"""Kinds of answers of the user: from three functions in a file to an `AnswerKind`.

In: the section `problems.answer_kinds`. Out: kinds for `kinds.own_kinds`. The functions get text of
models, so they run in worker processes (`extensions/workers.py`). A comparison has a limit of CPU
time, as in `verifier.py`, so its verdict does not depend on the load of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from core_hpc.answers.kinds import AnswerKind, first_sentence
from core_hpc.answers.verifier import CPU_LIMIT_S
from core_hpc.config.problems import OwnAnswerKind
from core_hpc.extensions.workers import TIME_LIMIT_S, TIMED_OUT, shared_workers
from core_hpc.store.schema import CORRECT, TIMEOUT, WRONG

_MAX_CACHED = 10_000


def kinds_of(section: Mapping[str, OwnAnswerKind], *, limit_s: float = TIME_LIMIT_S) -> dict[str, AnswerKind]:
    """The kinds of a run by name.

    Args:
        section: `problems.answer_kinds`.
        limit_s: wall-clock limit of a call of `normalize` or `extract`, in seconds.
    """
    return {name: _kind(own.normalize, own.extract, own.verify, limit_s) for name, own in section.items()}


@lru_cache(maxsize=16)
def _kind(normalize: str, extract: str | None, verify: str | None, limit_s: float) -> AnswerKind:
    @lru_cache(maxsize=_MAX_CACHED)
    def canonical(text: str) -> str | None:
        return _text(normalize, "answer_normalize", text, limit_s)

    def compare_many(pairs: Sequence[tuple[str, str]]) -> list[str]:
        assert verify is not None
        different = list(dict.fromkeys(pairs))
        results = shared_workers().call_many(
            verify, "answer_verify", different, {}, limit_s=CPU_LIMIT_S, of_cpu_time=True
        )
        verdicts = {
            pair: TIMEOUT if result is TIMED_OUT else CORRECT if result else WRONG
            for pair, result in zip(different, results, strict=True)
        }
        return [verdicts[pair] for pair in pairs]

    def compare(answer: str, gold: str) -> str | None:
        if verify is not None:
            return None
        return CORRECT if canonical(answer) == gold else WRONG

    return AnswerKind(
        normalize=canonical,
        read=canonical,
        read_sentence=lambda text: canonical(first_sentence(text)),
        gold=canonical,
        compare=compare,
        compare_many=None if verify is None else compare_many,
        extract=None if extract is None else lambda text: _text(extract, "answer_extract", text, limit_s),
        worded=True,
        strong_first=True,
    )


def _text(reference: str, point: str, text: str, limit_s: float) -> str | None:
    (result,) = shared_workers().call_many(reference, point, [(text,)], {}, limit_s=limit_s)
    assert result is None or isinstance(result, str)
    return result
