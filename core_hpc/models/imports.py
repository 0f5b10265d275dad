"""Makes the imports of torch and transformers cheaper.

transformers imports scikit-learn and SciPy, with pandas, for assisted decoding and for the loss of
object detection. That is a fifth of the processor time until a model can be loaded. This module keeps
them out of a process, and it pauses the garbage collector while large packages are imported.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED = ("is_sklearn_available", "is_scipy_available")


def skip_unused_packages() -> None:
    """Make transformers leave out scikit-learn and SciPy.

    It has an effect on modules of transformers that are imported later, so call it first. Other
    packages can still import both.
    """
    import transformers.utils
    from transformers.utils import import_utils

    for module in (transformers.utils, import_utils):
        for name in _UNUSED:
            if hasattr(module, name):
                setattr(module, name, _not_available)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector while large packages are imported in the block.

    Nearly all objects that they make stay, and the collector would look at them again and again. That
    is a tenth of the processor time of these imports.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _not_available() -> bool:
    return False
