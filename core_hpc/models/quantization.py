"""Base weights in 4 bits, for `tuning: qlora`: the settings of the quantisation, and what a machine needs for it.

In: nothing but this process's surroundings. Out: options for transformers' from_pretrained, or an InputError that says what
is missing. Engine and trainer quantise alike (NF4, double quantisation, as vLLM does by itself), so they compute with the
same base weights. It is for GPUs: what bitsandbytes computes with on a CPU gives no gradients (seen in 0.50.2, outside of
training mode). This module loads no weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from core_hpc.common.errors import InputError

if TYPE_CHECKING:
    import torch

_ELSE = "or train with tuning: lora"


def require_package() -> None:
    """InputError when bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"tuning: qlora needs bitsandbytes, which is not installed; run: pip install 'core_hpc[qlora]', {_ELSE}"
        )


def no_gpu() -> InputError:
    """What to say where there is no GPU."""
    return InputError(
        f"tuning: qlora keeps base weights in 4 bits, which needs a GPU, and this machine shows none; use another, {_ELSE}"
    )


def require_four_bit() -> None:
    """InputError when this process cannot hold weights of 4 bits: no GPU that torch can use, or no bitsandbytes."""
    import torch

    if not torch.cuda.is_available():
        raise no_gpu()
    require_package()


def four_bit_options(device: torch.device) -> dict[str, Any]:
    """Options of transformers' from_pretrained for weights of 4 bits on `device` (they cannot be moved or cast afterwards)."""
    import torch
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantisation, "device_map": {"": device}, "dtype": torch.bfloat16}
