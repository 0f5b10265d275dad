"""The guard against training another model than the one that samples.

In: by how much the trainer's log-probabilities of an optimizer step differ from the engine's, per problem. Out:
`MismatchError`, or nothing. A wrong chat template, rope setting or adapter changes the engine's distribution without
an error, and only these numbers show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from core_hpc.common.errors import MismatchError

LIMIT, LIMIT_FLOAT32, LIMIT_FOUR_BIT = 0.1, 0.02, 0.5
"""Default limits in nats per token. In bfloat16 two implementations of one model differ by about 0.01; with 4-bit base
weights the engine computes with other kernels."""
WARN_SHARE = 0.5
"""Share of the limit from which on a warning is logged."""
IGNORED_RATIO, IGNORED_FLOOR = 3.0, 1e-5
"""The engine ignores the adapter if it is closer to the base weights by this factor, and if that is no rounding."""
NUM_SHOWN = 3


@dataclass(frozen=True)
class Mismatch:
    """Differences of one optimizer step: |trainer - engine| summed over tokens, per problem.

    Attributes:
        policy: with the weights that the trainer starts from, which the engine should have sampled with.
        base: with the base weights, without the adapter; None: not computed.
        num_tokens: tokens that the engine sampled.
    """

    policy: Mapping[str, float]
    base: Mapping[str, float] | None
    num_tokens: Mapping[str, int]

    def mean(self, sums: Mapping[str, float]) -> float:
        """Mean per token; 0 without tokens."""
        return sum(sums.values()) / max(1, sum(self.num_tokens.values()))


def default_limit(dtype: str, tuning: Literal["lora", "full", "qlora"], top_p: float) -> float:
    """The limit where the configuration has none, in nats per token.

    With top-p sampling the engine's log-probabilities are those of the truncated distribution, which are larger by at
    most -log(top_p).

    >>> round(default_limit("float32", "lora", 1.0), 3), round(default_limit("auto", "lora", 0.9), 3)
    (0.02, 0.205)
    """
    limit = LIMIT_FLOAT32 if dtype == "float32" else LIMIT
    return (LIMIT_FOUR_BIT if tuning == "qlora" else limit) - math.log(top_p)


def is_near_limit(mismatch: float, limit: float) -> bool:
    """Whether the trainer and the engine differ by more than half of what stops a run."""
    return mismatch > WARN_SHARE * limit


def check_mismatch(found: Mismatch, limit: float, *, where: str) -> str | None:
    """Check one optimizer step.

    Returns:
        A warning, or None.

    Raises:
        MismatchError: trainer and engine are not the same model.
    """
    policy = found.mean(found.policy)
    if found.base is not None:
        base = found.mean(found.base)
        if policy > IGNORED_FLOOR and policy > IGNORED_RATIO * base:
            raise MismatchError(
                f"{where}: the engine seems to ignore the adapter: its log-probabilities differ from the trainer's by "
                f"{policy:.3g} nats per token with the adapter, and by {base:.3g} without. Compare the tensor names in "
                "adapter_model.safetensors of the last update with the names that the engine expects. Nothing was "
                "published"
            )
    if not policy <= limit:  # also if it is NaN
        worst = sorted(found.policy, key=lambda p: -found.policy[p] / max(1, found.num_tokens[p]))[:NUM_SHOWN]
        shown = ", ".join(f"{p} ({found.policy[p] / max(1, found.num_tokens[p]):.3g})" for p in worst)
        raise MismatchError(
            f"{where}: trainer and engine are not the same model: their log-probabilities of the sampled tokens differ "
            f"by {policy:.3g} nats per token on average, the limit is {limit:.3g} (update.max_mismatch). Largest for "
            f"the problems {shown}. Likely causes: the engine computes in another dtype or with quantized weights; "
            "rope or context settings of the two differ; the engine did not load the last update. Nothing was published"
        )
    if is_near_limit(policy, limit):
        return f"{where}: trainer and engine differ by {policy:.3g} nats per token; above {limit:.3g} the run stops"
    return None
