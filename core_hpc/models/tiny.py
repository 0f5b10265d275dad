"""Tiny models with random weights, as a start for a supervised warm-up (`tiny:NAME`).

In: the name of a tiny model. Out: an ordinary model folder: configuration, random weights from a
fixed seed, and a small tokenizer with a chat template. Such a model knows nothing until
`team[].warmup` has trained it. Because one has a million weights, whole experiments take minutes on
a CPU.

The tokenizer is not trained. Every byte is a token, so it encodes every text without loss, and a
digit is always a token of its own. Words that occur in prompts and in the problems of
`problems/skills.py` are merged to one token each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_hpc.common.tensor_files import os_errors
from core_hpc.models.prompts import HINT_HEADING
from core_hpc.problems.skills import WORDS

TINY_VERSION = 1
"""Part of the folder's name in the cache; raise it when the folder would differ."""
_END, _PAD, _USER, _ASSISTANT = _MARKS = ("<end>", "<pad>", "<user>", "<assistant>")
_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{{ m.content }}<end>"
    "{% else %}<user>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
_WORDS = [*WORDS, "####", *HINT_HEADING.replace(".", " ").replace(",", " ").split()]
_SPACE = "\u0120"
"""How a byte-level tokenizer writes a space."""


@dataclass(frozen=True)
class TinyModel:
    """Sizes of a tiny model."""

    architecture: str
    """llama or qwen2."""
    hidden: int
    layers: int
    inner: int
    """Width of the feed-forward layers."""
    heads: int
    seed: int


TINY_MODELS = {
    "llama-1m": TinyModel("llama", hidden=128, layers=4, inner=448, heads=4, seed=1),
    "qwen2-1m": TinyModel("qwen2", hidden=128, layers=4, inner=448, heads=4, seed=2),
    "llama-5m": TinyModel("llama", hidden=256, layers=6, inner=768, heads=8, seed=3),
}
"""Name -> sizes. The number in a name is the approximate number of weights in millions."""


def write_tiny_model(name: str, folder: Path) -> None:
    """Write the folder of a tiny model with random weights.

    Args:
        name: a key of `TINY_MODELS`.
        folder: an existing, empty folder.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tiny, tokenizer = TINY_MODELS[name], tiny_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.inner,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tiny.seed)
        if tiny.architecture == "llama":
            model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    with os_errors(folder):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_tokenizer() -> Any:
    """The tokenizer of all tiny models."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?#+|[\s\S]"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in _MARKS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_PAD)
    fast.add_special_tokens({"additional_special_tokens": [_USER, _ASSISTANT]})
    fast.chat_template = _TEMPLATE
    return fast


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges: all bytes, every word after a space, and capitalised words without one.

    A word is merged from left to right, so its longer and longer beginnings are tokens, too. No
    other word has a merge that could begin inside of it.
    """
    from tokenizers import pre_tokenizers

    tokens = [*_MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in [*(_SPACE + word for word in _WORDS), *(word for word in _WORDS if word[0].isupper())]:
        for end in range(1, len(word)):
            merge = word[:end], word[end]
            if merge not in merges:
                merges.append(merge)
                tokens.append(word[: end + 1])
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges
