"""A small run equals a recorded one, so a reorganisation of the code does not change results.

A recorded file has digests of everything exact (ids, seeds, texts, verdicts, hints), and numbers
of everything that another processor may round differently (rewards, adapters). The fake engine draws
from the bytes of the adapter, so its texts after the first update depend on this rounding, too.
Therefore there is a file for each known rounding, and a run must equal one of them as a whole. After
an intended change of results remove the files, and record again on each kind of processor:

    python -m pytest tests/integration/test_recorded_run.py --record
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core_hpc.runs.sweep import load_sweep
from tests.support.harness import ROOT, published_content

pytestmark = pytest.mark.slow
RECORDED = sorted(Path(__file__).parent.glob("recorded_run*.json"))
ADDED_LATER = {"leak", "hint_problem_id", "num_lessons", "kept_mass"}
"""Columns that the recorded version does not have."""
NOT_EXACT = (pl.Float32, pl.Float64, pl.List(pl.Float32))


def digest_and_figures(content: pl.DataFrame | bytes) -> dict[str, Any]:
    """What is compared for one published table or weight file."""
    if isinstance(content, bytes):
        from safetensors.torch import load

        tensors = load(content)
        norms = {key: float(tensor.double().norm()) for key, tensor in sorted(tensors.items())}
        first = {f"norm {i}": norm for i, norm in enumerate(list(norms.values())[:4])}
        return {"names": digest("\n".join(norms)), "norm": sum(norms.values()), **first}
    exact = [c for c, dtype in content.schema.items() if c not in {"run_id", *ADDED_LATER} and dtype not in NOT_EXACT]
    floats = [c for c, dtype in content.schema.items() if c not in ADDED_LATER and dtype in NOT_EXACT[:2]]
    rows = content.select(exact).rows()
    return {
        "rows": len(rows),
        "exact": digest(json.dumps(rows)),
        **{c: float(content[c].cast(pl.Float64).abs().sum()) for c in floats},
    }


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_small_run_equals_the_recorded_one(shared_runs: dict[str, Path], pytestconfig: pytest.Config) -> None:
    """One model samples with transformers. The other (fake engine) is often its teacher.

    The recorded run was alone. This one shares its workers with other runs.
    """
    content = published_content(shared_runs["recorded"])
    found = {name: digest_and_figures(content) for name, content in sorted(content.items())}
    found["quickstart"] = {"run_id": load_sweep(ROOT / "yaml" / "quickstart.yaml").runs[0].run_id}
    if pytestconfig.getoption("--record"):
        path = Path(__file__).with_name(f"recorded_run_{len(RECORDED) + 1}.json")
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        pytest.skip(f"recorded {len(found)} results in {path.name}")
    differing = {path.name: differences(found, json.loads(path.read_text(encoding="utf-8"))) for path in RECORDED}
    assert not all(differing.values()), {name: found[:5] for name, found in differing.items()}
    assert differing


def differences(found: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """What is not as recorded."""
    if found.keys() != recorded.keys():
        return sorted(found.keys() ^ recorded.keys())
    return [
        f"{name}: {what} is {found[name][what]}, not {value}"
        for name, expected in recorded.items()
        for what, value in expected.items()
        if found[name][what] != (pytest.approx(value, rel=2e-3, abs=1e-5) if isinstance(value, float) else value)
    ]
