"""One engine for several tasks at once: their completions are decoded together, and each task is given its own.

In: `generate` from the threads of tasks. Out: completions, to the thread that asked. One thread, the owner, makes the engine and
computes with it (OpenMP keeps a team of threads for each thread that computes, CUDA a current device). Tasks take turns in all
else that they do. Which tasks run at once is the executor's (executors.py).
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
"""Engines that take requests while others are under way."""


class StepEngine(ABC):
    """An engine that takes requests at any time. All that are under way have the same adapter."""

    compile_s: float

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        adapter: AdapterRef | None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Sample one completion per request, in the order of the requests; on any interruption they are taken out again."""
        call = _Call(requests, sampling, adapter, on_progress)
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
        """Begin requests; returns their ids, which never come again."""

    @abstractmethod
    def step(self) -> list[tuple[str, Completion]]:
        """Go on a little; returns what is finished, by id."""

    @abstractmethod
    def abort(self, ids: Sequence[str]) -> None:
        """Take requests out that are under way."""

    @abstractmethod
    def sleep(self) -> None:
        """Leave the memory of the GPU until requests come again."""

    @abstractmethod
    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards."""


@dataclass
class _Call:
    """Completions that a task asks for, and those it has; without requests it asks for the engine only."""

    requests: Sequence[GenerationRequest]
    sampling: SamplingSettings
    adapter: AdapterRef | None
    on_progress: ProgressCallback | None
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
    """The thread that calls `run` owns the engine. A task does all in its `turn`, which `engine` and `generate` give away meanwhile."""

    def __init__(self, load: Callable[[EngineSpec], Engine]) -> None:
        """`load` returns the warm engine of a spec, or ends the one there is and makes another."""
        self.turn = threading.Lock()
        self._load = load
        self._arriving: queue.SimpleQueue[tuple[EngineSpec, _Call] | None] = queue.SimpleQueue()
        self._line: deque[tuple[EngineSpec, _Call]] = deque()
        self._live: dict[str, _Call] = {}
        self._engine: tuple[EngineSpec, StepEngine] | None = None

    # --- in the threads of tasks -----------------------------------------------------------------

    def engine(self, spec: EngineSpec) -> Engine:
        """The engine, loaded; waits until tasks with another one have ended."""
        self.ask(spec, _Call((), SamplingSettings(0.0, 1.0, 1), None, None))
        return _SharedEngine(self, spec)

    def ask(self, spec: EngineSpec, call: _Call) -> list[Completion]:
        """Have a call served; raises what went wrong with it."""
        self._arriving.put((spec, call))
        self.turn.release()
        try:
            call.answered.wait()
        finally:
            self.turn.acquire()
        if call.error is not None:
            raise call.error
        return call.completions

    # --- in the owner's --------------------------------------------------------------------------

    def close(self) -> None:
        """Let `run` return when all calls have been served."""
        self._arriving.put(None)

    def run(self) -> None:
        """Serve calls, begun in the order of their arrival, until `close`."""
        closing = False
        while self._line or self._live or not closing:
            for arrived in self._arrived():
                if arrived is None:
                    closing = True
                else:
                    self._line.append(arrived)
            while self._line and self._fits(*self._line[0]):
                self._begin(*self._line.popleft())
            if self._live:
                self._step()

    def _arrived(self) -> list[tuple[EngineSpec, _Call] | None]:
        """Waits when there is nothing else to do."""
        found = [] if self._line or self._live else [self._arriving.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._arriving.get_nowait())
        return found

    def _fits(self, spec: EngineSpec, call: _Call) -> bool:
        """Whether it goes with what is under way; another engine or another adapter waits for the end of that."""
        if not self._live:
            return True
        assert self._engine is not None
        return self._engine[0] == spec and (
            not call.requests or next(iter(self._live.values())).adapter == call.adapter
        )

    def _begin(self, spec: EngineSpec, call: _Call) -> None:
        try:
            if self._engine is None or self._engine[0] != spec:
                self._engine = None
                engine = self._load(spec)
                assert isinstance(engine, StepEngine), f"{spec.kind} is not one of {SHARED_KINDS}"
                self._engine = (spec, engine)
            if call.requests:
                call.ids = self._engine[1].add(call.requests, call.sampling, call.adapter)
        except Exception as error:  # noqa: BLE001 - it is the task's, which raises it again
            call.fail(error)
        else:
            self._live.update(dict.fromkeys(call.ids, call))
            if not call.ids:
                call.answered.set()

    def _step(self) -> None:
        """One step; what fails here fails for all that are under way."""
        assert self._engine is not None
        try:
            for request_id, completion in self._engine[1].step():
                call = self._live.pop(request_id)
                call.take(request_id, completion)
                if not call.is_open:
                    call.answered.set()
        except Exception as error:  # noqa: BLE001 - likewise
            failed, self._live = self._live, {}
            self._engine[1].abort(list(failed))
            for call in failed.values():
                call.fail(error)


class _SharedEngine:
    """What a task has of the engine."""

    compile_s = 0.0  # known where it was made

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
        """Sample one completion per request, while the engine also does those of other tasks."""
        return self._owner.ask(self._spec, _Call(requests, sampling, adapter, on_progress))

    def sleep(self) -> None:
        """Nothing: it is the owner's, and other tasks may use it."""

    def close(self) -> None:
        """Nothing: it is the owner's."""
