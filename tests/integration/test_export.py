"""`core-hpc export`: what it writes is loaded by PEFT, transformers and vLLM, and is the trained model.

vLLM runs in its own process, which runs this file as a script. The log-probabilities of every
loaded model are compared with those of the published update.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core_hpc import export
from core_hpc.config.evaluation import SamplingSection
from core_hpc.config.model import LoraSection
from core_hpc.engines import AdapterRef, EngineSpec, GenerationRequest, SamplingSettings, create_engine
from core_hpc.engines import worker_environment as environment_of
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import UPDATE
from tests.support.harness import ROOT, launch, the_run
from tests.support.tiny import make_tiny_model, tiny_sweep

pytestmark = pytest.mark.slow
PROMPT = [5, 6, 7, 8, 9]
SAMPLING = {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 16}
OF_THE_BASE = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: one model has adapters, the other trains all weights."""
    folder = tmp_path_factory.mktemp("export")
    models = [make_tiny_model(folder / f"model{i}", seed=i, hidden=256, chat=bool(i)) for i in range(2)]
    (models[0] / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    for model in models:
        settings = json.loads((model / "generation_config.json").read_text())
        (model / "generation_config.json").write_text(json.dumps(settings | OF_THE_BASE))
    sweep = tiny_sweep(
        folder / "tiny.yaml",
        models,
        folder / "out",
        team=[
            {"name": "m0", "model": str(models[0]), "engine": "fake", "lora": {"rank": 4}},
            {"name": "m1", "model": str(models[1]), "engine": "fake", "tuning": "full"},
        ],
        evaluation={"samples": 2, "sampling": SAMPLING},
        update={"problems_per_step": 1, "learning_rate": 0.02},
    )
    done = launch(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    return the_run(folder / "out" / "tiny")


def exported(run: Path, folder: Path, *arguments: str) -> Path:
    """The folder of an export. The command runs in this process, which has imported torch already."""
    assert export.main([str(run), "--out", str(folder), *arguments]) == 0
    return folder


def published(run: Path, model: str, iteration: int = 2) -> Path:
    return manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(iteration, UPDATE, model))).folder


def log_probs(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([PROMPT])).logits[0].float().log_softmax(-1)


def base_of(run: Path) -> Path:
    return run.parents[2] / "model0"


def test_an_adapter_loads_with_peft_from_any_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exported(run, tmp_path / "adapter", "--model", "m0")
    monkeypatch.chdir(tmp_path)
    found = log_probs(AutoPeftModelForCausalLM.from_pretrained(folder))
    base = AutoModelForCausalLM.from_pretrained(base_of(run))
    untrained = log_probs(base)
    wanted = log_probs(PeftModel.from_pretrained(base, published(run, "m0")))
    assert float((found - wanted).abs().max()) < TOLERANCE
    assert float((found - untrained).abs().max()) > 0.01
    assert AutoTokenizer.from_pretrained(folder)("2 + 3") == AutoTokenizer.from_pretrained(base_of(run))("2 + 3")
    assert not {"steps.parquet", "trainer_state.json", "optimizer"} & {p.name for p in folder.iterdir()}


def test_a_merged_model_and_a_full_one_load_with_transformers_and_vllm(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    merged = exported(run, tmp_path / "merged", "--model", "m0", "--merge")
    full = exported(run, tmp_path / "full", "--model", "m1", "--iteration", "1")
    adapter = exported(run, tmp_path / "adapter", "--model", "m0")
    base = AutoModelForCausalLM.from_pretrained(base_of(run))
    wanted = {
        "merged": log_probs(PeftModel.from_pretrained(base, published(run, "m0"))),
        "full": log_probs(AutoModelForCausalLM.from_pretrained(published(run, "m1", 1))),
    }
    wanted["adapter"] = wanted["merged"]
    for name, folder in {"merged": merged, "full": full}.items():
        found = log_probs(AutoModelForCausalLM.from_pretrained(folder))
        assert float((found - wanted[name]).abs().max()) < TOLERANCE, name
    settings = GenerationConfig.from_pretrained(merged)
    assert (settings.temperature, settings.top_p, settings.max_new_tokens, settings.do_sample) == (0.8, 0.9, 16, True)
    assert settings.eos_token_id == base.generation_config.eos_token_id
    monkeypatch.setattr(export, "_sampling", lambda _: SamplingSection(temperature=0, max_new_tokens=16))
    greedy = exported(run, tmp_path / "greedy", "--model", "m0", "--merge")
    cards = [(folder / "README.md").read_text() for folder in (merged, greedy)]
    assert ["To sample, set top_k to 0." in card for card in cards] == [False, True]
    folders = {"merged": merged, "full": full, "adapter": adapter, "greedy": greedy}
    first, defaults = _by_vllm(folders, base_of(run), tmp_path)
    sampled = {"temperature": 0.8, "top_p": 0.9, "top_k": 0, "max_tokens": 16}
    assert defaults == {
        "merged": sampled,
        "full": sampled,
        "greedy": {"temperature": 1.0, "top_p": 1.0, "top_k": 1, "max_tokens": 16},
    }
    for name, (token, logprob) in first.items():
        assert abs(float(wanted[name][-1, token]) - logprob) < 1e-3, name


def test_the_card_has_results_with_intervals_licence_and_configuration(run: Path, tmp_path: Path) -> None:
    import yaml

    text = (exported(run, tmp_path / "adapter", "--model", "m0") / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    assert yaml.safe_load(head)["library_name"] == "peft"
    rows = [line for line in body.splitlines() if line.startswith(("| 0 |", "| 2 |"))]
    assert [row.split(" | ")[0].strip("| ") + row.split(" | ")[1] for row in rows] == [
        f"{i}Pass@{k}" for i in (0, 2) for k in (1, 2)
    ]
    assert all(" to " in row for row in rows)
    fields = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert fields["seed"] == 7
    not_evaluated = (exported(run, tmp_path / "first", "--model", "m0", "--iteration", "1") / "README.md").read_text()
    assert "Iteration 1 was not evaluated." in not_evaluated


def test_an_empty_link_and_the_working_directory_take_an_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were refused after all the work."""
    for name in ("real", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "here")
    for out in ("../link", "."):
        assert export.main([str(run), "--model", "m0", "--out", out]) == 0
    for name in ("real", "here"):
        assert (tmp_path / name / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "new"], "has 2 models; add --model with one of m0, m1"),
        (["--out", "new", "--model", "m2"], "--model m2: the run has m0, m1"),
        (["--out", "new", "--model", "m0", "--iteration", "9"], "no such update of m0 is published; there are 1 to 2"),
        (["--out", "used", "--model", "m0"], "exists already and is not empty"),
        (["--out", "new", "--model", "m0", "--push", "me"], "--push me: must be OWNER/NAME"),
    ],
)
def test_a_mistake_leaves_nothing_behind(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    assert export.main([str(run), *arguments]) != 0
    shown = " ".join((capsys.readouterr().err + capsys.readouterr().out).split())
    assert expected in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["used"]
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["notes.txt"]


# --- vLLM ------------------------------------------------------------------------------------------


def _by_vllm(
    folders: dict[str, Path], base: Path, where: Path
) -> tuple[dict[str, tuple[int, float]], dict[str, dict[str, float]]]:
    """The first sampled token of each export with its log-probability, and the defaults of vLLM's server."""
    given = {name: str(folder) for name, folder in folders.items()} | {"base": str(base)}
    env = os.environ | environment_of("vllm", 1) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, json.dumps(given), str(where / "vllm.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    first, defaults = json.loads((where / "vllm.json").read_text())
    return first, defaults


def _complete(folders: dict[str, str], out_file: Path) -> None:
    """The process of vLLM."""
    from vllm.config import ModelConfig

    defaults = {n: ModelConfig(folders[n]).get_diff_sampling_param() for n in ("merged", "full", "greedy")}
    found = {}
    for name in ("merged", "full", "adapter"):
        is_adapter = name == "adapter"
        spec = EngineSpec(
            kind="vllm",
            model_folder=Path(folders["base" if is_adapter else name]),
            max_context_tokens=64,
            lora=LoraSection(rank=4) if is_adapter else None,
            kv_cache_gb=0.1,
        )
        engine = create_engine(spec)
        adapter = AdapterRef(Path(folders[name]), name) if is_adapter else None
        (done,) = engine.generate([GenerationRequest(tuple(PROMPT), 1)], SamplingSettings(1.0, 1.0, 1), adapter=adapter)
        engine.close()
        found[name] = (done.token_ids[0], done.logprobs[0])
    out_file.write_text(json.dumps((found, defaults)))


if __name__ == "__main__":
    _complete(json.loads(sys.argv[1]), Path(sys.argv[2]))
