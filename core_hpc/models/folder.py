"""What is in a model folder, whatever it came from: files, fingerprint, context length, tokenizer.

In: a folder of a model in the format of transformers. Out: facts about it, or the message that
names what is missing. Which folder a reference means is decided in `resolve.py`, and weights are
loaded in `loading.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core_hpc.common.errors import InputError
from core_hpc.models.imports import large_imports
from core_hpc.models.loading import GENERATION_CONFIG, auto_class, linear_layers, load_config, match_targets

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model")
_FINGERPRINTED = (
    *_TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
MISTRAL_FILES = ("params.json", "tekken.json", "consolidated*.safetensors")
"""The same model once more in Mistral's own format.

vLLM would load it with another class, and transformers would take another tokenizer, which neither
reads the chat template of the folder nor encodes `[THINK]` as a special token.
"""
PLAIN_TOKENIZER = "TokenizersBackend"
"""Class in tokenizer_config.json of a tokenizer that is all in tokenizer.json."""
_MIB = 1 << 20


class IncompleteError(InputError):
    """Files of a model folder are missing, and nothing else is wrong with it."""


def check_folder(folder: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """The contents of config.json, after a check that the folder is complete.

    Raises:
        IncompleteError: files are missing; the message lists all of them.
        InputError: something else is wrong, too.
    """
    missing, wrong = [], []
    if not (folder / "config.json").is_file():
        is_adapter = (folder / "adapter_config.json").is_file()
        advice = "this is an adapter: set `model` to its base, and `adapter` to this folder"
        missing.append(f"config.json ({advice if is_adapter else 'is this a transformers folder?'})")
    if not any((folder / n).is_file() for n in _TOKENIZER_FILES):
        found = "it has only tekken.json, Mistral's own format; " if (folder / "tekken.json").is_file() else ""
        missing.append(f"a tokenizer (tokenizer.json; {found}save it there with AutoTokenizer...save_pretrained)")
    if not weight_files(folder):
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        if pickles and not allow_pickle:
            wrong.append(
                f"weights as *.safetensors: it has only pickles ({pickles[0]}), which can run code when loaded. "
                "Convert them with save_pretrained, or set allow_pickle: true for this model if you trust its source"
            )
        elif not pickles:
            missing.append("weights (*.safetensors)")
    missing += _missing_shards(folder)
    wrong += _torn_weights(folder)
    if missing or wrong:
        lines = [f"model {folder}: the folder is not complete; missing:", *(f"  - {m}" for m in [*missing, *wrong])]
        raise (InputError if wrong else IncompleteError)("\n".join(lines))
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as e:
        raise InputError(f"model {folder}: config.json is not a JSON object: {e}") from e
    if not isinstance(config, dict):
        raise InputError(f"model {folder}: config.json is not a JSON object, but a {type(config).__name__}")
    return config


def _missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        return [f"a readable {index.name}: copy or download it again"]
    missing = [name for name in names if not (folder / name).is_file()]
    return [f"{name} (named by {index.name}; the download or copy is incomplete)" for name in missing]


def _torn_weights(folder: Path) -> list[str]:
    found = ((path.name, _torn(path)) for path in weight_files(folder))
    return [f"the content of {name}: {problem}" for name, problem in found if problem]


def _torn(path: Path) -> str:
    """Why a file of weights is not whole, or ""."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as f:
        if f.read(8) == b"version ":
            return "it is a pointer of Git LFS; run `git lfs pull` in the folder"
    try:
        with safe_open(path, framework="numpy"):  # compares the size of the file with its header
            return ""
    except SafetensorError as e:
        return f"it has {path.stat().st_size:,} bytes, which are not a whole file ({e}); copy or download it again"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, sorted, without those of adapters and of Mistral's format."""
    return sorted(
        p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_") and not is_mistral_file(p)
    )


def is_mistral_file(path: Path) -> bool:
    """Whether a file belongs to Mistral's own format."""
    return any(path.match(pattern) for pattern in MISTRAL_FILES)


def fingerprint(folder: Path) -> str:
    """SHA-256 over configuration, tokenizer files and weights.

    Of each weight file it includes name, size and samples. The samples are the first MiB (header
    with names and shapes, first tensors) and 64 KiB at 15 positions in the file. This is fast for
    large models, and it detects a fine-tune that did not change the first tensors.
    """
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)  # it depends on who wrote the file
    digest.update(json.dumps(config, sort_keys=True).encode())
    for path in (folder / n for n in _FINGERPRINTED):
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"\0{path.name}\0{len(data)}\0".encode() + data)
    for path in weight_files(folder) or sorted(folder.glob("*.bin")):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as f:
            digest.update(f.read(_MIB))
            for i in range(1, 16):
                f.seek(size * i // 16)
                digest.update(f.read(_MIB // 16))
    return digest.hexdigest()


def num_weights(folder: Path) -> int:
    """Number of parameters of a model, with tied ones counted once; 0 if it has no safetensors."""
    from safetensors import safe_open

    total = 0
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def context_tokens(config: dict[str, Any], folder: Path) -> int:
    """The context length of a model.

    Args:
        config: the contents of its config.json.
        folder: its folder, for the message.

    Raises:
        InputError: config.json does not have it.
    """
    text = config.get("text_config") or config
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(text.get(key), int):
            return int(text[key])
    raise InputError(f"model {folder}: config.json has no context length (max_position_embeddings); add it there")


def context_of_folder(folder: Path) -> int:
    """The context length of a model folder."""
    return context_tokens(json.loads((folder / "config.json").read_text()), folder)


def longer_context(own: int | None, has: int | None) -> str:
    """What is wrong with a model's `max_context_tokens`, or "". vLLM does not load a model with more than it has."""
    if own is None or has is None or own <= has:
        return ""
    return f"max_context_tokens is {own}, but the model has {has} tokens of context; lower it, or leave it out"


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder has a chat template."""
    if (folder / "chat_template.jinja").is_file():  # chat_template.json is of processors; no tokenizer reads it
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text()).get("chat_template"))


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a model folder. The network is never used."""
    if _is_plain_tokenizer(folder):
        # AutoTokenizer would choose the same class, but it first imports all of torch: four seconds of a core.
        with large_imports():
            from transformers.tokenization_utils_tokenizers import TokenizersBackend

        return TokenizersBackend.from_pretrained(folder, local_files_only=True)
    with large_imports():
        from transformers import AutoTokenizer

    # tokenizer.json, and not tekken.json: the engine decodes with the same tokenizer (`vllm.py`).
    return AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True, mistral_format=False
    )


def end_token_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens at which sampling ends: those of the generation configuration, and that of the tokenizer.

    The engines stop at these tokens by themselves. A model may name several, such as `<end_of_turn>`.
    """
    path = folder / GENERATION_CONFIG
    settings = json.loads((path if path.is_file() else folder / "config.json").read_text(encoding="utf-8"))
    ids = settings.get("eos_token_id", settings.get("text_config", {}).get("eos_token_id"))
    several = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*several, tokenizer.eos_token_id] if i is not None)


def _is_plain_tokenizer(folder: Path) -> bool:
    """Whether AutoTokenizer would use the class of all plain tokenizers, whatever the rest of the folder has.

    This is so for the folders of Llama models that transformers 5 wrote. For other models
    AutoTokenizer may replace the class.
    """
    files = {name: folder / name for name in ("tokenizer.json", "tokenizer_config.json", "config.json")}
    if not all(path.is_file() for path in files.values()):
        return False
    try:
        settings = json.loads(files["tokenizer_config.json"].read_text(encoding="utf-8"))
        facts = (
            json.loads(files["config.json"].read_text(encoding="utf-8"))["model_type"],
            settings["tokenizer_class"],
        )
    except (ValueError, KeyError, TypeError):
        return False  # AutoTokenizer names the mistake
    return facts == ("llama", PLAIN_TOKENIZER) and "auto_map" not in settings


def adapter_targets(folder: Path, targets: Sequence[str], *, trust_remote_code: bool = False) -> list[str]:
    """The LoRA targets that are not linear layers of the language model.

    The model is built on the meta device of torch, without memory for its weights.

    Raises:
        InputError: none of the targets is a linear layer.
    """
    import torch

    config = load_config(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    linear = {name.rpartition(".")[2] for name in linear_layers(model)}
    found, missing = match_targets(linear, targets)
    if not found:
        have = ", ".join(sorted(linear))
        raise InputError(
            f"model {folder}: none of lora.targets ({', '.join(targets)}) is a linear layer of it; it has: {have}"
        )
    return missing
