"""Calls a function of the user. This code runs in the worker processes of `workers.py`.

In: a source, the name of a function in it, arguments and a time limit. Out: the result as plain data,
or a `Failure` whose message names the line of the user's file. A module is loaded once per process.
"""

from __future__ import annotations

import linecache
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from core_hpc.extensions.points import POINTS
from core_hpc.extensions.sources import Source
from core_hpc.extensions.values import Completion, Problem

_OWN_ROOT = Path(__file__).resolve().parents[2]
_MODULES: dict[str, ModuleType] = {}
_MAX_SHOWN, _MAX_SHOWN_CHARS = 4, 60


@dataclass(frozen=True)
class Call:
    """One call of a function of the user."""

    source: Source
    function: str
    point: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    limit_s: float
    of_cpu_time: bool = False
    """The limit is CPU time, which does not depend on the load of the machine, instead of wall-clock time."""


@dataclass(frozen=True)
class Failure:
    """Why there is no result. Another attempt may help if `is_temporary`."""

    message: str
    is_temporary: bool = False
    timed_out: bool = False


class _TimeUpError(BaseException):
    """The time limit is reached. No `except Exception` of a user catches it."""


def initialise_worker() -> None:
    """Set up a worker process. It is called once per process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _without_working_directory()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _time_is_up)


def _without_working_directory() -> list[str]:
    """Search modules as Python in a job does: not in the working directory (slurm/submit.py).

    Returns:
        What was removed from `sys.path`.
    """
    here = Path.cwd()
    if here.resolve() == _OWN_ROOT:
        return []
    named = [Path(folder).resolve() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    removed = [] if here.resolve() in named else [p for p in sys.path if Path(p).resolve() == here.resolve()]
    sys.path[:] = [p for p in sys.path if p not in removed]
    return removed


def _time_is_up(signum: int, frame: FrameType | None) -> None:
    raise _TimeUpError


def run(call: Call) -> Any:
    """The result of a call as plain data, or a `Failure`."""
    source, clock = call.source, signal.ITIMER_PROF if call.of_cpu_time else signal.ITIMER_REAL
    loaded = False  # arguments explain no error in the file itself

    def arguments() -> str:
        return called_with(call) if loaded else ""

    signal.setitimer(clock, call.limit_s)
    try:
        function = getattr(load(source), call.function)
        loaded = True
        _seed()
        result = function(*call.arguments, **call.options)
        try:
            return POINTS[call.point].convert(result, call.arguments)
        except (TypeError, ValueError) as e:
            line = function.__code__.co_firstlineno if hasattr(function, "__code__") else 1
            return Failure(f"{source.path}, line {line}: {call.function} {e}{arguments()}")
    except _TimeUpError as e:
        place = where(e, source)
        message = f"{place}: did not return within {call.limit_s:g} s and was stopped{arguments()}"
        return Failure(message, is_temporary=True, timed_out=True)
    except (Exception, SystemExit) as e:  # noqa: BLE001 - code of a user may raise anything
        return Failure(explain(e, source) + arguments(), is_temporary=isinstance(e, OSError))
    finally:
        signal.setitimer(clock, 0)


def load(source: Source) -> ModuleType:
    """The module of a source, which is run at the first call only."""
    if source.digest not in _MODULES:
        name = f"core_hpc_extension_{source.digest}"
        module = ModuleType(name)
        module.__file__ = source.path
        # Tracebacks show these lines, even if the file is changed meanwhile or lies on another machine.
        linecache.cache[source.path] = (len(source.text), None, source.text.splitlines(keepends=True), source.path)
        sys.modules[name] = module  # dataclasses look up the module of a class
        removed = _without_working_directory()  # a loss runs in the process of the trainer
        try:
            exec(compile(source.text, source.path, "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            sys.path[:0] = removed
        _MODULES[source.digest] = module
    return _MODULES[source.digest]


def called_with(call: Call) -> str:
    """A line for messages: the positional arguments of a call in short form."""
    named = zip(POINTS[call.point].parameters, call.arguments, strict=True)
    return "\n    called with " + ", ".join(f"{name} = {_short(value)}" for name, value in named)


def _short(value: Any) -> str:
    """An argument in a few words. A completion is shown by its text, and a problem by its id.

    >>> _short(["", "three words here"]), _short("word " * 100)
    ("[empty text, 'three words here']", "'word word word word word word word word ...' (500 characters)")
    """
    if isinstance(value, Completion):
        return _short(value.text)
    if isinstance(value, Problem):
        return repr(value.id)
    if isinstance(value, str):
        if len(value) > _MAX_SHOWN_CHARS:
            return f"{value[: _MAX_SHOWN_CHARS - 20] + '...'!r} ({len(value):,} characters)"
        return repr(value) if value else "empty text"
    if isinstance(value, (list, tuple)):
        more = [f"{len(value) - _MAX_SHOWN} more"] if len(value) > _MAX_SHOWN else []
        return f"[{', '.join([*map(_short, value[:_MAX_SHOWN]), *more])}]"
    return " ".join(repr(value).split())[:_MAX_SHOWN_CHARS]


def _seed() -> None:
    """Start the global random streams anew, so that a result does not depend on earlier calls."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def explain(error: BaseException, source: Source) -> str:
    """One or two lines: where in the user's file the error was raised, and what it is.

    >>> source = Source("my_rewards.py", "def half(n):\\n    return 1 / n")
    >>> try:
    ...     load(source).half(0)
    ... except ZeroDivisionError as e:
    ...     print(explain(e, source))
    my_rewards.py, line 2, in half: ZeroDivisionError: division by zero
        return 1 / n
    """
    if isinstance(error, SyntaxError) and error.filename == source.path:
        return f"{source.path}, line {error.lineno}: {error.msg}"
    text = " ".join(str(error).split())[:500]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    line = _line(error, source)
    code = f"\n    {line.line}" if line is not None and line.line else ""
    return f"{where(error, source)}: {what}{code}"


def where(error: BaseException, source: Source) -> str:
    """The last place of an error in the user's file."""
    line = _line(error, source)
    if line is None:
        return source.path
    function = "" if line.name == "<module>" else f", in {line.name}"
    return f"{source.path}, line {line.lineno}{function}"


def _line(error: BaseException, source: Source) -> traceback.FrameSummary | None:
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source.path]
    return own[-1] if own else None
