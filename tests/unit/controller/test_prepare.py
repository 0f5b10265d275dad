"""What a start checks before it creates or submits anything, with tiny models and their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.controller.prepare import prepare
from core_hpc.runs.sweep import load_sweep
from tests.support.tiny import tiny_sweep


def prepared(folder: Path, models: list[Path], *overrides: str, **changes: Any) -> None:
    """Prepare the first run of a tiny sweep."""
    sweep = load_sweep(tiny_sweep(folder / "tiny.yaml", models, folder / "out", **changes), overrides)
    prepare(sweep.runs[0].config)


def test_a_context_longer_than_that_of_the_model_is_refused(tiny_models: list[Path], tmp_path: Path) -> None:
    """vLLM would refuse it when it loads the model, in every attempt."""
    longer = r"team.0 \(m0\): max_context_tokens is 1025, but the model has 1024 tokens of context; lower it"
    with pytest.raises(InputError, match=longer):
        prepared(tmp_path, tiny_models, "team.m0.max_context_tokens=1025")
    prepared(tmp_path, tiny_models, "team.m0.max_context_tokens=1024")
