"""One engine for several tasks: each task gets the completions that it would get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.engines import EngineSpec
from core_hpc.engines.base import AdapterRef, Completion, Engine, GenerationRequest, SamplingSettings
from core_hpc.engines.shared import EngineOwner, StepEngine

SPEC, OTHER = (EngineSpec(kind="fake", model_folder=Path(name), max_context_tokens=64) for name in "ab")
SAMPLING = SamplingSettings(1.0, 1.0, 8)


def answer(request: GenerationRequest) -> Completion:
    return Completion((*request.prompt_token_ids, request.seed), (-1.0,), "stop")


class Recorder(StepEngine):
    """NOT a real engine.

    The first token of a request is its number of steps. Records what runs at each step.
    """

    compile_s = 0.0

    def __init__(self, spec: EngineSpec) -> None:
        self.spec, self.closed = spec, False
        self.running: dict[str, list[Any]] = {}
        self.seen: list[set[AdapterRef | None]] = []
        self.most = 0
        self._count = 0

    def add(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings, adapter: AdapterRef | None
    ) -> list[str]:
        if any(len(r.prompt_token_ids) > self.spec.max_context_tokens for r in requests):
            raise InputError("too long")
        ids = [str(self._count + i) for i in range(len(requests))]
        self._count += len(ids)
        self.running.update({i: [r.prompt_token_ids[0], r, adapter] for i, r in zip(ids, requests, strict=True)})
        return ids

    def step(self) -> list[tuple[str, Completion]]:
        time.sleep(0.001)
        self.seen.append({adapter for _, _, adapter in self.running.values()})
        self.most = max(self.most, len(self.running))
        for item in self.running.values():
            item[0] -= 1
            if item[1].seed == 13:
                raise RuntimeError("out of memory")
        done = [i for i, item in self.running.items() if item[0] <= 0]
        return [(i, answer(self.running.pop(i)[1])) for i in done]

    def abort(self, ids: Sequence[str]) -> None:
        for i in ids:
            del self.running[i]

    def sleep(self) -> None:
        """Never called."""

    def close(self) -> None:
        self.closed = True


class Room:
    """An owner in its own thread, and tasks that start together."""

    def __init__(self) -> None:
        self.engines: list[Recorder] = []
        self.owner = EngineOwner(self._load)
        self.outcomes: dict[str, Any] = {}
        self._in_turn = 0

    def _load(self, spec: EngineSpec) -> Engine:
        for engine in self.engines:
            if not engine.closed:
                assert not engine.running, "an engine was closed while requests were running"
                engine.close()
        self.engines.append(Recorder(spec))
        return self.engines[-1]

    def task(
        self, name: str, *requests: GenerationRequest, spec: EngineSpec = SPEC, adapter: AdapterRef | None = None
    ) -> threading.Thread:
        def run() -> None:
            with self.owner.turn:
                with self._alone():
                    pass
                try:
                    engine = self.owner.engine(spec)
                    with self._alone():
                        pass
                    self.outcomes[name] = engine.generate(requests, SAMPLING, adapter=adapter)
                except Exception as error:  # noqa: BLE001 - the test checks it
                    self.outcomes[name] = error
                with self._alone():
                    pass

        return threading.Thread(target=run)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A moment of a task's own work, during which no other task may work."""
        self._in_turn += 1
        time.sleep(0.0005)
        assert self._in_turn == 1
        yield
        self._in_turn -= 1

    def run(self, *tasks: threading.Thread) -> None:
        owner = threading.Thread(target=self.owner.run)
        owner.start()
        for task in tasks:
            task.start()
        for task in tasks:
            task.join(20)
            assert not task.is_alive()
        self.owner.close()
        owner.join(20)
        assert not owner.is_alive()


@pytest.fixture
def room() -> Room:
    return Room()


def request(steps: int, seed: int) -> GenerationRequest:
    return GenerationRequest((steps, 5), seed)


def test_completions_of_all_tasks_run_together_and_each_task_gets_its_own_in_order(room: Room) -> None:
    wanted = {f"t{i}": [request(1 + (7 * i + k) % 40, 100 * i + k) for k in range(6)] for i in range(5)}
    room.run(*(room.task(name, *requests) for name, requests in wanted.items()))
    assert room.outcomes == {name: [answer(r) for r in requests] for name, requests in wanted.items()}
    assert len(room.engines) == 1
    assert room.engines[0].most > 6, "nothing ran together"


def test_a_call_for_another_adapter_or_engine_waits_until_running_calls_end(room: Room) -> None:
    first, second = AdapterRef(Path("x"), "1"), AdapterRef(Path("x"), "2")
    calls: list[tuple[EngineSpec, AdapterRef | None]]
    calls = [(SPEC, None), (SPEC, first), (OTHER, None), (SPEC, second), (SPEC, first)]
    room.run(*(room.task(f"t{i}", request(20, i), request(3, i), spec=s, adapter=a) for i, (s, a) in enumerate(calls)))
    assert room.outcomes == {f"t{i}": [answer(request(20, i)), answer(request(3, i))] for i in range(5)}
    assert all(len(adapters) == 1 for engine in room.engines for adapters in engine.seen)


def test_a_bad_request_fails_its_own_task_only(room: Room) -> None:
    room.run(
        room.task("good", request(30, 1)),
        room.task("bad", GenerationRequest((1,) * 65, 2)),
        room.task("also good", request(3, 3)),
    )
    assert isinstance(room.outcomes.pop("bad"), InputError)
    assert room.outcomes == {"good": [answer(request(30, 1))], "also good": [answer(request(3, 3))]}


def test_a_failing_step_fails_the_running_calls_and_nothing_else(room: Room) -> None:
    room.run(room.task("before", request(2, 1)), room.task("fails", request(50, 13)))
    assert "out of memory" in str(room.outcomes["fails"])
    room.run(room.task("after", request(2, 4)))
    assert room.outcomes["after"] == [answer(request(2, 4))]
    assert room.engines[0].running == {}


def test_the_task_gets_the_error_of_a_failed_load(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: EngineSpec) -> Engine:
        raise InputError("no such folder")

    owner = EngineOwner(refuse)
    monkeypatch.setattr(room, "owner", owner)
    room.run(room.task("t", request(1, 1)))
    assert "no such folder" in str(room.outcomes["t"])


def test_an_engine_without_an_owner_gives_the_same(room: Room) -> None:
    requests = [request(9, 1), request(2, 2), request(5, 3)]
    reported: list[tuple[int, int]] = []
    engine = Recorder(SPEC)

    def progress(done: int, tokens: int) -> None:
        reported.append((done, tokens))

    assert engine.generate(requests, SAMPLING, adapter=None, on_progress=progress) == [answer(r) for r in requests]
    assert reported == [(1, 3), (2, 6), (3, 9)]
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.generate([request(4, 1), request(4, 13)], SAMPLING, adapter=None)
    assert engine.running == {}, "an interrupted call leaves no requests in the engine"
