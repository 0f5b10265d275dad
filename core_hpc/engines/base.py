"""The engine protocol: from prompt token ids to completion token ids and log-probabilities.

An engine holds one model in one worker process. It receives all requests of a phase task in one
call, so it can batch them. It works with token ids and decodes them only to recognize stop strings.
It does not build prompts, verify answers or write files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]
ProgressCallback = Callable[[int, int], None]
"""Called with (finished completions, tokens of finished completions)."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to sample. Its randomness depends only on `seed` (0 <= seed < 2**63)."""

    prompt_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling of all requests of one call. Temperature 0 means greedy decoding.

    Attributes:
        stop_strings: texts at which a completion ends. Special tokens are not part of the text.
        stop_token_ids: tokens at which a completion ends, besides the end tokens of the model.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A published PEFT LoRA folder. `version` is unique among all adapters that a process loads."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The completion of one request.

    Attributes:
        token_ids: all sampled tokens. The token at which it ended and the tokens of a stop string are
            included, because the policy chose them and they are trained on.
        logprobs: log-probability of each sampled token under the distribution from which it was
            drawn (temperature and top-p applied, renormalized). For greedy decoding it is the
            log-probability at temperature 1.
        finish_reason: "stop" (end token, stop token or stop string) or "length" (limit reached).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Engine(Protocol):
    """One loaded model.

    The same requests in one call with the same adapter give the same completions.

    Attributes:
        compile_s: how many seconds of loading were spent on compiling code for the device.
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
        """Sample one completion per request, in the order of the requests.

        Args:
            requests: what to sample.
            sampling: settings of all requests.
            adapter: the adapter to use; None means the base weights.
            on_progress: called whenever completions are finished.
        """
        ...

    def sleep(self) -> None:
        """Release the GPU memory until the next call of `generate`, if `EngineSpec.sleeps`.

        It must not be called during `generate`.
        """
        ...

    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards."""
        ...
