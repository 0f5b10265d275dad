"""Makes the imports of torch, transformers, DeepSpeed and vLLM cheaper.

transformers imports scikit-learn and SciPy, with pandas, for assisted decoding and for the loss of
object detection. That is a fifth of the processor time until a model can be loaded. Nearly all objects
that large packages make while they are imported stay, and the garbage collector would look at them
again and again. That is a tenth of the processor time of these imports. DeepSpeed's optimizers import
the optimizer Muon, which core_hpc does not use. Its functions are compiled when it is imported, and
so torch's compiler is imported, which takes longer than DeepSpeed itself.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED = ("is_sklearn_available", "is_scipy_available")


@contextmanager
def large_imports() -> Iterator[None]:
    """Import large packages in the block: without scikit-learn and SciPy, and without the garbage collector."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        _skip_unused_packages()
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_deepspeed() -> None:
    """Import DeepSpeed, and Muon without compiling it. Muon itself would still work, only slower."""
    with large_imports():
        import deepspeed.runtime.compiler as deepspeed_compiler

        compile_decorator = deepspeed_compiler.compile
        deepspeed_compiler.compile = lambda: lambda function: function
        try:
            import deepspeed.runtime.zero.muon.muon_optimizer as muon
        finally:
            deepspeed_compiler.compile = compile_decorator
        assert muon


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
