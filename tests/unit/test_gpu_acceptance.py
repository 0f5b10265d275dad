"""The GPU acceptance script, run on a CPU with a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu import acceptance


def test_every_case_has_a_function_and_together_they_fit_into_the_time() -> None:
    found = acceptance.cases("usual")
    assert len({case.name for case in found}) == len(found)
    assert {case.kind for case in found} <= {*acceptance.FUNCTIONS, "tests"}
    assert {n for case in found for n in [case.length] if case.kind == "lora"} == {512, 2048, 4096, 16384}
    assert found[0].limit_s + found[1].limit_s <= 9 * 60, "correctness and the long length always run"


def test_a_case_that_does_not_fit_is_skipped_with_its_reason() -> None:
    case = acceptance.cases("usual")[1]
    assert "may take 180 s" in str(acceptance.skipped(case, seconds_left=100, device="cuda"))
    assert acceptance.skipped(case, seconds_left=200, device="cuda") is None


@pytest.mark.slow
def test_the_script_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """The usual run trains one adapter; with --full also all weights, and with two processes."""
    trained = ("lora-4b-64", "full-0.5b", "two-processes") if full else ("lora-4b-64",)
    wanted = ("tests", *trained, "qlora-0.5b")
    chosen = [replace(case, limit_s=600) for case in acceptance.cases("tiny") if case.name in wanted]
    monkeypatch.setattr(acceptance, "cases", lambda size: chosen)
    status = acceptance.main(
        ["--out", str(tmp_path / "out.json"), "--device", "cpu", "--size", "tiny", "--minutes", "99"]
    )
    entries = {e["case"]: e for e in json.loads((tmp_path / "out.json").read_text())["cases"]}
    assert status == 0, entries
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "tests": "skipped",
        **dict.fromkeys(trained, "passed"),
        "qlora-0.5b": "skipped",
    }
    assert entries["lora-4b-64"]["train_tokens_per_s"] > 0
    if full:
        assert len(entries["two-processes"]["children"]) == 2


def test_a_case_that_fails_is_reported() -> None:
    case = acceptance.Case(name="no such case", limit_s=60)
    entry = acceptance.run_case(case, size="tiny", device="cpu")
    assert entry["status"] == "failed"
    assert "StopIteration" in entry["error"]
