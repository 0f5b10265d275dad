"""FakeEngine: NOT a language model. It only serves fast tests of the software around the engines.

In: prompt token ids. Out: artificial completions that end in `#### <number>`. They depend only on
the seed, the prompt and the bytes of the adapter. If the prompt asks "What is 4 + 7 - 3?", or for
another such sum, the number is correct with some probability. A hint in the prompt increases this
probability, and so does the last number in the adapter's version, so runs show rescues and
progress. The log-probabilities are artificial, too. The engine needs only tokenizer.json of the
model folder and loads neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from typing import Any

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.engines import EngineSpec, check_requests
from core_hpc.engines.base import AdapterRef, Completion, GenerationRequest, SamplingSettings
from core_hpc.engines.shared import StepEngine

_EXPRESSION = re.compile(r"What is (\d+(?:\s*[+-]\s*\d+)+)\?")
_OPENINGS = ("", "Let us see. ", "Step by step: ", "First, ", "We count. ")
_BASE_SKILL, _HINT_GAIN, _ADAPTER_GAIN, _GAIN_PER_ITERATION = 0.4, 0.3, 0.05, 0.03


class FakeEngine(StepEngine):
    """Implements the engine protocol without a model."""

    compile_s = 0.0

    def __init__(self, spec: EngineSpec) -> None:
        from tokenizers import Tokenizer

        path = spec.model_folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                f"engine fake: {path} is missing; the engine needs the tokenizer of a model, saved by transformers"
            )
        self._tokenizer: Any = Tokenizer.from_file(str(path))
        self._end_id = _end_token_id(spec, self._tokenizer)
        self._context = spec.max_context_tokens
        self._closed = False
        self._num_requests = 0
        self._running: dict[str, tuple[GenerationRequest, SamplingSettings, AdapterRef | None]] = {}

    def add(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings, adapter: AdapterRef | None
    ) -> list[str]:
        """Start requests and return their ids."""
        if self._closed:
            raise CoreHpcError("this engine was closed")
        check_requests(requests, self._context)
        ids = [str(self._num_requests + i) for i in range(len(requests))]
        self._num_requests += len(requests)
        self._running.update((i, (request, sampling, adapter)) for i, request in zip(ids, requests, strict=True))
        return ids

    def step(self) -> list[tuple[str, Completion]]:
        """Make the completion of the oldest request."""
        request_id = next(iter(self._running))
        return [(request_id, self._complete(*self._running.pop(request_id)))]

    def abort(self, ids: Sequence[str]) -> None:
        """Remove requests."""
        for request_id in ids:
            self._running.pop(request_id, None)

    def sleep(self) -> None:
        """Does nothing because this engine uses no GPU."""

    def close(self) -> None:
        """Prevent further use; there is nothing to release."""
        self._closed = True

    def _complete(
        self, request: GenerationRequest, sampling: SamplingSettings, adapter: AdapterRef | None
    ) -> Completion:
        seed = request.seed if sampling.temperature > 0 else 0
        version = adapter.version if adapter is not None else ""
        rng = random.Random(_stable_hash(f"{seed}|{_weights_digest(adapter)}|{request.prompt_token_ids}"))
        prompt = self._tokenizer.decode(list(request.prompt_token_ids), skip_special_tokens=True)
        ids = self._tokenizer.encode(_text(prompt, version, rng), add_special_tokens=False).ids
        if self._end_id is not None:
            ids = [*ids, self._end_id]
        limit = min(sampling.max_new_tokens, self._context - len(request.prompt_token_ids))
        kept, stopped = ids[:limit], len(ids) <= limit and self._end_id is not None
        end = self._stop_string_end(kept, sampling.stop_strings)
        if end is not None:
            kept, stopped = kept[:end], True
        logprobs = tuple(-rng.expovariate(4.0) for _ in kept)
        return Completion(tuple(kept), logprobs, "stop" if stopped else "length")

    def _stop_string_end(self, ids: list[int], stop_strings: tuple[str, ...]) -> int | None:
        """Number of tokens up to the end of the first stop string, or None."""
        for end in range(1, len(ids) + 1) if stop_strings else ():
            text = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
            if any(s in text for s in stop_strings):
                return end
        return None


def _text(prompt: str, version: str, rng: random.Random) -> str:
    """The text of a completion for the last expression in the prompt."""
    found = _EXPRESSION.findall(prompt)
    opening = rng.choice(_OPENINGS)
    if rng.random() < 0.03:
        return f" {opening}I do not know."
    if not found:
        return f" {opening}It is a guess. #### {rng.randint(0, 99)}"
    terms = [int(t) for t in re.findall(r"[+-]?\d+", re.sub(r"\s", "", found[-1]))]
    right = rng.random() < _skill(version, hint="hint" in prompt.lower())
    error = 0 if right else rng.choice((-10, -2, -1, 1, 2, 10))
    faulty = rng.randrange(1, len(terms))
    total, steps = terms[0], []
    for i, term in enumerate(terms[1:], start=1):
        after = total + term + (error if i == faulty else 0)
        steps.append(f"{total} {'-' if term < 0 else '+'} {abs(term)} = {after}.")
        total = after
    return f" {opening}{' '.join(steps)} #### {total}"


def _skill(version: str, *, hint: bool) -> float:
    """Probability of a correct answer."""
    skill = _BASE_SKILL + _HINT_GAIN * hint
    if version:
        numbers = re.findall(r"\d+", version)
        skill += _ADAPTER_GAIN + _GAIN_PER_ITERATION * min(int(numbers[-1]) if numbers else 0, 10)
    return min(skill, 0.95)


def _end_token_id(spec: EngineSpec, tokenizer: Any) -> int | None:
    path = spec.model_folder / "tokenizer_config.json"
    token = json.loads(path.read_text()).get("eos_token") if path.is_file() else None
    content = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(content) if content else None


def _weights_digest(adapter: AdapterRef | None) -> str:
    """Digest of the adapter's weights; the completions do not depend on the name of its version."""
    path = None if adapter is None else adapter.path / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else ""


def _stable_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
