"""Adapters with which a model begins: what a reference means, and which adapters fit. PEFT writes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import InputError
from core_hpc.config.model import LoraSection
from core_hpc.models.adapters import (
    ADAPTER_CONFIG,
    AdapterSource,
    adapter_digest,
    check_adapter,
    find_adapter,
    read_shape,
    split_reference,
)
from core_hpc.models.folder import fingerprint
from tests.support.tiny import make_tiny_model

LORA = LoraSection(rank=3, alpha=6, targets=["q_proj", "down_proj"])


def write_adapter(model: Path, folder: Path, **changes: Any) -> Path:
    """An adapter of PEFT with weights that are not 0."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(3)
    config = peft.LoraConfig(**{**settings, **changes}, init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tiny_models[0], tmp_path_factory.mktemp("adapter"))


def test_an_adapter_of_peft_fits_the_model_that_it_was_trained_on(adapter: Path, tiny_models: list[Path]) -> None:
    source = find_adapter(str(adapter), name="m0")
    assert source == AdapterSource(adapter.resolve(), None)
    check_adapter(source, LORA, tiny_models[0])
    shape = read_shape(adapter)
    assert (shape.rank, shape.alpha, sorted(shape.targets)) == (3, 6.0, ["down_proj", "q_proj"])
    assert shape.modules["model.layers.1.mlp.down_proj"] == (64, 32)
    assert len(shape.modules) == 4


def test_base_weights_are_compared_where_they_are_known(adapter: Path, tiny_models: list[Path]) -> None:
    check_adapter(AdapterSource(adapter, fingerprint(tiny_models[0])), LORA, tiny_models[0])
    with pytest.raises(InputError, match="was trained on other base weights"):
        check_adapter(AdapterSource(adapter, "0" * 64), LORA, tiny_models[0])


@pytest.mark.parametrize(("first", "is_plain"), [("pissa_niter_4", False), ("olora", False), ("gaussian", True)])
def test_an_adapter_that_changes_its_base_weights_is_refused(
    adapter: Path, tmp_path: Path, first: str, is_plain: bool
) -> None:
    """PEFT changes them when it loads such an adapter. Engine and trainer would compute with different weights."""
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, "init_lora_weights": first}))
    if is_plain:
        assert read_shape(folder) == read_shape(adapter)
    else:
        with pytest.raises(InputError, match=f"init_lora_weights of adapter_config.json is {first}, which changes"):
            read_shape(folder)


@pytest.mark.parametrize("changes", [{"rank": 4}, {"alpha": 32}, {"targets": ["q_proj"]}])
def test_the_message_has_the_section_that_fits(adapter: Path, tiny_models: list[Path], changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        check_adapter(AdapterSource(adapter), LORA.model_copy(update=changes), tiny_models[0])
    written = str(error.value).partition("write ")[2]
    import yaml

    section = LoraSection.model_validate(yaml.safe_load(written)["lora"])
    check_adapter(AdapterSource(adapter), section, tiny_models[0])


def test_an_adapter_of_another_size_is_refused(adapter: Path, tmp_path: Path) -> None:
    larger = make_tiny_model(tmp_path / "larger", hidden=64)
    with pytest.raises(InputError, match=r"does not fit the model .* 4 of its 4 layers"):
        check_adapter(AdapterSource(adapter), LORA, larger)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_rslora": True}, "use_rslora of adapter_config.json"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, r"other tensors than lora_A and lora_B \(.*lm_head"),
    ],
)
def test_other_kinds_are_refused_with_what_to_do(
    changes: dict[str, Any], message: str, tiny_models: list[Path], tmp_path: Path
) -> None:
    folder = write_adapter(tiny_models[0], tmp_path / "other", **changes)
    with pytest.raises(InputError, match=rf"{message}[\s\S]*merge it into its base weights .* as `model`"):
        read_shape(folder)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no such folder"),
        (without("adapter_config.json"), r"no adapter_config.json.*whole model belongs in `model`"),
        (without("adapter_model.safetensors"), "no adapter_model.safetensors"),
    ],
)
def test_a_folder_without_an_adapter(
    change: Callable[[Path], object], message: str, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter, folder)
    change(folder)
    with pytest.raises(InputError, match=message):
        find_adapter(str(folder), name="m0")


def test_a_torn_file_is_an_error_of_the_user(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be read"):
        read_shape(folder)


def test_the_digest_is_of_what_the_adapter_computes(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "elsewhere"}))
    assert adapter_digest(folder) == adapter_digest(adapter)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 7}))
    assert adapter_digest(folder) != adapter_digest(adapter)


def test_what_a_reference_means(tmp_path: Path) -> None:
    assert split_reference("out/a/run-1@last") == (Path("out/a/run-1"), "last", None)
    assert split_reference("out/a@b/run-1@3:left") == (Path("out/a@b/run-1"), "3", "left")
    assert split_reference("out/a/adapter") is None
    folder = tmp_path / "odd@3"
    folder.mkdir()
    assert split_reference(str(folder)) is None
    with pytest.raises(InputError, match=r"is not a run folder \(it has no run.json\)"):
        find_adapter(f"{tmp_path}@3", name="a")
