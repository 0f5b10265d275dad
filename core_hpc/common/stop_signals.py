"""The signals with which a batch system ends a job, or warns that it will.

The process that starts workers handles them; its workers ignore them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


@contextmanager
def ignored_by_child(*, when: bool = True) -> Iterator[None]:
    """Ignore the signals, if `when`, while a child process starts: it inherits that they are ignored."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS} if when else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
