"""What a run will cost in hours of a device, estimated before it starts: tokens x parameters / rate.

In: a resolved configuration and how often it evaluates how many problems. Out: hours. The rates are a table with the
source of each; what is assumed says so. What a run has cost is analysis/timing/cost.py's. Not counted: loading, scoring and waiting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core_hpc.config.run import ModelSection, RunConfig
from core_hpc.store.schema import COLD, EVALUATE

LENGTH_SHARES = (0.1, 0.3, 1.0)
"""Mean length of a completion (and of a hint), as shares of the longest that is allowed: nobody knows it beforehand."""
PROMPT_TOKENS = 150
"""Assumption: tokens of a prompt without its hint. Completions of a problem and phase share it in the update; the engine's time
for it is in its rate."""
UNKNOWN_BILLIONS = 4.0
"""Assumption: parameters of a model whose name does not say how many it has, in billions."""
FULL_TUNING = 1.25
"""Training of every weight over training of an adapter: the backward pass computes their gradients too, and so 10 parts in place of
8 (see the source of the first device). What 4-bit weights (qlora) cost to unpack is left out: not known."""
FORMULA = (
    "hours = sum over models of billions of parameters x (sampled tokens / sampling rate + trained tokens / training rate) / 3600; "
    "sampled: completions x share x max_new_tokens; trained: the same without evaluation, share x hint_tokens more for a hinted one, "
    f"and {PROMPT_TOKENS} (assumption) for the prompt, once a problem and phase, all x {FULL_TUNING} with tuning: full"
)


@dataclass(frozen=True)
class Device:
    """Rates of one device, in billions of parameters x tokens / s: a model twice as large is taken to be half as fast."""

    name: str
    sampling: float
    training: float
    """Passes for the log-probabilities of old and reference policy included."""
    source: str


DEVICES = (
    Device(
        "H100",
        sampling=20_000,
        training=40_000,
        source="sampling: assumption, 5,000 tokens/s for 4B parameters; training: measured, 20,000 tokens/s in the optimizer steps of 4B "
        "with LoRA r 16, compiled (tests.benchmarks.gpu_update), x 4/8, as these are forward and backward (2 parts each) and the passes for the "
        "old and the reference policy (2 parts each) come on top",
    ),
    Device(
        "2 CPU cores",
        sampling=46,
        training=75,
        source="measured in the quickstart, a core for each model: smollm2 (0.135B) samples 169 and trains 280 tokens/s, gemma3 (0.27B) "
        "110 and 194; prompts of 150 tokens, completions of 14; twice the lower of the two",
    ),
)
"""Sampling on the first was not measured by us."""

_BILLIONS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


def billions_of(reference: str) -> float | None:
    """Parameters in billions, as the name of a model says; None where it does not.

    >>> [billions_of(name) for name in ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen3-4B-Instruct-2507", "Phi-4-mini-reasoning")]
    [3.0, 4.0, None]
    >>> billions_of("pypi:smollm2-135m-instruct"), billions_of("mistralai/Ministral-3-3B-Reasoning-2512")
    (0.135, 3.0)
    """
    found = _BILLIONS.findall(reference.rpartition("/")[2])
    if not found:
        return None
    number, unit = found[-1]
    return float(number) / (1 if unit.lower() == "b" else 1000)


def tokens_of(config: RunConfig, model: ModelSection, num_evaluations: int, share: float) -> tuple[float, float]:
    """(sampled, trained) tokens of one model over a run, if its completions have `share` of their greatest length.

    Every rescue that is possible is counted. `num_evaluations`: held-out problems, those of all evaluations together.
    """
    protocol = config.protocol
    problems = config.iterations * protocol.problems_per_iteration
    completions = problems * (protocol.cold_samples + protocol.rescue_samples)
    hinted = problems * protocol.rescue_samples * protocol.hint_probability
    prompts = problems * (2 if protocol.rescue_samples else 1)
    training = completions * share * config.sampling_of(model, COLD).max_new_tokens
    evaluation = (
        num_evaluations * config.evaluation.samples * share * config.sampling_of(model, EVALUATE).max_new_tokens
    )
    return training + evaluation, training + prompts * PROMPT_TOKENS + hinted * share * protocol.hint_tokens


def hours(config: RunConfig, num_evaluations: int, share: float, device: Device) -> float:
    """Hours of one device for a run, as `FORMULA` says; arguments as of `tokens_of`."""
    total = 0.0
    for model in config.team:
        sampled, trained = tokens_of(config, model, num_evaluations, share)
        trained *= FULL_TUNING if model.tuning == "full" else 1
        total += (
            (billions_of(model.model) or UNKNOWN_BILLIONS)
            * (sampled / device.sampling + trained / device.training)
            / 3600
        )
    return total
