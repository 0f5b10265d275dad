"""Prompts: question, worked examples, hint section and instruction, as token ids of one model.

In: questions and hints as text, and a tokenizer. Out: the token ids that the engine receives and
the update trains on. A chat model sees the examples as earlier turns; a base model sees blocks
`Question: ... Answer: ...`. This module also converts sampled ids back to text and keeps the marks
of thinking there. The default instructions are in `config/instructions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

HINT_HEADING = "Here is the reasoning of another student, with the answer removed. It may help:"
PLAIN_STOP_STRINGS = ("\nQuestion:",)
THINKING_MARKS = ("<think>", "</think>", "[THINK]", "[/THINK]")
_OPENED = ("<think>", "[THINK]")


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of one model.

    `style` is chat or plain; an example is (question, worked solution).
    """

    tokenizer: Any
    style: str
    instruction: str
    examples: tuple[tuple[str, str], ...] = ()

    def build(self, question: str, hint: str | None = None) -> tuple[int, ...]:
        """Prompt token ids of a question, with the hint section if there is a hint."""
        if self.style == "chat":
            messages = []
            for example, solution in self.examples:
                messages += [
                    {"role": "user", "content": self._ask(example, None)},
                    {"role": "assistant", "content": solution},
                ]
            messages.append({"role": "user", "content": self._ask(question, hint)})
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            blocks = [
                f"Question: {self._ask(example, None)}\nAnswer: {solution}" for example, solution in self.examples
            ]
            blocks.append(f"Question: {self._ask(question, hint)}\nAnswer:")
            ids = self.tokenizer("\n\n".join(blocks))["input_ids"]
        return tuple(int(i) for i in ids)

    @cached_property
    def opened_thinking(self) -> str:
        """The mark of thinking that the chat template puts at the end of prompts, or an empty text.

        Completions of such a model start inside the thoughts. The mark is therefore put before
        their text, because readers of the text do not see the prompt.
        """
        if self.style != "chat":
            return ""
        messages = [{"role": "user", "content": "?"}]
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False).rstrip()
        return next((f"{mark}\n" for mark in _OPENED if prompt.endswith(mark)), "")

    def completion_text(self, token_ids: Sequence[int], stop_strings: Sequence[str]) -> str:
        """Sampled tokens as text, cut before the first stop string.

        Special tokens are removed, except those that mark thinking.
        """
        pieces, start = [], 0
        for position, token in enumerate(token_ids):
            if token in self._special_marks:
                pieces += [self._decode(token_ids[start:position]), self._special_marks[token]]
                start = position + 1
        text = "".join([*pieces, self._decode(token_ids[start:])])
        cuts = [c for c in (text.find(s) for s in stop_strings) if c >= 0]
        return self.opened_thinking + (text[: min(cuts)] if cuts else text)

    def completion_ids(self, text: str, stop_strings: Sequence[str]) -> tuple[int, ...]:
        """Token ids of another model's text, in the form in which this model would have sampled it.

        The ids end with this model's stop string or end token.
        """
        text = text.removeprefix(self.opened_thinking).strip()
        if self.style == "plain":
            text = f" {text}"  # after `Answer:`
        ids = self.tokenizer(text + (stop_strings[0] if stop_strings else ""), add_special_tokens=False)["input_ids"]
        end = [] if stop_strings else [self.tokenizer.eos_token_id]
        return tuple(int(i) for i in [*ids, *end])

    @cached_property
    def _special_marks(self) -> dict[int, str]:
        """Token -> mark of thinking, for the marks that are special tokens of this tokenizer.

        Decoding removes these tokens. In other tokenizers the marks are ordinary text.
        """
        ids = {mark: self.tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in THINKING_MARKS}
        known = {
            i[0]: mark for mark, i in ids.items() if len(i) == 1 and self.tokenizer.convert_ids_to_tokens(i[0]) == mark
        }
        return {token: mark for token, mark in known.items() if not self._decode([token])}

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _ask(self, question: str, hint: str | None) -> str:
        parts = [question]
        if hint is not None:
            parts.append(f"{HINT_HEADING}\n{hint}")
        if self.instruction:
            parts.append(self.instruction)
        return "\n".join(parts)


def stop_strings_of(style: str, configured: Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings of a model: the configured ones, or the default of its prompt style."""
    if configured is not None:
        return tuple(configured)
    return PLAIN_STOP_STRINGS if style == "plain" else ()
