"""Code that vLLM has compiled for a model serves all weights of its shape.

vLLM keeps compiled code by a key that contains the path of the model. With `tuning: full` every
iteration has a new path, and each of its engines would compile the same code again.
"""

from __future__ import annotations

from copy import copy
from functools import wraps
from typing import Any


def share_compiled_code() -> None:
    """Leave the path of the model out of the key, in this process. The configuration of the model stays in it.

    vLLM looks at the Python files that it has compiled besides the key, also at those of
    `trust_remote_code`.
    """
    from vllm.config import ModelConfig

    original = ModelConfig.compute_hash
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def compute_hash(config: Any) -> Any:
        anywhere = copy(config)
        anywhere.model = ""
        return original(anywhere)

    ModelConfig.compute_hash = compute_hash
