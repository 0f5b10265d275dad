"""The cost of a run in hours of a device, estimated before it starts: tokens x parameters / rate.

In: a resolved configuration, and the number of held-out problems in all its evaluations. Out:
hours. The rates are in a table with the source of each rate; assumptions are marked as such. GPUs
without a measurement have the rates of `roofline.py`.
Warm-ups, loading, scoring and waiting are not included. What a run has cost is in `analysis/timing/cost.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from core_hpc.config.cluster import ClusterSection
from core_hpc.config.model import ModelSection
from core_hpc.config.run import RunConfig
from core_hpc.controller import roofline
from core_hpc.store.schema import COLD, EVALUATE

LENGTH_SHARES = (0.1, 0.3, 1.0)
"""Mean length of a completion or a hint, as a share of the greatest length. It is not known before
the run, so the estimate has one column for each of these shares."""
PROMPT_TOKENS = 150
"""Assumption: tokens of a prompt without its hint. In the update, completions of the same problem
and phase share it. In sampling, the rate of the engine includes its time."""
UNKNOWN_BILLIONS = 4.0
"""Assumption: parameters, in billions, of a model whose name does not contain the number."""
FULL_TUNING = 1.25
"""Cost of training all weights relative to an adapter: the backward pass also computes the
gradients of the weights, so an update has 10 parts instead of 8 (see the source of the first
device). The cost of unpacking 4-bit weights (qlora) is not known and not included."""
FORMULA = (
    "hours = sum over models of billions of parameters (at least the smallest of the device) x (sampled tokens / "
    "sampling rate + trained tokens / training rate) / 3600; sampled: completions x share x max_new_tokens; "
    "trained: the same without evaluation, plus "
    f"share x hint_tokens for a completion with a hint, plus {PROMPT_TOKENS} (assumption) for the prompt, once per "
    "problem and phase, plus the cold completions of the peers with update.hacpo, "
    f"all x {FULL_TUNING} with tuning: full; warm-ups, loading, scoring and waiting are not included"
)


@dataclass(frozen=True)
class Device:
    """Rates of one device, in billions of parameters x tokens/s.

    A model with twice the parameters is assumed to be half as fast. The training rate includes the
    passes for the log-probabilities of the old and the reference policy.

    Attributes:
        smallest: billions of parameters below which a model is no faster, because the work per
            layer and call takes longer than the arithmetic.
    """

    name: str
    sampling: float
    training: float
    source: str
    smallest: float = 0.0


DEVICES = (
    Device(
        "H100",
        sampling=20_000,
        training=40_000,
        source="sampling: assumption, 5,000 tokens/s for 4B parameters; training: measured, 20,000 tokens/s in the "
        "optimizer steps of 4B parameters with LoRA r 16, compiled (tests.benchmarks.gpu_update), x 4/8, because the "
        "steps are forward and backward (2 parts each), and an update also has the passes for the old and the "
        "reference policy (2 parts each)",
    ),
    Device(
        "2 CPU cores",
        sampling=46,
        training=75,
        source="measured in the quickstart, one core for each model: smollm2 (0.135B) samples 169 and trains 280 "
        "tokens/s, gemma3 (0.27B) 110 and 194; prompts of 150 tokens, completions of 14; twice the lower of the two. "
        "Smallest: two models of 0.001B (yaml/teaching/tier1.yaml), one core each, sample 3,100 and train 4,400 "
        "tokens/s, as 0.008B would",
        smallest=0.008,
    ),
)
"""The sampling rate of the H100 is an assumption. All other rates of these two were measured."""


def _from_roofline(gpu: roofline.Gpu) -> Device:
    """The rates of a GPU on which nothing was measured."""
    shape = next(s for s in roofline.SHAPES if s.name.startswith(f"{UNKNOWN_BILLIONS:g}B"))
    billions = shape.parameters / 1e9
    return Device(
        gpu.name,
        sampling=float(f"{billions * roofline.decode_tokens_per_s(gpu, shape):.2g}"),
        training=float(f"{billions * roofline.update_tokens_per_s(gpu, shape):.2g}"),
        source=f"experimental: computed, not measured, for {shape.name}, by counting FLOPs and bytes (roofline.py); "
        f"{gpu.flops_per_s / 1e12:g} TFLOP/s and {gpu.bytes_per_s / 1e12:g} TB/s ({gpu.source}), of which training "
        f"reaches {roofline.MFU:.0%} and decoding {roofline.BANDWIDTH_SHARE:.0%}; {roofline.BATCH} completions of "
        f"{roofline.CONTEXT} tokens are decoded together",
    )


COMPUTED = tuple(_from_roofline(gpu) for gpu in roofline.GPUS if gpu.name not in {d.name for d in DEVICES})
"""GPUs on which nothing was measured."""


def device_of(cluster: ClusterSection, *, has_gpu: bool) -> Device:
    """The device whose rates describe a sweep's jobs.

    It is the GPU that `gres` or a constraint of a job names, such as `gpu:a100:1`. Without a known
    name it is the H100, and without a GPU the CPU.
    """
    if not has_gpu:
        return DEVICES[1]
    jobs = [cluster.slurm.job(group) for group in cluster.groups] if cluster.uses_slurm else []
    named = " ".join(str(job.get(field) or "") for job in jobs for field in ("gres", "constraint")).lower()
    return next((d for d in (*COMPUTED, *DEVICES) if d.name.lower() in named), DEVICES[0])


_BILLIONS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


def billions_of(reference: str) -> float | None:
    """The parameters in billions, read from the name of a model; None if they are not in it.

    >>> names = ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen3-4B-Instruct-2507", "Phi-4-mini-reasoning")
    >>> [billions_of(name) for name in names]
    [3.0, 4.0, None]
    >>> names = ("pypi:smollm2-135m-instruct", "mistralai/Ministral-3-3B-Reasoning-2512")
    >>> [billions_of(name) for name in names]
    [0.135, 3.0]
    """
    found = _BILLIONS.findall(reference.rpartition("/")[2])
    if not found:
        return None
    number, unit = found[-1]
    return float(number) / (1 if unit.lower() == "b" else 1000)


def tokens_of(
    config: RunConfig, model: ModelSection, num_evaluations: Mapping[str, int], share: float
) -> tuple[float, float]:
    """Tokens of one model over a run, counting every rescue that is possible.

    Args:
        num_evaluations: held-out problems by set of the evaluation, in all evaluations together.
        share: mean length of a completion as a share of the greatest length.

    Returns:
        (sampled, trained) tokens.
    """
    protocol = config.protocol
    problems = config.iterations * protocol.problems_per_iteration
    completions = problems * (protocol.cold_samples + protocol.rescue_samples)
    hinted = problems * protocol.rescue_samples * protocol.hint_probability
    prompts = problems * (2 if protocol.rescue_samples else 1)
    training = completions * share * config.sampling_of(model, COLD).max_new_tokens
    evaluation = 0.0
    for name, num in num_evaluations.items():
        own = config.for_set(name)
        longest = own.sampling_of(own.model(model.name), EVALUATE).max_new_tokens
        evaluation += num * own.evaluation.samples * share * longest
    trained = training + prompts * PROMPT_TOKENS + hinted * share * protocol.hint_tokens
    return training + evaluation, trained + share * _longest_of_peers(config, model)


def _longest_of_peers(config: RunConfig, model: ModelSection) -> int:
    """Most tokens of the peers' completions that a model learns from over a run (`update.hacpo`).

    They are cut to the greatest length of its own completions. Their prompts are those of its own
    cold completions.
    """
    if not config.update.hacpo.enabled:
        return 0
    own = config.sampling_of(model, COLD).max_new_tokens
    peers = [peer for peer in config.team if peer.name != model.name]
    longest = sum(min(own, config.sampling_of(peer, COLD).max_new_tokens) for peer in peers)
    return config.iterations * config.protocol.problems_per_iteration * config.protocol.cold_samples * longest


def hours(config: RunConfig, num_evaluations: Mapping[str, int], share: float, device: Device) -> float:
    """Hours of one device for a run, by `FORMULA`. The arguments are those of `tokens_of`."""
    total = 0.0
    for model in config.team:
        sampled, trained = tokens_of(config, model, num_evaluations, share)
        trained *= FULL_TUNING if model.tuning == "full" else 1
        billions = max(billions_of(model.model) or UNKNOWN_BILLIONS, device.smallest)
        total += billions * (sampled / device.sampling + trained / device.training) / 3600
    return total
