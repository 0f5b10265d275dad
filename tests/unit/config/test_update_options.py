"""Options of the losses in a sweep file: defaults, mistakes with their paths, run identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import ConfigError
from core_hpc.config.run import RunConfig
from core_hpc.config.update import IMPORTANCE_CAPS, LOSS_OPTIONS, ImportanceSection, UpdateSection
from core_hpc.phases.update import settings_of
from core_hpc.runs.sweep import load_sweep
from tests.unit.config.test_sweep import mistakes, write

OPTIONS = (
    "ratio",
    "clip_low",
    "clip_high",
    "ratio_cap",
    "tau_positive",
    "tau_negative",
    "tau_rescue",
    "advantage_scale",
    "kl_weight",
)


def run_id(tmp_path: Path, *overrides: str, **update: Any) -> str:
    return load_sweep(write(tmp_path, update=update), overrides).runs[0].run_id


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("grpo", ("token", 0.2, 0.2, None, None, None, None, "std", 0.04)),
        ("dapo", ("token", 0.2, 0.28, None, None, None, None, "std", 0.0)),
        ("dr_grpo", ("token", 0.2, 0.2, None, None, None, None, "none", 0.0)),
        ("bnpo", ("token", 0.2, 0.2, None, None, None, None, "std", 0.04)),
        ("gspo", ("sequence", 3e-4, 4e-4, None, None, None, None, "std", 0.0)),
        ("sapo", ("token", None, None, None, 1.0, 1.05, 0.8, "std", 0.04)),
        ("cispo", ("token", None, None, 5.0, None, None, None, "std", 0.0)),
    ],
)
def test_every_option_of_the_chosen_loss_has_a_value_and_no_other(loss: str, expected: tuple[Any, ...]) -> None:
    settings = UpdateSection(loss=loss)  # type: ignore[arg-type]
    assert tuple(getattr(settings, name) for name in OPTIONS) == expected
    assert all(getattr(settings, name) == value for name, value in LOSS_OPTIONS[settings.loss].items())
    assert not settings.kl_times_ratio
    assert UpdateSection.model_validate(json.loads(settings.model_dump_json())) == settings


def test_importance_caps() -> None:
    caps = {kind: ImportanceSection(kind=kind).cap for kind in IMPORTANCE_CAPS}
    assert caps == {
        "token_truncate": 2.0,
        "sequence_mask": 3.0,
        "geometric_truncate": 2.0,
        "token_band": 5.0,
        "geometric_reject": 2.0,
        "none": None,
    }
    floors = {kind: ImportanceSection(kind=kind).floor for kind in IMPORTANCE_CAPS}
    assert {kind: floor for kind, floor in floors.items() if floor is not None} == {
        "token_band": 0.5,
        "geometric_reject": 0.5,
    }
    assert ImportanceSection(kind="sequence_mask", cap=1.5).cap == 1.5


def test_all_mistakes_are_reported_at_once_with_path_and_advice(tmp_path: Path) -> None:
    update = {
        "loss": "sapo",
        "clip_low": 0.1,
        "ratio_cap": 5,
        "tau_positive": -1,
        "importance": {"kind": "none", "cap": 2.0},
    }
    found = sorted(mistakes(tmp_path, update=update))
    assert [m.split(":")[0] for m in found] == [
        "update.clip_low",
        "update.importance.cap",
        "update.ratio_cap",
        "update.tau_positive",
    ]
    assert "loss sapo has no such option; leave it out, or choose one of kl_weight, " in found[0]
    assert "tau_rescue" in found[0]
    assert "kind none has no cap" in found[1]


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (
            {"loss": "gpo", "ratio_cap": 2, "kl_times_ratio": True},
            "update.loss: input should be 'grpo', 'dapo', 'dr_grpo', 'bnpo', 'gspo', 'sapo' or 'cispo' (it is 'gpo')",
        ),
        (
            {"loss": "gspo", "ratio": "token"},
            "update.ratio: gspo is defined by the sequence ratio; for token ratios write `loss: grpo`",
        ),
        ({"loss": "dapo", "kl_times_ratio": True}, "update.kl_times_ratio: has no effect while kl_weight is 0"),
        ({"kl_weight": 0, "kl_times_ratio": True}, "update.kl_times_ratio: has no effect while kl_weight is 0"),
        ({"loss": "cispo", "ratio_cap": 0.2}, "update.ratio_cap: input should be greater than or equal to 1"),
        ({"adam_betas": [0.9, 1.5]}, "update.adam_betas.1: input should be less than 1"),
        (
            {"importance": {"kind": "sequence", "cap": 3.0}},
            "update.importance.kind: input should be 'token_truncate', 'sequence_mask'",
        ),
        (
            {"importance": {"floor": 0.5}},
            "update.importance.floor: kind token_truncate has no floor; leave it out, or choose one of token_band, "
            "geometric_reject",
        ),
    ],
)
def test_mistake(tmp_path: Path, update: dict[str, Any], expected: str) -> None:
    (mistake,) = mistakes(tmp_path, update=update)
    assert mistake.startswith(expected)


def test_the_identity_is_that_of_the_resolved_options(tmp_path: Path) -> None:
    same = {
        run_id(tmp_path, loss="gspo"),
        run_id(tmp_path, loss="gspo", clip_high=4e-4, kl_weight=0.0, ratio="sequence"),
        run_id(tmp_path, "update.loss=gspo"),
        run_id(tmp_path, "update.clip_low=null", loss="gspo", clip_low=0.1),
    }
    assert len(same) == 1
    others = [run_id(tmp_path, loss=loss) for loss in LOSS_OPTIONS]
    assert len({*others, run_id(tmp_path, loss="gspo", clip_high=5e-4)}) == len(LOSS_OPTIONS) + 1
    assert run_id(tmp_path, loss="grpo") == run_id(tmp_path)


def test_the_group_of_compared_completions_is_part_of_the_identity(tmp_path: Path) -> None:
    assert run_id(tmp_path, group="team") == run_id(tmp_path)
    alone = run_id(tmp_path, "protocol.rescue_samples=0", group="model")
    assert alone != run_id(tmp_path, "protocol.rescue_samples=0")


def test_a_grid_over_losses_gives_each_its_own_defaults(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, grid={"update.loss": list(LOSS_OPTIONS)}))
    assert [(r.config.update.loss, r.config.update.clip_high) for r in sweep.runs] == [
        ("grpo", 0.2),
        ("dapo", 0.28),
        ("dr_grpo", 0.2),
        ("bnpo", 0.2),
        ("gspo", 4e-4),
        ("sapo", None),
        ("cispo", None),
    ]
    with pytest.raises(ConfigError, match=r"update.clip_high: loss sapo has no such option"):
        load_sweep(write(tmp_path, update={"clip_high": 0.3}, grid={"update.loss": ["grpo", "sapo"]}))


def test_a_model_may_have_its_own_learning_rate(tmp_path: Path) -> None:
    path = write(tmp_path, update={"learning_rate": 1e-4, "loss": "sapo"})
    config: RunConfig = load_sweep(path, ["team.b.learning_rate=3e-5"]).runs[0].config
    ours, theirs = (settings_of(config, model) for model in config.team)
    assert (ours, ours.learning_rate, theirs.learning_rate) == (config.update, 1e-4, 3e-5)
    assert theirs.model_copy(update={"learning_rate": 1e-4}) == ours
    with pytest.raises(ConfigError, match=r"team\.0\.learning_rate: input should be greater than 0"):
        load_sweep(path, ["team.a.learning_rate=0"])


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"team": [{"name": "a", "model": "fake:m", "engine": "fake"}], "protocol": {"rescue_samples": 0}},
            "update.old_log_probs: engine, but team[0].engine is fake",
        ),
        (
            {
                "team": [{"name": "a", "model": "m", "engine": "transformers"}],
                "protocol": {"sampling": {"top_p": 0.9}, "rescue_samples": 0},
            },
            "update.old_log_probs: engine, but a samples with top_p 0.9",
        ),
    ],
)
def test_log_probabilities_of_the_engine_must_be_those_of_the_model(
    tmp_path: Path, sections: dict[str, Any], expected: str
) -> None:
    (mistake,) = mistakes(tmp_path, update={"old_log_probs": "engine"}, **sections)
    assert expected in mistake


def test_a_single_rescue_completion_has_nothing_to_be_compared_with_in_its_phase(tmp_path: Path) -> None:
    update = {"baseline": "model_phase"}
    (mistake,) = mistakes(tmp_path, update=update, protocol={"rescue_samples": 1})
    assert "model_phase compares a rescue completion with the other ones" in mistake
    load_sweep(write(tmp_path, update=update, protocol={"rescue_samples": 2}))


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ({"old_log_probs": "engine"}, "update.old_log_probs: engine, but with protocol.staleness: 1"),
        ({"importance": {"kind": "none"}}, "update.importance.kind: none, but with protocol.staleness: 1"),
    ],
)
def test_older_samples_must_be_corrected(tmp_path: Path, update: dict[str, Any], expected: str) -> None:
    protocol = {"sampling": {"top_p": 1.0}, "staleness": 1}
    (mistake,) = mistakes(tmp_path, update=update, protocol=protocol)
    assert expected in mistake
    load_sweep(write(tmp_path, update=update, protocol={**protocol, "staleness": 0}))
    assert load_sweep(write(tmp_path, protocol=protocol)).runs[0].config.protocol.staleness == 1
