"""Makes the imports of torch, transformers, DeepSpeed and vLLM cheaper.

transformers imports scikit-learn and SciPy, with pandas, for assisted decoding and for the loss of
object detection. That is a fifth of the processor time until a model can be loaded. Nearly all objects
that large packages make while they are imported stay, and the garbage collector would look at them
again and again. That is a tenth of the processor time of these imports, and a third of the time in
which vLLM then builds an engine, because it collects garbage several times. DeepSpeed's optimizers import
the optimizer Muon, which core_hpc does not use. Its functions are compiled when it is imported, and
so torch's compiler is imported, which takes longer than DeepSpeed itself.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_UNUSED = ("is_sklearn_available", "is_scipy_available")


@contextmanager
def large_imports() -> Iterator[None]:
    """Import large packages in the block: without what no worker uses, and without the garbage collector.

    Later collections do not look at the objects that exist when something was imported.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        _skip_unused_packages()
        yield
        if "deepspeed" in sys.modules:
            _import_muon()
        if len(sys.modules) > num_modules:  # otherwise a warm worker would keep the garbage of its last task for ever
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def _import_muon() -> None:
    """Import DeepSpeed's optimizer without compiling its functions. It still works."""
    import deepspeed.runtime.compiler as deepspeed_compiler

    with replaced(deepspeed_compiler, "compile", lambda: lambda function: function):
        import deepspeed.runtime.zero.muon.muon_optimizer as muon
    assert muon


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """In the block, an attribute of another package has this value, if there is such an attribute."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _skip_unused_packages() -> None:
    """Make transformers leave out scikit-learn and SciPy.

    It has an effect on modules of transformers that are imported later. Other packages can still
    import both.
    """
    import transformers.utils
    from transformers.utils import import_utils

    for module in (transformers.utils, import_utils):
        for name in _UNUSED:
            if hasattr(module, name):
                setattr(module, name, _not_available)


def _not_available() -> bool:
    return False
