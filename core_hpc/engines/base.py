"""The engine protocol: prompt token ids in, completion token ids and behaviour log-probabilities out.

An engine holds one model on one worker. It is given all the work of a phase task in one call, so that it can
batch; it never sees text except to recognise stop strings. It does not build prompts, verify answers or write
files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]
ProgressCallback = Callable[[int, int], None]
"""Called with (completions finished so far, completion tokens so far)."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to sample. `seed` alone decides its randomness (0 <= seed < 2**63)."""

    prompt_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling of all requests of one call. temperature 0 is greedy decoding."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A published PEFT LoRA folder. `version` is unique over all adapters that a process ever loads."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled for one request.

    token_ids: all sampled tokens, end-of-sequence token and tokens of a stop string included (they were chosen
        by the policy and are trained on).
    logprobs: log-probability of each sampled token under the distribution it was drawn from (temperature and
        top-p applied, renormalised); for greedy decoding those of softmax(logits) at temperature 1.
    finish_reason: "stop" (end-of-sequence token or stop string) or "length" (max_new_tokens reached).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Engine(Protocol):
    """One model, ready to generate. Same requests in the same call with the same adapter give the same result.

    `compile_s`: seconds of making it that went into compiling code for the device.
    """

    compile_s: float

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        adapter: AdapterRef | None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Sample one completion per request, in the order of the requests. `adapter` None = base weights."""
        ...

    def sleep(self) -> None:
        """Leave the memory of the GPU until `generate` is called again, if the engine was made for that; nothing is under way."""
        ...

    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards."""
        ...
