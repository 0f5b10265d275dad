"""`core_hpc.export`: the sampling settings of an exported model, as transformers reads them.

vLLM reads the same file with `GenerationConfig.to_diff_dict` and takes the fields of `OF_VLLM` as
defaults of its server, whatever `do_sample` is. `tests/integration/test_export.py` asks vLLM itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core_hpc.config.evaluation import SamplingSection
from core_hpc.export import generation_settings

BASE = {
    "bos_token_id": 3,
    "eos_token_id": [1, 2],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "min_p": 0.05,
    "typical_p": 0.9,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "no_repeat_ngram_size": 3,
    "suppress_tokens": [5],
    "max_length": 512,
    "transformers_version": "4.37.0",
}
OF_VLLM = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "max_new_tokens",
)
SAMPLED = SamplingSection(temperature=0.9, top_p=1.0, max_new_tokens=64)
GREEDY = SamplingSection(temperature=0.0, top_p=0.9, max_new_tokens=64)


def loaded(folder: Path, sampling: SamplingSection) -> Any:
    """The settings as transformers loads them. Any warning of its validation is an error here."""
    from transformers import GenerationConfig

    (folder / "generation_config.json").write_text(json.dumps(generation_settings(BASE, sampling)))
    settings = GenerationConfig.from_pretrained(folder)
    settings.validate(strict=True)
    settings.save_pretrained(folder / "again")
    return settings


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SAMPLED, {"temperature": 0.9, "top_p": 1.0, "top_k": 0, "max_new_tokens": 64}),
        (GREEDY, {"temperature": 1.0, "top_p": 1.0, "top_k": 1, "max_new_tokens": 64}),
    ],
)
def test_only_the_settings_of_the_evaluation_are_left(
    tmp_path: Path, sampling: SamplingSection, expected: dict[str, Any]
) -> None:
    found = loaded(tmp_path, sampling).to_diff_dict()
    assert {name: found[name] for name in OF_VLLM if found.get(name) is not None} == expected
    kept = {name: BASE[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    del found["transformers_version"]
    assert found == {**kept, **expected, "do_sample": True}


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY])
def test_transformers_samples_as_the_evaluation_did(tmp_path: Path, sampling: SamplingSection) -> None:
    """Of a model that finds all tokens about equally likely: any token, or always the most likely one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, **size)).eval()
    prompt = torch.tensor([[7, 8, 9]])
    settings = loaded(tmp_path, sampling)
    done = model.generate(prompt, generation_config=settings, max_new_tokens=1, num_return_sequences=400)
    tokens = set(done[:, -1].tolist())
    if sampling is GREEDY:
        assert tokens == {int(model(input_ids=prompt).logits[0, -1].argmax())}
    else:
        assert len(tokens) > 100  # with the default of transformers, a `top_k` of 50, it would be 50
