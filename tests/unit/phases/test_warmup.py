"""What the result of a warm-up depends on. tests/integration/test_warmup.py has warm-ups that run."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.config.identity import config_hash
from core_hpc.models.folder import load_tokenizer
from core_hpc.models.loading import GENERATION_CONFIG
from core_hpc.models.resolve import resolve_model
from core_hpc.phases import context as context_module
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.phases.warmup import (
    _lock,
    context_tokens,
    folder_of_user,
    warmup_examples,
    warmup_identity,
    warmup_rows,
)
from core_hpc.runs.roles import role_of, warmup_group
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.manifests import make_folder
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import WARMUP
from tests.support.architectures import make_tiny_phi3
from tests.support.created_run import create_run
from tests.support.second_user import COLLEAGUE_UID, as_colleague_after, require_root
from tests.support.tiny import make_tiny_model, tiny_sweep

WARM = {"problems": {"source": "generated", "task": "skills", "count": 2, "options": {"num_digits": 1}}}


@pytest.mark.parametrize("longrope", [True, False])
def test_the_context_of_the_run_selects_the_factors_of_a_longrope_also_for_its_warm_up(
    longrope: bool, tiny_models: list[Path], tmp_path: Path
) -> None:
    """A warm-up of short examples would use the factors for short contexts, and the run those for long ones."""
    model = make_tiny_phi3(tmp_path / "phi3") if longrope else tiny_models[0]
    if longrope:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "original_max_position_embeddings": 512}))
    team = [{"name": "m0", "model": str(model), "engine": "transformers", "warmup": WARM}]
    run = create_run(load_sweep(tiny_sweep(tmp_path / "tiny.yaml", [], tmp_path / "out", team=team)))
    fingerprint = resolve_model(str(model)).fingerprint

    def made(run_tokens: int) -> tuple[int, dict[str, Any]]:
        facts = {"m0": replace(run.facts["m0"], fingerprint=fingerprint, context_tokens=run_tokens)}
        context = TaskContext(run=replace(run, facts=facts), key=TaskKey(0, WARMUP, "m0"), warm=Warm())
        rows = warmup_rows(warmup_examples(context), epochs=1)
        return context_tokens(context, rows), warmup_identity(context, rows)

    longest, short = made(run_tokens=1)
    assert longest < 512
    tokens, long = made(run_tokens=513)
    assert tokens == 513
    if longrope:
        assert (short.pop("long_factors"), long.pop("long_factors")) == (False, True)
    assert long == short


def test_a_warm_up_is_made_again_for_other_end_tokens(tmp_path: Path) -> None:
    """Its result has a copy of generation_config.json, so completions would end at the old tokens."""
    model = make_tiny_model(tmp_path / "model")
    tokenizer = load_tokenizer(model)
    team = [{"name": "m0", "model": str(model), "engine": "transformers", "warmup": WARM}]
    run = create_run(load_sweep(tiny_sweep(tmp_path / "tiny.yaml", [], tmp_path / "out", team=team)))
    run = replace(run, facts={"m0": replace(run.facts["m0"], fingerprint=resolve_model(str(model)).fingerprint)})

    def identity(end: int) -> dict[str, Any]:
        (model / GENERATION_CONFIG).write_text(json.dumps({"eos_token_id": end}))
        context_module._end_ids.cache_clear()
        context = TaskContext(run=run, key=TaskKey(0, WARMUP, "m0"), warm=Warm())
        return warmup_identity(context, warmup_rows(warmup_examples(context), epochs=1))

    own = tokenizer.eos_token_id
    assert identity(own).keys() < identity(own + 1).keys()
    assert identity(own + 1)["end_ids"] == [own, own + 1]


def test_a_warm_up_can_have_the_seed_of_its_run(tiny_models: list[Path], tmp_path: Path) -> None:
    """Runs of a grid then differ in the warm-up, too. With a number of its own they share one."""
    fingerprint = resolve_model(str(tiny_models[0])).fingerprint

    def identities(seed: int, warmup_seed: int | None) -> tuple[str, str, str]:
        warmup = {**WARM, "seed": warmup_seed}
        team = [{"name": "m0", "model": str(tiny_models[0]), "engine": "transformers", "warmup": warmup}]
        folder = tmp_path / f"{seed}-{warmup_seed}"
        folder.mkdir()
        run = create_run(load_sweep(tiny_sweep(folder / "tiny.yaml", [], folder / "out", team=team, seed=seed)))
        run = replace(run, facts={"m0": replace(run.facts["m0"], fingerprint=fingerprint)})
        key = TaskKey(0, WARMUP, "m0")
        context = TaskContext(run=run, key=key, warm=Warm())
        identity = warmup_identity(context, warmup_rows(warmup_examples(context), epochs=1))
        return config_hash(identity), warmup_group(run, key), role_of(run, key)

    first, second = identities(1, None), identities(2, None)
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert identities(1, 2) == identities(3, 2) == second


def test_users_of_a_common_output_have_a_folder_of_warm_ups_each(project: Path) -> None:
    require_root()
    folder = project / ".warmups"
    assert folder_of_user(folder) == folder
    make_folder(folder)
    assert folder_of_user(folder) == folder
    imports = "from pathlib import Path; from core_hpc.phases.warmup import folder_of_user, _lock"
    code = "with _lock(folder_of_user(Path(sys.argv[1])) / 'm') as take: print('made' if take() else 'busy')"
    done = as_colleague_after(imports, code, folder)
    assert (done.stdout.splitlines()[-1:], done.stderr) == (["made"], "")
    assert (project / f".warmups-{COLLEAGUE_UID}" / "m.lock").is_file()


@pytest.mark.parametrize("age_s", [3600.0, 1e6])
def test_a_warm_up_whose_lock_is_not_seen_on_this_node_is_not_removed(age_s: float, tmp_path: Path) -> None:
    """It trains on another node, and writes its folder at the end."""
    folder = tmp_path / "m"
    training = folder / ".model.0123456789ab.tmp"
    make_folder(training)
    os.utime(training, (time.time() - age_s,) * 2)
    with _lock(folder) as take:
        take()
        assert training.exists() == (age_s == 3600.0)
