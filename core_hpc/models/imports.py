"""Keeps packages out of a process that transformers would import and that nobody here uses.

transformers imports scikit-learn and SciPy, with pandas, for assisted decoding and for the loss of
object detection. That is a fifth of the processor time until a model can be loaded.
"""

from __future__ import annotations

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


def _not_available() -> bool:
    return False
