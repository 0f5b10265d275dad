"""Prompts: the question, worked examples, the hint section and the instruction, as token ids of one model.

In: questions and hints as text, a tokenizer. Out: exactly the ids that the engine is given and the update trains
on. A chat model sees examples as earlier turns; a base model sees `Question: ... Answer: ...` blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HINT_HEADING = "Here is the reasoning of another student, with the answer removed. It may help:"
PLAIN_STOP_STRINGS = ("\nQuestion:",)


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of one model. `style` is chat or plain; examples are (question, worked solution)."""

    tokenizer: Any
    style: str
    instruction: str
    examples: tuple[tuple[str, str], ...] = ()

    def build(self, question: str, hint: str | None = None) -> tuple[int, ...]:
        """Prompt token ids for a question, with the hint section if a hint is given."""
        if self.style == "chat":
            messages = []
            for example, solution in self.examples:
                messages += [{"role": "user", "content": self._ask(example, None)}, {"role": "assistant", "content": solution}]
            messages.append({"role": "user", "content": self._ask(question, hint)})
            ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        else:
            blocks = [f"Question: {self._ask(example, None)}\nAnswer: {solution}" for example, solution in self.examples]
            blocks.append(f"Question: {self._ask(question, hint)}\nAnswer:")
            ids = self.tokenizer("\n\n".join(blocks))["input_ids"]
        return tuple(int(i) for i in ids)

    def _ask(self, question: str, hint: str | None) -> str:
        parts = [question]
        if hint is not None:
            parts.append(f"{HINT_HEADING}\n{hint}")
        if self.instruction:
            parts.append(self.instruction)
        return "\n".join(parts)


def decode(tokenizer: Any, token_ids: Sequence[int], stop_strings: Sequence[str]) -> str:
    """Completion as text: without special tokens, cut before the first stop string."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    cuts = [text.find(s) for s in stop_strings]
    cuts = [c for c in cuts if c >= 0]
    return text[: min(cuts)] if cuts else text


def stop_strings_of(style: str, configured: Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings of a model: as configured, else what its prompt style needs."""
    if configured is not None:
        return tuple(configured)
    return PLAIN_STOP_STRINGS if style == "plain" else ()
