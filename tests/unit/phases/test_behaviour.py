"""The guard against another model, in updates whose first optimizer step computes nothing that the engine sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core_hpc.common.errors import MismatchError
from core_hpc.config.update import UpdateSection
from core_hpc.phases.behaviour import check_behaviour, probed
from core_hpc.phases.update import _compare_with_sampler, _identity
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import UPDATE
from core_hpc.training.batching import Row, step_rows
from core_hpc.training.task import UpdateTask

ROWS = [
    Row(
        key=(problem, sample),
        problem_id=problem,
        prompt_token_ids=[5, 6],
        completion_token_ids=[7, 8, 9],
        behaviour_logprobs=[-0.5, -0.5, -0.5],
        advantage=1.0 - 2 * sample,
        weight=1.0,
    )
    for problem in ("p", "q")
    for sample in (0, 1)
]
SEED = 1
(FIRST,), _ = step_rows(ROWS, problems_per_step=1, seed=SEED)[0]


def task(rows: list[Row], **settings: Any) -> UpdateTask:
    return UpdateTask(
        rows=rows,
        settings=UpdateSection(problems_per_step=1, **settings),
        temperature=1.0,
        max_new_tokens=8,
        total_steps=2,
        shuffle_seed=SEED,
        lora_seed=2,
        previous=Path("before"),
        max_mismatch=0.02,
    )


def without_signal(rows: list[Row]) -> list[Row]:
    """The rows of the first step have no advantage."""
    return [replace(row, advantage=0.0) if row.problem_id == FIRST else row for row in rows]


def compare(update: UpdateTask, difference: float) -> float | None:
    """The comparison before the update. The trainer differs from the engine by so many nats per token."""
    protocol = SimpleNamespace(staleness=0)
    context: Any = SimpleNamespace(
        key=TaskKey(2, UPDATE, "a"),
        run=SimpleNamespace(config=SimpleNamespace(protocol=protocol)),
        update_folder=lambda iteration, *, optimizer: Path(f"update-{iteration}"),
    )

    def token_log_probs(spec: UpdateTask) -> list[list[float]]:
        assert spec.previous in (Path("update-1"), None)  # the weights that sampled, and those of the base
        return [[v - difference for v in row.behaviour_logprobs or ()] for row in spec.rows]

    trainer: Any = SimpleNamespace(rank=0, settings=SimpleNamespace(lora=None), token_log_probs=token_log_probs)
    return _compare_with_sampler(context, trainer, update)


def test_a_checkpoint_continues_on_another_kind_of_processor() -> None:
    """There, passes of the trainer (reliance, self-teacher) give these numbers with other last digits."""
    context: Any = SimpleNamespace(run=SimpleNamespace(run_id="r"), key=TaskKey(2, UPDATE, "a"))

    def identity(**changes: Any) -> dict[str, Any]:
        return _identity(context, task([replace(row, **changes) for row in ROWS]), None)

    first = identity(weight=0.5, token_factors=[1.0, 0.7, 0.2], teacher_logprobs=[-0.1, -0.2, -0.3])
    assert first == identity(weight=0.5000001, token_factors=[1.0, 0.7000001, 0.2], teacher_logprobs=[-0.1, -0.2, -0.3])
    assert first != identity(advantage=0.5)


@pytest.mark.parametrize("silent", ["zero signal", "masked", "only lessons"])
def test_another_model_is_found_although_the_first_step_cannot_show_it(silent: str) -> None:
    rows = {
        "zero signal": without_signal(ROWS),
        "masked": [replace(row, weight=0.0) if row.problem_id == FIRST else row for row in ROWS],
        "only lessons": [replace(row, behaviour_logprobs=None) if row.problem_id == FIRST else row for row in ROWS],
    }[silent]
    update = task(rows, loss="dapo", old_log_probs="engine")
    with pytest.raises(MismatchError, match="trainer and engine are not the same model"):
        compare(update, 0.5)
    assert compare(update, 0.001) == pytest.approx(0.001)


def test_the_first_step_compares_where_it_can() -> None:
    """No pass is spent on a comparison that the first step makes anyway. With KL it has rows without a signal, too."""
    assert compare(task(ROWS, loss="dapo"), 0.5) is None
    assert compare(task(without_signal(ROWS), kl_weight=0.04), 0.5) is None


FORTY = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37]
"""16 of 40: every second or third one."""


@pytest.mark.parametrize(("num", "expected"), [(0, []), (3, [0, 1, 2]), (16, list(range(16))), (40, FORTY)])
def test_the_probed_completions_are_spread_evenly(num: int, expected: list[int]) -> None:
    """Completions that the engine has not sampled are left out."""
    rows = [replace(ROWS[0], key=("p", n)) for n in range(num)]
    others = [replace(ROWS[0], key=("other", n), behaviour_logprobs=None) for n in range(num)]
    found = [row.key[1] for row in probed([row for pair in zip(rows, others, strict=True) for row in pair])]
    assert found == expected


@pytest.mark.parametrize("engine_has_adapter", [True, False])
@pytest.mark.parametrize("begins_at_base", [True, False])
def test_an_engine_without_the_adapter_is_found_by_the_base_weights(
    engine_has_adapter: bool, begins_at_base: bool
) -> None:
    """The adapter changes tokens by 0.01 nats in either direction, which is below the limit."""
    seen: list[Path | None] = []

    def token_log_probs(spec: UpdateTask) -> list[list[float]]:
        seen.append(spec.previous)
        has_adapter = not spec.begins_at_base
        difference = 0.0 if has_adapter == engine_has_adapter else 0.01
        signs = [1, -1, 1]
        return [
            [v + difference * sign for v, sign in zip(row.behaviour_logprobs or (), signs, strict=True)]
            for row in spec.rows
        ]

    trainer: Any = SimpleNamespace(rank=0, settings=SimpleNamespace(lora="r"), token_log_probs=token_log_probs)
    sampler = None if begins_at_base else Path("update-1")
    update = replace(task(ROWS), max_mismatch=0.02)
    if begins_at_base or engine_has_adapter:
        expected = 0.01 if begins_at_base and engine_has_adapter else 0.0
        found = check_behaviour(trainer, update, sampler=sampler, adapter=None, where="update")
        assert found == pytest.approx(expected)
    else:
        with pytest.raises(MismatchError, match=r"ignore the adapter.* by 0\.01 nats .*, and by \S+ without"):
            check_behaviour(trainer, update, sampler=sampler, adapter=None, where="update")
    assert seen == ([None] if begins_at_base else [Path("update-1"), None])
