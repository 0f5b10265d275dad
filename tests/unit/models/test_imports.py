"""Imports of large packages: what no worker uses is left out, and the garbage collector is paused."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import types
import weakref
from pathlib import Path

import pytest

from core_hpc.models.imports import large_imports, replaced

ROOT = Path(__file__).parents[3]


def test_an_update_leaves_out_what_it_does_not_use_and_others_can_still_import_it() -> None:
    """Its packages are imported without the garbage collector, which looks at all objects in generation 2.

    Later it does not look at them either. DeepSpeed finds its optimizer Muon imported, but not compiled.
    """
    code = (
        "import gc, sys, core_hpc.phases; before = gc.get_stats()[2]['collections']; core_hpc.phases._step('update'); "
        "assert gc.isenabled() and gc.get_stats()[2]['collections'] == before; "
        "assert gc.get_freeze_count() > 100_000; "
        "import torch; from deepspeed.runtime import compiler; assert compiler.compile() is torch.compile; "
        "assert {'deepspeed.runtime.zero.muon.muon_optimizer'} <= set(sys.modules); "
        "assert 'torch._inductor.compile_fx' not in sys.modules; "
        "from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "assert not {'sklearn', 'scipy', 'pandas'} & set(sys.modules); "
        "import sklearn.metrics, sentence_transformers"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)


def test_the_collector_is_paused_for_the_block_and_then_as_before() -> None:
    with large_imports():
        assert not gc.isenabled()
        with large_imports():
            pass
        assert not gc.isenabled(), "an inner block must leave it as it found it"
    assert gc.isenabled()
    with pytest.raises(ImportError), large_imports():
        raise ImportError
    assert gc.isenabled()


def test_a_warm_worker_does_not_keep_its_garbage_when_everything_is_imported() -> None:
    """It enters such blocks with every task."""
    with large_imports():
        pass
    garbage = type("Garbage", (), {})()
    garbage.itself = garbage
    alive = weakref.ref(garbage)
    del garbage
    with large_imports():
        pass
    gc.collect()
    assert alive() is None


def test_an_attribute_is_replaced_for_the_block_only_and_only_if_it_exists() -> None:
    owner = types.SimpleNamespace(present=1)
    with replaced(owner, "present", 2), replaced(owner, "absent", 3):
        assert vars(owner) == {"present": 2}
    assert vars(owner) == {"present": 1}
    with pytest.raises(ImportError), replaced(owner, "present", 2):
        raise ImportError
    assert vars(owner) == {"present": 1}


def test_a_plain_tokenizer_is_loaded_without_torch_and_is_the_one_of_auto_tokenizer(
    tiny_models: list[Path], tmp_path: Path
) -> None:
    """Also for a folder whose class is another one, which AutoTokenizer loads."""
    code = """
import sys
import types
import weakref
from pathlib import Path
from core_hpc.models.folder import load_tokenizer
folders = [Path(name) for name in sys.argv[1:]]
plain = [load_tokenizer(folder) for folder in folders[:2]]
assert not {"torch", "sklearn"} & set(sys.modules), "a plain tokenizer needs no torch"
other = load_tokenizer(folders[2])
assert "torch" in sys.modules
from transformers import AutoTokenizer
for found, folder in zip([*plain, other], folders, strict=True):
    expected = AutoTokenizer.from_pretrained(folder, local_files_only=True, mistral_format=False)
    assert type(found) is type(expected), folder
    assert found("2 + 3 = é").input_ids == expected("2 + 3 = é").input_ids
    assert found.chat_template == expected.chat_template
    assert found.special_tokens_map == expected.special_tokens_map
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
from transformers.models.auto import tokenization_auto
assert "llama" not in tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
"""
    other = tmp_path / "other"
    shutil.copytree(tiny_models[0], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, [*tiny_models, other])], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
