"""Adapters of other runs: runs that begin with them, and evaluations of them, through the real task graph.

transformers and PEFT, without any code of core_hpc, compute which model sampled a completion.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from analysis.counts.load import load_run
from analysis.metrics.passk import PASS, pass_at_k_table
from analysis.report.summary import summary_tables
from core_hpc.models.adapters import adapter_digest
from core_hpc.runs.folder import list_runs, open_run, read_identity
from core_hpc.store import manifests, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import COLD, EVALUATE, ROLLOUTS, STEPS, UPDATE
from tests.support.harness import evaluate, flip_a_byte, launch, refused, the_run
from tests.support.ranks import largest_difference, weights
from tests.support.tiny import tiny_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SAMPLING = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
PROTOCOL = {"problems_per_iteration": 2, "cold_samples": 2, "rescue_samples": 0, "sampling": SAMPLING}
LORA = {"rank": 2, "alpha": 8, "targets": ["q_proj", "v_proj"]}


def sweep_file(folder: Path, name: str, team: list[dict[str, Any]], **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "name": name,
        "team": [{"engine": "transformers", "lora": LORA, **member} for member in team],
        "iterations": 1,
        "protocol": PROTOCOL,
        "evaluation": {"samples": 2, "sampling": SAMPLING},
        "update": {"problems_per_step": 1, "learning_rate": 0.05, "max_mismatch": 100.0},
        **changes,
    }
    return tiny_sweep(folder / f"{name}.yaml", [], folder / "out", **settings)


@pytest.fixture(scope="module")
def folder(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep `first` (one update of each model), and `second`, which begins with its adapters.

    The second sweep trains with a learning rate of almost 0.
    """
    folder = tmp_path_factory.mktemp("adapters")
    team = [{"name": f"m{i}", "model": str(model)} for i, model in enumerate(tiny_models)]
    done = launch(sweep_file(folder, "first", team))
    assert done.returncode == 0, done.stdout + done.stderr
    first = the_run(folder / "out" / "first")
    peft = folder / "copied"
    shutil.copytree(update_folder(first, "m1"), peft)
    begun = [
        {"name": "other", "model": str(tiny_models[0]), "adapter": f"{first}@last:m0"},
        {"name": "copy", "model": str(tiny_models[1]), "adapter": str(peft)},
    ]
    update = {"problems_per_step": 1, "learning_rate": 1e-12, "kl_weight": 0.1}
    done = launch(sweep_file(folder, "second", begun, update=update))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def update_folder(run: Path, model: str) -> Path:
    return manifests.read_manifest(RunPaths(run).task_manifest(TaskKey(1, UPDATE, model))).folder


def logprobs_of(rows: pl.DataFrame, model: Any) -> float:
    """The largest difference of the recorded log-probabilities from those of a model."""
    worst = 0.0
    for row in rows.iter_rows(named=True):
        prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
        found = logits.log_softmax(-1)[torch.arange(len(completion)), completion]
        worst = max(worst, float((found - torch.tensor(row["logprobs"])).abs().max()))
    return worst


@pytest.mark.parametrize(("name", "earlier", "index"), [("other", "m0", 0), ("copy", "m1", 1)])
def test_evaluation_0_cold_and_update_begin_with_the_adapter(
    folder: Path, tiny_models: list[Path], name: str, earlier: str, index: int
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    first, second = the_run(folder / "out" / "first"), the_run(folder / "out" / "second")
    source = update_folder(first, earlier)
    base = AutoModelForCausalLM.from_pretrained(tiny_models[index]).eval()
    model = PeftModel.from_pretrained(base, source).eval()
    for key in (TaskKey(0, EVALUATE, name), TaskKey(1, COLD, name)):
        rows = shards.read_task(second, key, ROLLOUTS)
        assert logprobs_of(rows, model) < 1e-3
        with model.disable_adapter():
            assert logprobs_of(rows, model) > 0.02
    trained = weights(update_folder(second, name))
    assert largest_difference(trained, weights(source)) < 1e-6
    steps = shards.read_task(second, TaskKey(1, UPDATE, name), STEPS)
    assert steps["global_step"].to_list() == [1, 2]  # of a fresh optimizer


def test_the_run_has_a_copy_and_its_identity_the_digest(folder: Path) -> None:
    first, second = the_run(folder / "out" / "first"), the_run(folder / "out" / "second")
    identity = read_identity(second)
    digests = {name: identity["models"][name]["adapter"] for name in ("other", "copy")}
    assert digests == {"other": adapter_digest(update_folder(first, "m0")), "copy": adapter_digest(folder / "copied")}
    assert digests["copy"] == adapter_digest(update_folder(first, "m1"))
    assert read_identity(first)["models"]["m0"]["adapter"] == ""
    names = {path.name for path in manifests.read_manifest(RunPaths(second).adapter_manifest("other")).folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_damaged_copy_is_made_again_if_the_source_is_the_same(folder: Path) -> None:
    second = the_run(folder / "out" / "second")
    copies = {name: RunPaths(second).adapter_manifest(name) for name in ("other", "copy")}
    before = manifests.read_manifest(copies["other"]).files[1].sha256
    flip_a_byte(manifests.read_manifest(copies["other"]).file("safetensors"))
    done = launch(folder / "second.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "copied again from" in done.stdout
    assert manifests.read_manifest(copies["other"]).files[1].sha256 == before
    flip_a_byte(manifests.read_manifest(copies["copy"]).file("safetensors"))
    flip_a_byte(folder / "copied" / "adapter_model.safetensors")
    done = launch(folder / "second.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is not the one with which the run was started" in done.stderr
    assert "Restore" in done.stderr


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"adapter": "{first}@7"}, "has published no update 7 of m0, only 1"),
    ({"adapter": "{first}@1:m9"}, "has no model m9, only m0, m1"),
    ({"adapter": "{first}"}, "is a run; add an iteration, for example"),
    ({"adapter": "{first}@1:m1"}, "was trained on other base weights"),
    ({"adapter": "{first}@1:m0", "lora": {"rank": 4}}, "write lora: {rank: 2, alpha: 8, targets: [q_proj, v_proj]}"),
    ({"adapter": "{folder}/none"}, "there is no such folder"),
]


def test_all_mistakes_are_found_before_anything_is_created(folder: Path, tiny_models: list[Path]) -> None:
    places = {"first": the_run(folder / "out" / "first"), "folder": folder}
    team = [
        {"name": f"m{i}", "model": str(tiny_models[0]), **member, "adapter": member["adapter"].format(**places)}
        for i, (member, _) in enumerate(MISTAKES)
    ]
    done = refused("launch", sweep_file(folder, "wrong", team))
    assert done.returncode == 2, done.stdout + done.stderr
    printed = done.stderr.replace("\n", " ")
    for i, (_, message) in enumerate(MISTAKES):
        _, found, rest = printed.partition(f"team.{i} (m{i}): adapter")
        assert found, f"team.{i}: {done.stderr}"
        own = rest.partition(f"team.{i + 1} ")[0]
        assert message in own, f"team.{i}: {own}"
    assert not list((folder / "out").glob("wrong/*/run.json"))


def test_list_runs_does_not_take_the_copies_for_runs(folder: Path) -> None:
    assert len(list_runs(folder / "out" / "second")) == 1
    assert json.loads((the_run(folder / "out" / "second") / "config.json").read_text())["iterations"] == 1


# --- core_hpc.evaluate ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> dict[str, Path]:
    """The runs of an evaluation of the run `first`, by label: before and after its update, two sets, two samplings."""
    first = the_run(folder / "out" / "first")
    sets = ["--problems", "more={source: generated, task: addition_chain, count: 3, seed: 9}"]
    common = [first, "--iteration", "0", "last", "--name", "ev"]
    done = evaluate(*common, *sets, "--temperature", "0", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluation" in done.stdout
    again = evaluate(*common, *sets, "--temperature", "0", "1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "everything is done: 4 run(s)" in again.stdout
    done = evaluate(*common)  # the held-out problems and the sampling of the run
    assert done.returncode == 0, done.stdout + done.stderr
    runs = list_runs(folder / "out" / "ev")
    return {read_identity(run)["label"]: run for run in runs}


def test_an_evaluation_samples_with_the_weights_of_its_iteration(
    folder: Path, evaluated: dict[str, Path], tiny_models: list[Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert sorted(evaluated) == [
        f"iteration-{i}-{rest}" for i in (0, 1) for rest in ("held-out-t1", "more-greedy", "more-t1")
    ]
    first = the_run(folder / "out" / "first")
    for name, base_folder in zip(("m0", "m1"), tiny_models, strict=True):
        base = AutoModelForCausalLM.from_pretrained(base_folder).eval()
        model = PeftModel.from_pretrained(base, update_folder(first, name)).eval()
        for label, run in evaluated.items():
            rows = shards.read_task(run, TaskKey(0, EVALUATE, name), ROLLOUTS)
            with nullcontext() if label.startswith("iteration-1") else model.disable_adapter():
                if label.endswith("greedy"):
                    assert rows.height == 3
                    assert all(is_greedy(row, model) for row in rows.iter_rows(named=True))
                else:
                    assert logprobs_of(rows, model) < 1e-3
            with nullcontext() if label.startswith("iteration-0") else model.disable_adapter():
                if label.endswith("t1"):
                    assert logprobs_of(rows, model) > 0.02


def is_greedy(row: dict[str, Any], model: Any) -> bool:
    prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits[torch.arange(len(completion)), completion]
    return bool((logits.max(-1).values - chosen < 1e-4).all())


def test_the_held_out_problems_are_asked_as_in_the_run(folder: Path, evaluated: dict[str, Path]) -> None:
    first = the_run(folder / "out" / "first")
    columns = ["problem_id", "sample_index", "prompt_token_ids", "gold"]
    for name in ("m0", "m1"):
        own = shards.read_task(first, TaskKey(1, EVALUATE, name), ROLLOUTS).select(columns)
        here = shards.read_task(evaluated["iteration-1-held-out-t1"], TaskKey(0, EVALUATE, name), ROLLOUTS)
        assert here.select(columns).equals(own)


def test_analysis_reads_an_evaluation_like_a_run(evaluated: dict[str, Path]) -> None:
    data = load_run(evaluated["iteration-1-more-t1"])
    rows = shards.read_tasks(data.path, [TaskKey(0, EVALUATE, m) for m in ("m0", "m1")], ROLLOUTS)
    table = pass_at_k_table(data.counts, ks=[1], models=data.models).filter(pl.col("measure") == PASS)
    expected = dict(rows.group_by("model").agg(pl.col("correct").mean()).rows())
    assert dict(table.select("model", "estimate").rows()) == expected
    (summary,) = summary_tables(data)
    assert summary.shown.columns == ["model", "measure", "evaluation"]
    assert not any("no evaluation after training" in note for note in summary.notes)


@pytest.mark.full(reason="another input of core_hpc.evaluate")
def test_a_peft_folder_and_its_base_are_a_team(folder: Path, tiny_models: list[Path], tmp_path: Path) -> None:
    problems = "{source: generated, count: 3, seed: 9}"
    common = ["--problems", problems, "--output", tmp_path, "--max-new-tokens", 8, "--samples", 1]
    engines = ["--set", "team.0.engine=transformers", "--set", "team.1.engine=transformers"]
    done = evaluate(tiny_models[0], update_folder(the_run(folder / "out" / "first"), "m0"), *common, *engines)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = list_runs(next(tmp_path.glob("evaluate-*")))
    prompts = [
        shards.read_task(run, TaskKey(0, EVALUATE, m.name), ROLLOUTS)["prompt_token_ids"].to_list()
        for m in open_run(run).config.team
    ]
    assert prompts[0] == prompts[1]


def test_wrong_arguments_end_with_a_message(folder: Path) -> None:
    first = the_run(folder / "out" / "first")
    for arguments, message in (
        ([first, "--iteration", "7"], "has no such update of every model; there are 0, 1"),
        ([first, first], "a run is evaluated alone"),
        ([first, "--base", "x"], "--base is for PEFT folders"),
    ):
        done = refused("evaluate", *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert message in done.stderr
