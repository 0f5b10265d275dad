"""Tiny models: a lossless tokenizer with whole words and digits, equal weights in every process."""

import subprocess
import sys
from pathlib import Path

import pytest

from core_hpc.common.errors import InputError
from core_hpc.config.problems import GeneratedProblems
from core_hpc.models import resolve
from core_hpc.models.folder import load_tokenizer, num_weights
from core_hpc.models.prompts import HINT_HEADING, PromptBuilder
from core_hpc.models.tiny import TINY_MODELS, tiny_tokenizer
from core_hpc.problems.generators import generate
from core_hpc.problems.skills import FAMILIES, OPERATORS

QUESTION, SOLUTION = "Digit by digit: 64 zib 40 = ?", "64 zib 40: 6+6+4=16, keep 6. 4+4+0=8, keep 8. #### 68"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORE_HPC_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("text", [QUESTION, SOLUTION, HINT_HEADING, "Ünï 日本\n\n foo  <x>\tbar ####", ""])
def test_every_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_and_words_are_tokens_of_their_own() -> None:
    tokenizer = tiny_tokenizer()
    options = dict.fromkeys(FAMILIES, 1)
    source = GeneratedProblems(source="generated", task="skills", count=len(FAMILIES), options=options)
    for item in generate(source, len(FAMILIES), "t", set()):
        text = f"{item.question} {item.metadata['solution']}"
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert [t for t in tokens if any(c.isdigit() for c in t)] == [c for c in text if c.isdigit()]
        words = [t.removeprefix("\u0120") for t in tokens if t.removeprefix("\u0120").isalpha()]
        assert [w for w in words if w in OPERATORS] == [w for w in text.replace(":", " ").split() if w in OPERATORS]
        assert set(words) <= {"Digit", "by", "digit", "keep", *OPERATORS}


def test_prompt_and_solution_through_the_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    builder = PromptBuilder(tokenizer, "chat", "", (("Q 1", "S #### 1"),))
    prompt = builder.build(QUESTION)
    assert tokenizer.decode(prompt) == f"<user>Q 1<assistant>S #### 1<end><user>{QUESTION}<assistant>"
    completion = builder.completion_ids(SOLUTION, ())
    assert completion[-1] == tokenizer.eos_token_id
    assert builder.completion_text(completion, ()) == SOLUTION


def test_the_same_folder_in_another_process(cache: Path) -> None:
    found = {name: resolve.resolve_model(f"tiny:{name}") for name in TINY_MODELS}
    for name, model in found.items():
        millions = int(name.rpartition("-")[2].removesuffix("m"))
        assert num_weights(model.folder) == pytest.approx(millions * 1e6, rel=0.06)
        assert model.has_chat_template
        assert load_tokenizer(model.folder)(SOLUTION)["input_ids"] == tiny_tokenizer()(SOLUTION)["input_ids"]
    assert len({model.fingerprint for model in found.values()}) == len(found)
    code = "import sys; from core_hpc.models.resolve import resolve_model as r; print(r(sys.argv[1]).fingerprint)"
    environment = {"CORE_HPC_CACHE": str(cache / "other"), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "tiny:qwen2-1m"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split()[-1] == found["qwen2-1m"].fingerprint


def test_an_unknown_name_lists_the_known_ones(cache: Path) -> None:
    with pytest.raises(InputError, match="tiny:gpt is not known; known: tiny:llama-1m"):
        resolve.resolve_model("tiny:gpt")
