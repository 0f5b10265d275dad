"""A tiny random Llama with its own tokenizer, and small sweep files for fast system tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def byte_tokenizer(*, special: tuple[str, ...] = (), template: str | None = None) -> Any:
    """A tokenizer with one token per byte.

    Args:
        special: additional tokens that decoding can leave out.
        template: the chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = template
    return fast


def make_tiny_model(folder: Path, *, seed: int = 0, chat: bool = False, hidden: int = 32) -> Path:
    """Write a random two-layer Llama and a byte-level tokenizer as an ordinary model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>assistant:" if chat else None
    tokenizer = byte_tokenizer(template=template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PROTOCOL: dict[str, Any] = {
    "problems_per_iteration": 4,
    "problems_per_part": 2,
    "cold_samples": 3,
    "rescue_samples": 2,
    "hint_tokens": 64,
    "hint_probability": 0.5,
    "sampling": {"max_new_tokens": 48, "temperature": 1.0, "top_p": 1.0},
}
"""The section `protocol` of `tiny_sweep`."""


def tiny_sweep(path: Path, models: list[Path], output: Path, **changes: Any) -> Path:
    """Write the sweep file of a small run with the fake engine.

    `changes` replace top-level sections.
    """
    data: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "iterations": 2,
        "output": str(output),
        "team": [
            {"name": f"m{i}", "model": str(model), "engine": "fake", "lora": {"rank": 4}}
            for i, model in enumerate(models)
        ],
        "problems": {
            "train": {"source": "generated", "task": "addition_chain", "count": 8, "seed": 1},
            "evaluation": {"source": "generated", "task": "addition_chain", "count": 6, "seed": 2},
            "num_examples": 1,
        },
        "protocol": PROTOCOL,
        "reward": {"distance": {"embedder": "fake:hashing"}},
        "update": {"problems_per_step": 2, "learning_rate": 0.001},
        "evaluation": {"samples": 2, "sampling": {"max_new_tokens": 48, "temperature": 1.0, "top_p": 1.0}},
        "cluster": {"num_running": 2, "threads": 1},
    }
    path.write_text(yaml.safe_dump({**data, **changes}), encoding="utf-8")
    return path


def tiny_vllm_sweep(path: Path, model: Path, output: Path, *, samples: int, **changes: Any) -> Path:
    """Write the sweep file of a small run of one model with vLLM, without rescues.

    Args:
        samples: completions per held-out problem.
        changes: as for `tiny_sweep`; those of `update`, `evaluation` and `cluster` are added to its sections.
    """
    sampling = {"max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0}
    sections: dict[str, dict[str, Any]] = {
        "update": {"problems_per_step": 2, "learning_rate": 0.01},
        "evaluation": {"samples": samples, "sampling": sampling},
        "cluster": {"num_running": 1, "threads": 1, "kv_cache_gb": 0.1},
    }
    return tiny_sweep(
        path,
        [model],
        output,
        team=[{"name": "m0", "model": str(model), "engine": "vllm", "lora": {"rank": 4}}],
        protocol={"problems_per_iteration": 4, "cold_samples": 3, "rescue_samples": 0, "sampling": sampling},
        **{name: {**section, **changes.pop(name, {})} for name, section in sections.items()},
        **changes,
    )
