"""`update.old_log_probs: engine` against `recompute`, with the real trainer in a process of its own.

The engine's log-probabilities are the trainer's, so both must compute the same steps.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
CASES = {
    "recompute": {"old_log_probs": "recompute", "kl_weight": 0.0},
    "engine": {"old_log_probs": "engine", "kl_weight": 0.0},
    "recompute, KL": {"old_log_probs": "recompute", "kl_weight": 0.1},
    "engine, KL": {"old_log_probs": "engine", "kl_weight": 0.1},
}


def _updates(model: Path, out: Path) -> None:
    """The same update in every case; the last completion of each problem is a peer's."""
    from core_hpc.config.model import LoraSection
    from core_hpc.config.update import UpdateSection
    from core_hpc.training.batching import Row
    from core_hpc.training.task import TrainerSettings, UpdateTask
    from core_hpc.training.trainer import Trainer

    trainer = Trainer(TrainerSettings(model_folder=model, model_name="tiny", lora=LoraSection(rank=4), dtype="float32"))
    rows = [
        Row(
            key=(i,),
            problem_id=f"p{i // 3}",
            prompt_token_ids=[5 + i // 3, 6, 7],
            completion_token_ids=[(11 * i + 3 * n * n) % 90 + 2 for n in range(4 + i)],
            behaviour_logprobs=None,
            advantage=(1.0, -0.5, -0.5)[i % 3],
            weight=1.0,
        )
        for i in range(9)
    ]
    task = UpdateTask(
        rows=rows,
        settings=UpdateSection(),
        temperature=1.0,
        max_new_tokens=16,
        total_steps=3,
        shuffle_seed=1,
        lora_seed=2,
        previous=None,
        max_mismatch=1e-3,
    )
    own = trainer.token_log_probs(task)
    rows = [row if i % 3 == 2 else replace(row, behaviour_logprobs=own[i]) for i, row in enumerate(rows)]
    found = {}
    for number, (name, changes) in enumerate(CASES.items()):
        settings = UpdateSection(learning_rate=0.02, problems_per_step=1, warmup_share=0, **changes)
        folder = out / str(number)
        folder.mkdir()
        result = trainer.update(replace(task, rows=rows, settings=settings), folder)
        found[name] = {"steps": result.steps.to_dicts(), "pass_tokens": result.timings.num_pass_tokens}
    (out / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(one_rank: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((one_rank / Path(__file__).name / "found.json").read_text())
    return read


@pytest.mark.parametrize("suffix", ["", ", KL"])
def test_the_steps_are_those_of_the_recomputed_log_probabilities(found: dict[str, dict[str, Any]], suffix: str) -> None:
    for one, other in zip(found[f"recompute{suffix}"]["steps"], found[f"engine{suffix}"]["steps"], strict=True):
        for name in ("loss", "policy_loss", "kl", "clip_share", "grad_norm", "ratio_max", "importance_mean"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5, nan_ok=True), name
    assert max(abs(step["loss"]) for step in found["engine"]["steps"][1:]) > 1e-3


def test_only_what_the_engine_has_not_sampled_is_computed_again(found: dict[str, dict[str, Any]]) -> None:
    recomputed, known = found["recompute"]["pass_tokens"], found["engine"]["pass_tokens"]
    assert 0 < known < 0.6 * recomputed
    # Before the first update the reference policy is the old one, so all rows are needed.
    assert found["engine, KL"]["pass_tokens"] == found["recompute, KL"]["pass_tokens"]


def test_the_difference_from_the_engine_is_measured_in_the_first_step_only(found: dict[str, dict[str, Any]]) -> None:
    first, *others = found["engine"]["steps"]
    assert first["mismatch_mean"] < 1e-5
    for step in others:
        assert all(math.isnan(step[name]) for name in ("mismatch_mean", "mismatch_max", "kept_mass"))
    assert all(step["mismatch_mean"] < 1e-5 for step in found["recompute"]["steps"])


if __name__ == "__main__":
    _updates(Path(sys.argv[1]), Path(sys.argv[2]))
