"""FLOPs and bytes against sums over the matrices of a model, hand-computed figures, and a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from core_hpc.config.cluster import ClusterSection
from core_hpc.controller import estimate, roofline
from core_hpc.controller.roofline import Gpu, Shape

ROOT = Path(__file__).parents[3]
TINY = Shape("tiny", parameters=100.0, layers=3, heads=4, kv_heads=2, head_width=5)
GPU = Gpu("g", flops_per_s=1e6, bytes_per_s=1e4, source="")


def attention_flops(n: int) -> int:
    """Causal attention, token by token: every token multiplies with all tokens up to itself, and the half of the
    diagonal that the closed form leaves out is subtracted."""
    pairs = sum(range(1, n + 1)) - n / 2
    return int(3 * 4 * pairs * (2 * 5 + 2 * 5))  # layers, heads; scores and values


@pytest.mark.parametrize("n", [2, 8, 64])
def test_a_forward_pass_multiplies_every_weight_and_every_pair_of_tokens(n: int) -> None:
    assert roofline.forward_flops(TINY, n) == 2 * 100 * n + attention_flops(n)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_training_is_six_operations_per_weight_and_four_with_lora(n: int) -> None:
    assert roofline.training_flops(TINY, n, lora=False) == 6 * 100 * n + 3 * attention_flops(n)
    assert roofline.training_flops(TINY, n, lora=True) == 4 * 100 * n + 3 * attention_flops(n)


def test_a_step_of_decoding_reads_the_weights_once_and_all_of_the_cache() -> None:
    # 2 kinds x 3 layers x 2 heads x 5 numbers x 2 bytes = 120 bytes per token.
    assert roofline.kv_bytes(TINY) == 120
    assert roofline.decode_bytes(TINY, batch=7, context=11) == 200 + 7 * 11 * 120
    # The token attends to 11 tokens: 3 layers x 4 heads x 11 x (10 + 10).
    assert roofline.decode_flops(TINY, batch=7, context=11) == 7 * (200 + 3 * 4 * 11 * 20)


def test_the_slower_of_memory_and_arithmetic_decides() -> None:
    # 200 + 120 bytes at 60 % of 10,000 bytes/s, against 440 FLOPs at 40 % of 1,000,000 FLOP/s.
    assert roofline.decode_tokens_per_s(GPU, TINY, 1, 1) == pytest.approx(6000 / 320)
    fast_memory = Gpu("g", flops_per_s=1e6, bytes_per_s=1e12, source="")
    assert roofline.decode_tokens_per_s(fast_memory, TINY, 1, 1) == pytest.approx(4e5 / 440)


def test_the_cache_of_llama_8b_is_128_kib_per_token() -> None:
    # 32 layers x 8 heads x 128 numbers, keys and values, in bfloat16.
    assert roofline.kv_bytes(roofline.SHAPES[2]) == 131_072


def test_an_update_has_eight_parts_of_which_training_is_four() -> None:
    weights_only = Shape("w", parameters=100.0, layers=0, heads=1, kv_heads=1, head_width=1)
    assert roofline.update_tokens_per_s(GPU, weights_only) == pytest.approx(4e5 / 800)
    assert roofline.training_tokens_per_s(GPU, weights_only) == pytest.approx(4e5 / 400)


@pytest.mark.parametrize(("length", "measured"), [(512, 21_200), (1024, 20_800), (2048, 19_100)])
def test_the_estimate_is_near_the_measurement_on_one_h100(length: int, measured: int) -> None:
    # The trained tokens per second of the table in tests/README.md, 4.02B parameters with LoRA.
    h100 = next(gpu for gpu in roofline.GPUS if gpu.name == "H100")
    assert f"| {measured:,} |" in (ROOT / "tests" / "README.md").read_text()
    assert roofline.training_tokens_per_s(h100, roofline.SHAPES[1], length) == pytest.approx(measured, rel=0.2)


def test_the_page_has_the_table() -> None:
    assert roofline.table() in (ROOT / "yaml" / "README.md").read_text()


@pytest.mark.parametrize(
    ("cluster", "name"),
    [
        ({"driver": "arrays", "slurm": {"gres": "gpu:a100:1"}}, "A100"),
        ({"driver": "arrays", "slurm": {"gpus_per_node": 1, "constraint": "H200"}}, "H200"),
        ({"driver": "arrays", "slurm": {"gres": "gpu:h100:1"}}, "H100"),
        ({"driver": "arrays", "slurm": {"gpus_per_node": 1}}, "H100"),
    ],
)
def test_the_gpu_that_the_jobs_name_is_used(cluster: dict[str, object], name: str) -> None:
    device = estimate.device_of(ClusterSection.model_validate(cluster), has_gpu=True)
    assert device.name == name
    assert ("experimental" in device.source) == (name in ("A100", "H200"))


def test_a_computed_rate_is_that_of_the_roofline_in_billions_of_parameters() -> None:
    gpu, shape = roofline.GPUS[0], roofline.SHAPES[1]
    device = next(d for d in estimate.COMPUTED if d.name == "A100")
    assert device.sampling == pytest.approx(4.02 * roofline.decode_tokens_per_s(gpu, shape), rel=0.03)
    assert device.training == pytest.approx(4.02 * roofline.update_tokens_per_s(gpu, shape), rel=0.04)
    assert estimate.device_of(ClusterSection(), has_gpu=False).name == "2 CPU cores"
