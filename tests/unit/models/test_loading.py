"""Loading models of the architectures of the paper: class, tokenizer, rotary embedding, what is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.config.model import ModelSection
from core_hpc.controller import prepare
from core_hpc.models import loading, resolve
from core_hpc.models.folder import adapter_targets, load_tokenizer, num_weights, weight_files
from core_hpc.models.loading import (
    check_rope,
    check_split,
    linear_layers,
    load_config,
    load_model,
    resolve_rope,
    save_model,
)
from core_hpc.runs.sweep import load_sweep
from tests.support.architectures import (
    MISTRAL_TEMPLATE,
    ORIGINAL_TOKENS,
    add_mistral_files,
    make_tiny_mistral3,
    make_tiny_phi3,
)
from tests.support.tiny import tiny_sweep

TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def mistral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Ministral-3 with the files of both formats."""
    folder = make_tiny_mistral3(tmp_path_factory.mktemp("mistral3"))
    add_mistral_files(folder)
    return folder


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_phi3(tmp_path_factory.mktemp("phi3"))


def test_the_class_is_the_one_that_the_configuration_names(mistral3: Path, phi3: Path, tiny_models: list[Path]) -> None:
    names = [type(load_model(f, context_tokens=64)).__name__ for f in (mistral3, phi3, tiny_models[0])]
    assert names == ["Mistral3ForConditionalGeneration", "Phi3ForCausalLM", "LlamaForCausalLM"]


def test_a_model_that_generates_no_text_is_refused(phi3: Path) -> None:
    from transformers import PixtralVisionConfig

    from core_hpc.models.loading import auto_class

    with pytest.raises(InputError, match=r"model_type pixtral \(no architecture\) is not a model"):
        auto_class(PixtralVisionConfig())


def test_an_engine_can_share_only_layers_that_divide_evenly(mistral3: Path) -> None:
    """The numbers that are allowed are those for which vLLM's own sizes per GPU are whole."""
    from transformers import LlamaConfig, MambaConfig

    sizes = {"hidden_size": 96, "intermediate_size": 48, "num_attention_heads": 12, "num_key_value_heads": 4}
    config = LlamaConfig(**sizes)
    for number in (1, 2, 4, 12):  # 12 GPUs: three have the same head of keys and values
        check_split(config, number)
    with pytest.raises(InputError, match=r"5 GPUs cannot share its 12 attention heads .* this model: 1, 2, 4, 12"):
        check_split(config, 5)
    with pytest.raises(InputError, match="3 GPUs"):
        check_split(config, 3)
    with pytest.raises(InputError, match=r"4 GPUs .* and the 50 units .* this model: 1, 2$"):
        check_split(LlamaConfig(**{**sizes, "intermediate_size": 50}), 4)
    differing = SimpleNamespace(num_attention_heads=4, intermediate_size=[48, 50])  # one size per layer
    differing.get_text_config = lambda: differing
    check_split(differing, 2)
    with pytest.raises(InputError, match="4 GPUs"):
        check_split(differing, 4)
    check_split(load_config(mistral3), 1)
    check_split(MambaConfig(), 1)


def test_only_linear_layers_of_the_language_model_are_targets(mistral3: Path) -> None:
    names = set(linear_layers(load_model(mistral3, context_tokens=64)))
    assert len(names) == 2 * 7
    assert all(n.startswith("model.language_model.layers.") for n in names)
    assert adapter_targets(mistral3, ["q_proj", "linear_1"]) == ["linear_1"], "the projector is not trained"


def test_the_tokenizer_is_the_one_of_tokenizer_json(mistral3: Path) -> None:
    tokenizer = load_tokenizer(mistral3)
    assert tokenizer("[THINK]", add_special_tokens=False)["input_ids"] == [tokenizer.convert_tokens_to_ids("[THINK]")]
    assert tokenizer.chat_template == MISTRAL_TEMPLATE


def test_a_folder_without_tokenizer_json_is_refused(mistral3: Path, tmp_path: Path) -> None:
    for path in mistral3.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match=r"tokenizer\.json; it has only tekken\.json, Mistral's own format"):
        resolve.resolve_model(str(tmp_path))


def test_weights_of_the_second_format_are_not_counted(mistral3: Path, tmp_path: Path) -> None:
    assert [p.name for p in weight_files(mistral3)] == ["model.safetensors"]
    expected = sum(p.numel() for p in load_model(mistral3, context_tokens=64).parameters())
    assert num_weights(mistral3) == expected


def test_a_snapshot_leaves_out_the_second_format(monkeypatch: pytest.MonkeyPatch, phi3: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    calls: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        calls.append(options)
        return str(phi3)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve.resolve_model("mistralai/Ministral-3-3B-Reasoning-2512")
    files = ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "processor_config.json"]
    hub = [*files, "params.json", "tekken.json", "consolidated.safetensors", "consolidated-00001-of-00002.safetensors"]
    patterns = {k: calls[0][k] for k in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(hub, **patterns)) == files


@pytest.mark.parametrize(
    ("context", "factors"),
    [(ORIGINAL_TOKENS, "short_factor"), (ORIGINAL_TOKENS + 1, "long_factor"), (None, "long_factor")],
)
def test_the_context_of_the_run_selects_the_factors(
    phi3: Path, tmp_path: Path, context: int | None, factors: str
) -> None:
    original = load_config(phi3).rope_parameters
    resolved = resolve_rope(load_config(phi3), context).rope_parameters
    assert resolved["short_factor"] == resolved["long_factor"] == original[factors]
    model = load_model(phi3, context_tokens=context)
    assert model.config.rope_parameters == resolved
    save_model(model, tmp_path / "saved", source=phi3)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1  # a colleague who may read one file may read all
    assert load_config(tmp_path / "saved").rope_parameters == original
    assert model.config.rope_parameters == resolved


def test_weights_that_are_missing_are_not_made_at_random(tiny_models: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_models[0], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lack \d+ weights .* such as model\.layers\.\d+\.input_layernorm"):
        load_model(folder, context_tokens=None)


def test_rotary_embeddings_that_depend_on_other_sequences_are_refused(phi3: Path, mistral3: Path) -> None:
    from transformers import LlamaConfig

    for folder in (phi3, mistral3):
        check_rope(load_config(folder))
    with pytest.raises(InputError, match="has the type dynamic"):
        check_rope(LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0}))


def test_preparation_refuses_what_would_fail_later(
    mistral3: Path, tiny_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None  # the checks of the model come before those of the run
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"imports torchvision with the class of this model \(mistral3\)"):
        prepare._model_facts(nothing, ModelSection(name="m", model=str(mistral3), engine="vllm"), nothing)
    for path in tiny_models[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has the type dynamic"):
        prepare._model_facts(nothing, ModelSection(name="m", model=str(tmp_path), engine="vllm"), nothing)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "config.json",
            '{"model_type": "x", "max_position_embeddings": 64}',
            "transformers cannot read its config.json",
        ),
        ("tokenizer.json", "{", r"its tokenizer cannot be loaded \(JSONDecodeError"),
        ("chat_template.jinja", "{% for %}", r"its chat template fails; .* \(TemplateSyntaxError"),
        ("chat_template.jinja", "{{ raise_exception('roles') }}", r"its chat template fails; .* \(TemplateError: r"),
    ],
)
def test_a_start_names_the_file_that_a_library_refuses(
    name: str, content: str, expected: str, tiny_models: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_models[0], tmp_path / "m")
    (tmp_path / "m" / name).write_text(content)
    (plan,) = load_sweep(tiny_sweep(tmp_path / "s.yaml", [tmp_path / "m", tiny_models[1]], tmp_path / "out")).runs
    with pytest.raises(InputError, match=rf"team\.0 \(m0\): model .*/m: {expected}"):
        prepare.prepare(plan.config)


@pytest.mark.parametrize("kind", ["mistral3", "phi3"])
def test_full_tuning_publishes_a_model_like_the_one_of_the_folder(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import torch

    from core_hpc.training.full import FullPolicy

    folder = request.getfixturevalue(kind)
    policy = FullPolicy(lambda: load_model(folder, context_tokens=128), folder, with_reference=False)
    parameters = policy.start(seed=0, from_base=True)
    assert not any("vision" in n or "projector" in n for n in parameters)
    with torch.no_grad():
        parameters["model.norm.weight" if kind == "phi3" else "model.language_model.norm.weight"].mul_(2)
    policy.synchronise()
    policy.write(tmp_path, {n: p.detach() for n, p in parameters.items()})
    assert {"params.json", "tekken.json", "consolidated.safetensors"}.isdisjoint(p.name for p in tmp_path.iterdir())
    expected, found = policy.base.state_dict(), load_model(tmp_path, context_tokens=128).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    before, after = (load_config(f).get_text_config().rope_parameters for f in (folder, tmp_path))
    assert before == after, "the factors of this run must not be published"
