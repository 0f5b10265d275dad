"""Loads the model of a folder with the class that its config.json names.

In: a model folder and the context length of the run. Out: a transformers model, or its parts that
are trained. Trainer and engines load through this module, so they compute with the same class and
the same rotary embedding. Prompts are text, so of a model that also reads images only the language
model is trained. This module does not find or download models.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import InputError
from core_hpc.common.tensor_files import os_errors
from core_hpc.models.imports import large_imports

if TYPE_CHECKING:
    from torch import Tensor, nn

JOINED_PROJECTIONS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers of some models that join projections which other models have one by one."""
GENERATION_CONFIG = "generation_config.json"
_FACTORS = (("short_factor", "long_factor"), ("short_mscale", "long_mscale"))
"""Settings of longrope for contexts up to the original length, and for longer ones."""


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder. The network is never used."""
    with large_imports():
        from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)


def auto_class(config: Any) -> Any:
    """The automatic class of transformers that makes the model which a configuration names.

    Raises:
        InputError: the architecture does not generate text, or transformers does not know it.
    """
    with large_imports():
        import transformers
        from transformers.models.auto import modeling_auto

    architecture = (getattr(config, "architectures", None) or [""])[0]
    causal, image_text = (
        _class_names(mapping, config)
        for mapping in (
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )
    )
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if architecture in image_text and architecture not in causal and not remote:
        return transformers.AutoModelForImageTextToText
    if causal or remote:
        return transformers.AutoModelForCausalLM
    if image_text:
        return transformers.AutoModelForImageTextToText
    raise InputError(
        f"model_type {config.model_type} ({architecture or 'no architecture'}) is not a model that transformers can "
        "load to generate text; use another model, or a newer version of transformers"
    )


def load_model(folder: Path, *, context_tokens: int | None, trust_remote_code: bool = False, **options: Any) -> Any:
    """Load the weights of a folder.

    Args:
        context_tokens: largest number of prompt and completion tokens of the run; it selects the
            factors of longrope. None: the whole context of the model.
        options: further arguments of `from_pretrained`.

    Raises:
        InputError: the folder lacks weights of the model. transformers would make them at random.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    original = _rope_settings(config)
    resolve_rope(config, context_tokens)
    model, found = auto_class(config).from_pretrained(
        folder,
        config=config,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"model {folder}: its files lack {len(missing)} weights that its config.json asks for, such as "
            f"{missing[0]}; copy or download the folder again"
        )
    model.core_hpc_rope = original
    return model


def resolve_rope(config: Any, context_tokens: int | None) -> Any:
    """Select the factors of longrope for the context of a run, in place, and return the configuration.

    transformers selects them by the longest sequence of a batch, and vLLM by the largest length
    that it accepts. With equal short and long factors, both compute the same.
    """
    for rope, is_long in _longropes(config, context_tokens):
        for names in _FACTORS:
            if names[is_long] in rope:
                rope.update(dict.fromkeys(names, rope[names[is_long]]))
    return config


def uses_long_factors(config: Any, context_tokens: int | None) -> bool | None:
    """Whether `resolve_rope` selects the factors for long contexts; None: the model has no longrope."""
    return next((is_long for _, is_long in _longropes(config, context_tokens)), None)


def original_context(config: Any) -> int | None:
    """The longest context in tokens with which longrope has its short factors; None: the model has no longrope."""
    return next((_original_context(config, rope) for rope in _ropes(config) if _is_longrope(rope)), None)


def check_rope(config: Any) -> None:
    """Refuse a rotary embedding that would depend on the length of other sequences of a batch.

    Raises:
        InputError: the type of the rotary embedding is such a type; the message names it.
    """
    for rope in _ropes(config):
        kind = str(rope.get("rope_type", "default"))
        if "dynamic" in kind:
            raise InputError(
                f"its rotary embedding has the type {kind}, which changes with the longest sequence of a batch, so "
                "engine and trainer would compute different probabilities; use a model of another type (in config.json "
                "rope_parameters or rope_scaling: default, linear, llama3, yarn or longrope)"
            )


def save_model(model: Any, folder: Path, *, source: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a loaded model, with the rotary embedding and the generation settings of its own folder.

    Args:
        model: the model.
        folder: the new folder.
        source: the folder that the model was loaded from.
        state: tensors to write instead of those of the model.
    """
    with _published_rope(model), _published_generation(model), os_errors(folder):
        model.save_pretrained(folder, state_dict=None if state is None else dict(state))
    if (settings := source / GENERATION_CONFIG).is_file():
        shutil.copyfile(settings, folder / GENERATION_CONFIG)
    for path in folder.glob("*.safetensors"):  # written readable for the owner only, unlike all other files
        path.chmod(folder.stat().st_mode & 0o666)


@contextmanager
def _published_rope(model: Any) -> Iterator[None]:
    """Put the settings of the folder back while the configuration of a loaded model is written."""
    original = getattr(model, "core_hpc_rope", None)
    if original is None:
        yield
        return
    text = model.config.get_text_config()
    resolved, text.rope_parameters = text.rope_parameters, original
    try:
        yield
    finally:
        text.rope_parameters = resolved


@contextmanager
def _published_generation(model: Any) -> Iterator[None]:
    """Leave only the end tokens in the generation settings of a loaded model while it is written.

    transformers refuses to write some settings that it reads, such as a temperature without `do_sample`.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    model.generation_config = GenerationConfig(eos_token_id=getattr(own, "eos_token_id", None))
    try:
        yield
    finally:
        model.generation_config = own


def language_model(model: Any) -> tuple[str, nn.Module]:
    """The part of a model that is trained, and its name in the model.

    This is the whole model, named by an empty text, unless the model has other parts besides its
    language model.
    """
    config = getattr(model, "config", None)
    if config is None or config.get_text_config() is config:
        return "", model
    decoder = model.get_decoder()
    return next(name for name, module in model.named_modules() if module is decoder), decoder


def match_targets(layers: Collection[str], targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Match LoRA targets with the last name parts of a model's linear layers.

    Some models join projections into one layer. If all projections of such a layer are targets, the
    layer stands for them.

    Returns:
        (the layers that get an adapter, the targets that the model does not have)

    >>> match_targets(["qkv_proj", "o_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
    (['qkv_proj', 'o_proj'], ['up_proj'])
    """
    found, missing = list[str](), list[str]()
    for target in targets:
        joined = next((name for name, parts in JOINED_PROJECTIONS.items() if target in parts), None)
        if target in layers:
            found.append(target)
        elif joined is not None and joined in layers and set(targets).issuperset(JOINED_PROJECTIONS[joined]):
            found.append(joined)
        else:
            missing.append(target)
    return list(dict.fromkeys(found)), missing


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Linear layers of the language model by their name in the model, without the output embeddings."""
    from torch import nn

    prefix, part = language_model(model)
    head = model.get_output_embeddings()
    return {
        f"{prefix}.{name}".removeprefix("."): module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def trained_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Parameters of the language model and its output embeddings, by their name in the model."""
    _, part = language_model(model)
    trained = {id(p) for p in part.parameters()}
    if part is not model:
        trained |= {id(p) for p in model.get_output_embeddings().parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in trained}


def check_vllm_packages(config: Any) -> None:
    """Refuse an image-text-to-text model for vLLM where torchvision is missing.

    Raises:
        InputError: vLLM could not import the class of the model.
    """
    if config.get_text_config() is not config and find_spec("torchvision") is None:
        raise InputError(
            f"vLLM imports torchvision with the class of this model ({config.model_type}), and it is not installed; "
            "install the torchvision of your torch, or set engine: transformers for this model"
        )


def check_vllm_dtype(dtype: str, *, has_adapter: bool) -> None:
    """Refuse an adapter on float32 weights for vLLM on a GPU, whose kernels for adapters need 16 bits.

    Raises:
        InputError: the engine would end with an assertion.
    """
    if dtype == "float32" and has_adapter:
        raise InputError(
            "dtype float32 with an adapter does not work in vLLM on a GPU, whose kernels for adapters need 16 bits; "
            "set dtype: bfloat16 (or leave dtype out), or engine: transformers"
        )


def check_split(config: Any, num_gpus: int) -> None:
    """Refuse a model whose layers vLLM cannot divide among the GPUs of an engine.

    Heads of keys and values may be fewer than the GPUs. Then vLLM gives several GPUs the same head.

    Raises:
        InputError: the sizes of the model do not fit; the message names the numbers of GPUs that do.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 0
    shared = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None) or 0
    inners = [inner] if isinstance(inner, int) else inner  # some models have one per layer

    def fits(number: int) -> bool:
        is_even = not heads % number and not any(size % number for size in inners)
        return is_even and (not shared % number or not number % shared)

    if not fits(num_gpus):
        numbers = ", ".join(str(n) for n in range(1, heads + 1) if fits(n))
        raise InputError(
            f"cluster.engine_gpus: {num_gpus} GPUs cannot share its {heads} attention heads ({shared} for keys and "
            f"values) and the {inner} units of its feed-forward layers evenly; possible for this model: {numbers}"
        )


def _class_names(mapping: Any, config: Any) -> tuple[str, ...]:
    found = mapping.get(config.model_type, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _rope_settings(config: Any) -> Any:
    return copy.deepcopy(getattr(config.get_text_config(), "rope_parameters", None))


def _longropes(config: Any, context_tokens: int | None) -> Iterator[tuple[dict[str, Any], bool]]:
    """The settings of each longrope, and whether the context is longer than the original one of the model."""
    context = context_tokens or config.get_text_config().max_position_embeddings
    for rope in _ropes(config):
        if _is_longrope(rope):
            yield rope, context > _original_context(config, rope)


def _is_longrope(rope: dict[str, Any]) -> bool:
    return rope.get("rope_type") == "longrope"


def _original_context(config: Any, rope: dict[str, Any]) -> int:
    in_rope: int | None = rope.get("original_max_position_embeddings")
    return in_rope or int(config.get_text_config().original_max_position_embeddings)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The settings of the rotary embedding of a language model: one, or one for each kind of layer."""
    text = config.get_text_config()
    settings = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [v for v in settings.values() if isinstance(v, dict)]
    return nested or [settings]
