"""One engine for several tasks at once: it decodes the completions of all tasks together.

In: calls of `generate` from the threads of tasks. Out: the completions of each call, to its thread.
One thread, the owner, loads the engine and computes with it, because OpenMP keeps a team of threads
per computing thread and CUDA a current device. Everything else that tasks do runs in one thread at
a time. The executor decides which tasks run at once (`local/executor.py`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core_hpc.engines import EngineKind, EngineSpec
from core_hpc.engines.base import AdapterRef, Completion, Engine, GenerationRequest, ProgressCallback, SamplingSettings

SHARED_KINDS: tuple[EngineKind, ...] = ("vllm", "fake")
"""Engines that accept requests while others are in progress."""
_GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=1)


class StepEngine(ABC):
    """An engine that accepts requests at any time.

    All requests in progress use the same adapter.
    """

    compile_s: float

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        adapter: AdapterRef | None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Sample one completion per request, in the order of the requests.

        If an exception interrupts the call, its requests are aborted.
        """
        call = _Call(requests=requests, sampling=sampling, adapter=adapter, on_progress=on_progress)
        call.ids = self.add(requests, sampling, adapter)
        try:
            while call.is_open:
                for request_id, completion in self.step():
                    call.take(request_id, completion)
        finally:
            if call.is_open:
                self.abort([i for i in call.ids if i not in call.done])
        return call.completions

    @abstractmethod
    def add(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings, adapter: AdapterRef | None
    ) -> list[str]:
        """Start requests and return their ids, which are never used again."""

    @abstractmethod
    def step(self) -> list[tuple[str, Completion]]:
        """Do one step of work; returns (id, completion) of the requests that it finishes."""

    @abstractmethod
    def abort(self, ids: Sequence[str]) -> None:
        """Remove requests that are in progress."""

    @abstractmethod
    def sleep(self) -> None:
        """Release the GPU memory until the next request."""

    @abstractmethod
    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards."""


@dataclass(kw_only=True)
class _Call:
    """The requests of a task and the completions so far.

    A call without requests only loads the engine.
    """

    requests: Sequence[GenerationRequest] = ()
    sampling: SamplingSettings = _GREEDY
    adapter: AdapterRef | None = None
    on_progress: ProgressCallback | None = None
    ids: list[str] = field(default_factory=list)
    done: dict[str, Completion] = field(default_factory=dict)
    num_tokens: int = 0
    error: Exception | None = None
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def is_open(self) -> bool:
        return len(self.done) < len(self.ids)

    @property
    def completions(self) -> list[Completion]:
        return [self.done[i] for i in self.ids]

    def take(self, request_id: str, completion: Completion) -> None:
        self.done[request_id] = completion
        self.num_tokens += len(completion.token_ids)
        if self.on_progress is not None:
            self.on_progress(len(self.done), self.num_tokens)

    def fail(self, error: Exception) -> None:
        self.error = error
        self.answered.set()


class EngineOwner:
    """Serves the calls of several tasks with one engine.

    The thread that calls `run` owns the engine. A task holds the lock `turn` while it works.
    `engine` and `generate` release the lock while they wait.
    """

    def __init__(self, load: Callable[[EngineSpec], Engine]) -> None:
        """`load` returns the engine for a spec, and closes an engine with another spec first."""
        self.turn = threading.Lock()
        self._load = load
        self._arriving: queue.SimpleQueue[tuple[EngineSpec, _Call] | None] = queue.SimpleQueue()
        self._waiting: deque[tuple[EngineSpec, _Call]] = deque()
        self._live: dict[str, _Call] = {}
        self._engine: tuple[EngineSpec, StepEngine] | None = None

    # --- in the threads of tasks -----------------------------------------------------------------

    def engine(self, spec: EngineSpec) -> Engine:
        """The loaded engine. Waits until the calls for another engine have ended."""
        self.submit(spec, _Call())
        return _SharedEngine(self, spec)

    def submit(self, spec: EngineSpec, call: _Call) -> list[Completion]:
        """Wait until the owner has served a call; raises the exception of a call that failed."""
        self._arriving.put((spec, call))
        self.turn.release()
        try:
            call.answered.wait()
        finally:
            self.turn.acquire()
        if call.error is not None:
            raise call.error
        return call.completions

    # --- in the owner's thread -------------------------------------------------------------------

    def close(self) -> None:
        """Make `run` return after it has served all calls."""
        self._arriving.put(None)

    def run(self) -> None:
        """Serve calls until `close`, starting them in the order of their arrival."""
        closing = False
        while self._waiting or self._live or not closing:
            for arrived in self._arrived():
                if arrived is None:
                    closing = True
                else:
                    self._waiting.append(arrived)
            while self._waiting and self._fits(*self._waiting[0]):
                self._begin(*self._waiting.popleft())
            if self._live:
                self._step()

    def _arrived(self) -> list[tuple[EngineSpec, _Call] | None]:
        """Calls that have arrived, and None for `close`. Waits if there is nothing else to do."""
        found = [] if self._waiting or self._live else [self._arriving.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._arriving.get_nowait())
        return found

    def _fits(self, spec: EngineSpec, call: _Call) -> bool:
        """Whether the call can start now.

        All calls in progress need the same engine and the same adapter.
        """
        if not self._live:
            return True
        assert self._engine is not None
        same_adapter = next(iter(self._live.values())).adapter == call.adapter
        return self._engine[0] == spec and (not call.requests or same_adapter)

    def _begin(self, spec: EngineSpec, call: _Call) -> None:
        try:
            if self._engine is None or self._engine[0] != spec:
                self._engine = None
                engine = self._load(spec)
                assert isinstance(engine, StepEngine), f"{spec.kind} is not one of {SHARED_KINDS}"
                self._engine = (spec, engine)
            if call.requests:
                call.ids = self._engine[1].add(call.requests, call.sampling, call.adapter)
        except Exception as error:  # noqa: BLE001 - the thread of the task raises it again
            call.fail(error)
        else:
            self._live.update(dict.fromkeys(call.ids, call))
            if not call.ids:
                call.answered.set()

    def _step(self) -> None:
        """Do one step of the engine. If it fails, all calls in progress fail."""
        assert self._engine is not None
        try:
            for request_id, completion in self._engine[1].step():
                call = self._live.pop(request_id)
                call.take(request_id, completion)
                if not call.is_open:
                    call.answered.set()
        except Exception as error:  # noqa: BLE001 - the threads of the tasks raise it again
            failed, self._live = self._live, {}
            self._engine[1].abort(list(failed))
            for call in failed.values():
                call.fail(error)


class _SharedEngine:
    """The engine as a task sees it."""

    compile_s = 0.0  # `Warm` records the compile time when it loads the engine

    def __init__(self, owner: EngineOwner, spec: EngineSpec) -> None:
        self._owner, self._spec = owner, spec

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        adapter: AdapterRef | None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Sample one completion per request, together with the requests of other tasks."""
        call = _Call(requests=requests, sampling=sampling, adapter=adapter, on_progress=on_progress)
        return self._owner.submit(self._spec, call)

    def sleep(self) -> None:
        """Does nothing, because other tasks may use the engine."""

    def close(self) -> None:
        """Does nothing, because the owner closes the engine."""
