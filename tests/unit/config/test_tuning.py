"""`team.tuning` in a sweep file, and the messages on machines that cannot use 4-bit weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import yaml
from core_hpc.common.errors import ConfigError, InputError
from core_hpc.config.model import LoraSection, ModelSection
from core_hpc.config.run import RunConfig
from core_hpc.controller.prepare import prepare
from core_hpc.engines import EngineSpec, create_engine
from core_hpc.engines.vllm import _engine_arguments
from core_hpc.models import quantization
from core_hpc.runs.sweep import load_sweep

DATA: dict[str, Any] = {
    "name": "s",
    "iterations": 1,
    "team": [{"name": "a", "model": "x"}],
    "protocol": {"rescue_samples": 0},
    "problems": {"train": {"source": "generated", "count": 40}, "evaluation": {"source": "generated", "count": 4}},
}


def sweep(tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**DATA, "team": [{**DATA["team"][0], **changes}]}))
    return load_sweep(path)


def test_an_adapter_is_the_default_and_full_tuning_has_none(tmp_path: Path) -> None:
    assert (ModelSection(name="a", model="x").tuning, ModelSection(name="a", model="x").lora) == ("lora", LoraSection())
    for tuning, lora in (("lora", LoraSection()), ("qlora", LoraSection()), ("full", None)):
        config: RunConfig = sweep(tmp_path, tuning=tuning).runs[0].config
        assert config.team[0].lora == lora
        assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config
    assert sweep(tmp_path, tuning="full", lora=None).runs[0].run_id == sweep(tmp_path, tuning="full").runs[0].run_id
    assert sweep(tmp_path, tuning="lora", lora={"rank": 16}).runs[0].run_id == sweep(tmp_path).runs[0].run_id
    assert len({sweep(tmp_path, tuning=tuning).runs[0].run_id for tuning in ("lora", "qlora", "full")}) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"tuning": "full", "lora": {"rank": 8}},
            "team.0.lora: tuning: full trains every weight and has no adapter; leave it out",
        ),
        (
            {"tuning": "qlora", "dtype": "float32"},
            "team.0.tuning: qlora computes in bfloat16, but dtype is float32; leave dtype out",
        ),
        ({"tuning": "dora"}, "team.0.tuning: input should be 'lora', 'qlora' or 'full'"),
        ({"lora": {"rnk": 8}}, "team.0.lora.rnk: unknown key; did you mean `rank`?"),
    ],
)
def test_mistake(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, **changes)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(expected)


def qlora_config(model: Path, driver: str, engine: str = "fake") -> RunConfig:
    team = [{"name": "a", "model": str(model), "engine": engine, "tuning": "qlora"}]
    sizes = {"hint_tokens": 8, "sampling": {"max_new_tokens": 8}, "rescue_samples": 0}
    other = {"evaluation": {"sampling": {"max_new_tokens": 8}}, "reward": {"distance": {"embedder": "fake:hashing"}}}
    return RunConfig.model_validate({**DATA, **other, "team": team, "protocol": sizes, "cluster": {"driver": driver}})


def test_preparation_refuses_qlora_where_it_cannot_run(
    tiny_models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver local needs a GPU. With SLURM the login node needs none, only the package."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        InputError, match=r"team.0 \(a\): tuning: qlora keeps base weights in 4 bits, which needs a GPU.*tuning: lora"
    ):
        prepare(qlora_config(tiny_models[0], "local"))
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs bitsandbytes, which is not installed; run: pip install 'core_hpc\[qlora\]', or"
    ):
        prepare(qlora_config(tiny_models[0], "arrays"))
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    assert set(prepare(qlora_config(tiny_models[0], "arrays"))) == {"a"}


def test_four_bits_in_vllm_need_its_plugin(tiny_models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.32 itself has no 4-bit weights of bitsandbytes."""
    import torch

    monkeypatch.setattr(quantization, "find_spec", lambda name: None if name == "vllm_bnb_plugin" else object())
    expected = r"needs vllm-bnb-plugin, which is not installed; run: pip install 'core_hpc\[qlora\]'"
    with pytest.raises(InputError, match=expected):
        prepare(qlora_config(tiny_models[0], "arrays", "vllm"))
    assert set(prepare(qlora_config(tiny_models[0], "arrays", "transformers"))) == {"a"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=expected):
        create_engine(EngineSpec(kind="vllm", model_folder=tiny_models[0], max_context_tokens=64, four_bit=True))


def test_engine_and_trainer_refuse_four_bits_without_a_gpu(
    tiny_models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from core_hpc.training.policy import load_base_model

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for kind in ("transformers", "vllm"):
        with pytest.raises(InputError, match="needs a GPU, and this machine has none"):
            create_engine(EngineSpec(kind=kind, model_folder=tiny_models[0], max_context_tokens=64, four_bit=True))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a GPU, and this machine has none"):
        load_base_model(tiny_models[0], dtype="auto", device=torch.device("cpu"), four_bit=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="bitsandbytes, which is not installed"):
        load_base_model(tiny_models[0], dtype="auto", device=torch.device("cpu"), four_bit=True)


def test_four_bit_options_are_those_of_the_qlora_paper() -> None:
    import torch

    options = quantization.four_bit_options(torch.device("cuda", 1))
    found = options["quantization_config"].to_dict()
    assert {
        k: found[k] for k in ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    } == {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }
    assert found["bnb_4bit_compute_dtype"] == "bfloat16"
    assert (options["device_map"], options["dtype"]) == ({"": torch.device("cuda", 1)}, torch.bfloat16)


def test_the_tuning_decides_whether_vllm_gets_adapters_or_four_bit_weights() -> None:
    spec = partial(EngineSpec, kind="vllm", model_folder=Path("/model"), max_context_tokens=64)
    plain = _engine_arguments(spec(), on_cpu=False)
    assert (plain["enable_lora"], plain["max_lora_rank"], "quantization" in plain) == (True, 16, False)
    # The first seven are the default; a model that joins them has the last two instead.
    assert plain["lora_target_modules"][6:] == ["down_proj", "qkv_proj", "gate_up_proj"]
    some = _engine_arguments(spec(lora=LoraSection(targets=["q_proj", "o_proj"])), on_cpu=False)
    assert some["lora_target_modules"] == ["q_proj", "o_proj"]
    four_bit = _engine_arguments(spec(four_bit=True), on_cpu=False)
    assert (four_bit["enable_lora"], four_bit["quantization"]) == (True, "bitsandbytes")
    full = _engine_arguments(spec(lora=None), on_cpu=False)
    assert {"enable_lora", "max_lora_rank", "max_loras", "lora_target_modules", "quantization"} & full.keys() == set()


def test_a_sleeping_engine_keeps_no_cuda_graphs_on_the_gpu() -> None:
    spec = partial(EngineSpec, kind="vllm", model_folder=Path("/model"), max_context_tokens=64)
    names = ("enable_sleep_mode", "sleep_mode_offload_cudagraph")
    for sleeps in (True, False):
        arguments = _engine_arguments(spec(sleeps=sleeps), on_cpu=False)
        assert [arguments[name] for name in names] == [sleeps, sleeps]
    assert not set(names) & _engine_arguments(spec(sleeps=True), on_cpu=True).keys()


def test_vllm_on_a_gpu_has_no_adapter_on_float32_weights(tiny_models: list[Path]) -> None:
    """Its kernels assert 16 bits. Jobs without GPUs, other engines and `tuning: full` may have float32."""
    message = r"dtype float32.*vLLM on a GPU.*dtype: bfloat16.*engine: transformers"
    spec = partial(EngineSpec, kind="vllm", model_folder=Path("/model"), max_context_tokens=64, dtype="float32")
    with pytest.raises(InputError, match=message):
        _engine_arguments(spec(), on_cpu=False)
    assert _engine_arguments(spec(), on_cpu=True)["dtype"] == "float32"
    assert _engine_arguments(spec(lora=None), on_cpu=False)["dtype"] == "float32"

    def facts(driver: str, gpus: int, **model: Any) -> Any:
        config = qlora_config(tiny_models[0], driver, "vllm").model_dump()
        slurm = {"gpus_per_node": gpus, "max_mem_gb": 1}
        config["team"][0] |= {"tuning": "lora", "dtype": "float32", **model}
        return prepare(RunConfig.model_validate({**config, "cluster": {"driver": driver, "slurm": slurm}}))

    for driver in ("arrays", "resident"):
        with pytest.raises(InputError, match=rf"team.0 \(a\): .*{message}"):
            facts(driver, 1)
        assert facts(driver, 0)
    assert facts("arrays", 1, engine="transformers")
    assert facts("arrays", 1, tuning="full", lora=None)
    assert facts("local", 0)
