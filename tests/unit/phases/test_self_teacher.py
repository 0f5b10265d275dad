"""The model with a hint as its own teacher: weights and slopes against float64 loops, and the rows of an update."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from core_hpc.config.run import RunConfig
from core_hpc.config.teach import SelfTeacherSection
from core_hpc.config.update import UpdateSection
from core_hpc.models.prompts import PromptBuilder
from core_hpc.phases.update import training_rows
from core_hpc.protocol.self_teacher import rlsd_factors
from core_hpc.store import shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import COLD, HINT, HINTS, UPDATE
from core_hpc.training.batching import OBJECTIVES, Row
from core_hpc.training.losses import StepSize, TokenBatch, objective
from tests.support.tiny import byte_tokenizer
from tests.unit.phases import test_traps
from tests.unit.phases.test_hint_leak import DATA
from tests.unit.phases.test_lessons import cut
from tests.unit.phases.test_traps import context, frame, scored_run

TOKENIZER = byte_tokenizer(template="{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")


@pytest.mark.parametrize("advantage", [-1.3, 0.0, 0.7])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_factors_equal_a_plain_loop(advantage: float, share: float) -> None:
    draw = random.Random(1)
    plain = [-draw.uniform(0, 4) for _ in range(30)]
    hinted = [value + draw.uniform(-0.5, 0.5) for value in plain[:-2]] + [-900.0, 0.0]
    sign = (advantage > 0) - (advantage < 0)
    expected = []
    for p, h in zip(plain, hinted, strict=True):
        exponent = sign * (h - p)
        raw = 0.8 if exponent < -1 else 1.2 if exponent > 1 else min(max(math.exp(exponent), 0.8), 1.2)
        expected.append((1 - share) + share * raw)
    assert rlsd_factors(plain, hinted, advantage, share=share).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["rlsd", "sdpo"])
def test_losses_and_slopes_equal_a_plain_loop(kind: Any, seed: int) -> None:
    """Two completions: one with a teacher, and one without. Some ratios pass the clip or the cap."""
    draw = random.Random(seed)
    lengths = (4, 3)
    current = [[-draw.uniform(0.1, 3) for _ in range(n)] for n in lengths]
    old = [[value + draw.uniform(-1, 1) for value in values] for values in current]
    teacher = [[-draw.uniform(0.1, 3) for _ in range(4)], [math.nan] * 3]
    factors = [[draw.uniform(0.8, 1.2) for _ in range(4)], [1.0] * 3]
    advantages = [-0.9, 1.4]
    fixed = [list(values) for values in current]

    def reference() -> float:
        total = 0.0
        for n in (0, 1):
            for t, value in enumerate(current[n]):
                if kind == "sdpo" and n == 0:
                    ratio = math.exp(fixed[n][t] - old[n][t])
                    gain = (teacher[n][t] - fixed[n][t]) * min(ratio, 1.5) * value
                else:
                    ratio = math.exp(value - old[n][t])
                    a = advantages[n] * (factors[n][t] if kind == "rlsd" else 1.0)
                    gain = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
                total -= gain / (2 * lengths[n])
        return total

    def flat(values: list[list[float]]) -> torch.Tensor:
        return torch.tensor([v for row in values for v in row], dtype=torch.float64)

    is_sdpo = kind == "sdpo"
    batch = TokenBatch(
        old_M=flat(old),
        reference_M=None,
        importance_M=torch.ones(7, dtype=torch.float64),
        row_M=torch.tensor([0] * 4 + [1] * 3),
        lengths_N=torch.tensor(lengths),
        advantage_N=torch.tensor(advantages, dtype=torch.float64),
        weight_N=torch.ones(2, dtype=torch.float64),
        rescue_N=torch.zeros(2, dtype=torch.bool),
        objective_N=torch.tensor([OBJECTIVES.index("sdpo" if is_sdpo else "policy"), 0]),
        factor_M=None if is_sdpo else flat(factors),
        teacher_M=flat(teacher) if is_sdpo else None,
    )
    settings = UpdateSection(kl_weight=0, self_teacher=SelfTeacherSection(kind=kind, cap=1.5))
    tensor = flat(current).requires_grad_()
    terms = objective(tensor, batch, settings, StepSize(2, 7, 16))
    assert terms.loss.item() == pytest.approx(reference(), abs=1e-12)
    terms.loss.backward()
    assert tensor.grad is not None
    slopes = []
    for values in current:
        for t, value in enumerate(values):
            sides = []
            for shift in (1e-6, -1e-6):
                values[t] = value + shift
                sides.append(reference())
            values[t] = value
            slopes.append((sides[0] - sides[1]) / 2e-6)
    assert tensor.grad.tolist() == pytest.approx(slopes, abs=1e-7)


def rows_of_b(folder: Path, *, truncated: str = "keep", **settings: Any) -> dict[tuple[object, ...], Row]:
    """The rows of model b, which failed `hard` and has a hint for it, and failed once on `easy`."""
    run = scored_run(folder, self_teacher=settings, truncated=truncated)
    hints = [
        {"model": "b", "problem_id": "hard", "hint": "Add them.", "reason": "rescue", "hint_draws": [True]},
        {"model": "b", "problem_id": "easy", "hint": None, "reason": "solved", "hint_draws": []},
        {"model": "a", "problem_id": "easy", "hint": "Not for b.", "reason": "rescue", "hint_draws": []},
    ]
    key = TaskKey(1, HINT, TEAM)
    rows = frame(HINTS, [{"iteration": 1, "run_id": "r", **row} for row in hints])
    shards.publish_frame(run.paths.task_folder(key), run.paths.task_name(key), rows, HINTS)
    task = context(run, TaskKey(1, UPDATE, "b"))
    task.model = run.config.model("b")
    builder = PromptBuilder(TOKENIZER, "chat", "")
    task.prompt_builder = lambda _: builder

    def rate(asked: Sequence[Row]) -> list[list[float]]:
        hinted = builder.build("", "Add them.")
        return [[-1.5 if row.prompt_token_ids == hinted else -1.0] * 4 for row in asked]

    return {row.key: row for row in training_rows(task, None, rate)}


@pytest.mark.parametrize("kind", ["rlsd", "sdpo"])
def test_only_failed_cold_completions_with_a_hint_have_a_teacher(tmp_path: Path, kind: str) -> None:
    rows = rows_of_b(tmp_path, kind=kind, weight=0.5)
    for key, row in rows.items():
        has_teacher = key in {("hard", COLD, 0), ("hard", COLD, 1)}
        assert (row.token_factors is not None) == (has_teacher and kind == "rlsd")
        assert (row.teacher_logprobs is not None) == (has_teacher and kind == "sdpo")
        if row.token_factors is not None:
            # The advantage is negative and the hint makes the tokens less probable.
            assert row.advantage < 0
            assert list(row.token_factors) == pytest.approx([0.5 + 0.5 * 1.2] * 4)
        if row.teacher_logprobs is not None:
            assert (row.objective, row.source, row.weight) == ("sdpo", "self_taught", 0.5)
            assert list(row.teacher_logprobs) == [-1.5] * 4
            assert row.behaviour_logprobs is not None


def test_a_completion_that_is_masked_is_not_learned_from_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_traps, "rollout_rows", cut(COLD))
    rows = rows_of_b(tmp_path, kind="sdpo", weight=0.5, truncated="mask")
    taught = [row.weight for row in rows.values() if row.source == "self_taught"]
    assert taught == [0.0, 0.0]


def test_a_weight_of_zero_leaves_the_rows_of_rlsd_as_they_are(tmp_path: Path) -> None:
    rows = rows_of_b(tmp_path, kind="rlsd", weight=0)
    assert all(row.lesson is None and row.token_factors is None for row in rows.values())
    assert all(row.weight > 0 for row in rows.values())


def test_a_weight_of_zero_is_the_limit_of_small_weights_with_sdpo(tmp_path: Path) -> None:
    for name in ("small", "none"):
        (tmp_path / name).mkdir()
    small = {key for key, row in rows_of_b(tmp_path / "small", kind="sdpo", weight=1e-9).items() if row.weight < 1e-6}
    none = rows_of_b(tmp_path / "none", kind="sdpo", weight=0)
    assert small == {key for key, row in none.items() if row.weight == 0}
    assert small
    assert all(row.lesson is None for row in none.values())


def test_mistakes_in_the_configuration_are_reported() -> None:
    with pytest.raises(ValidationError, match="is a share"):
        SelfTeacherSection(kind="rlsd", weight=2)
    with pytest.raises(ValidationError, match="uses the hints of peers"):
        RunConfig.model_validate(
            {**DATA, "update": {"self_teacher": {"kind": "sdpo"}}, "protocol": {"rescue_samples": 0}}
        )
