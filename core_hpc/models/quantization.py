"""Base weights in 4 bits for `tuning: qlora`: quantization settings, and checks of this machine.

In: the environment of this process. Out: options for `from_pretrained` of transformers, or an
InputError that names what is missing. Engine and trainer use the same quantization (NF4 with double
quantization, like the plugin of vLLM), so they compute with the same base weights. A GPU is required
because the CPU kernels of bitsandbytes give no gradients (seen in 0.50.2, outside of training mode).
This module loads no weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import InputError

if TYPE_CHECKING:
    import torch

_ALTERNATIVE = "or train with tuning: lora"


def require_packages(*, vllm: bool = False) -> None:
    """Raise InputError if bitsandbytes is not installed, or for vLLM the plugin that adds it to vLLM."""
    for package in ("bitsandbytes", *(["vllm-bnb-plugin"] if vllm else [])):
        if find_spec(package.replace("-", "_")) is None:
            raise InputError(
                f"tuning: qlora needs {package}, which is not installed; "
                f"run: pip install 'core_hpc[qlora]', {_ALTERNATIVE}"
            )


def no_gpu() -> InputError:
    """The error for a machine without a GPU."""
    return InputError(
        "tuning: qlora keeps base weights in 4 bits, which needs a GPU, and this machine has none; "
        f"use another machine, {_ALTERNATIVE}"
    )


def require_four_bit(*, vllm: bool = False) -> None:
    """Raise InputError without a usable GPU or without the packages (see `require_packages`)."""
    import torch

    if not torch.cuda.is_available():
        raise no_gpu()
    require_packages(vllm=vllm)


def four_bit_options(device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` for weights in 4 bits on `device`.

    Such weights cannot be moved or cast.
    """
    import torch
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantization, "device_map": {"": device}, "dtype": torch.bfloat16}
