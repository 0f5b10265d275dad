"""Prompts: question, worked examples, hint section and instruction, as token ids of one model.

In: questions and hints as text, and a tokenizer. Out: the token ids that the engine receives and
the update trains on. A chat model sees the examples as earlier turns; a base model sees blocks
`Question: ... Answer: ...`. This module also converts sampled ids back to text and keeps the marks
of thinking there. The default instructions are in `config/instructions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

from core_hpc.answers.extract import after_thinking
from core_hpc.common.errors import InputError
from core_hpc.config.extensions import PromptFunction
from core_hpc.config.model import ModelSection
from core_hpc.config.run import RunConfig
from core_hpc.extensions.workers import TIME_LIMIT_S, shared_workers

HINT_HEADING = "Here is the reasoning of another student, with the answer removed. It may help:"
PLAIN_STOP_STRINGS = ("\nQuestion:",)
_CLOSING = {"<think>": "</think>", "[THINK]": "[/THINK]"}
THINKING_MARKS = tuple(mark for pair in _CLOSING.items() for mark in pair)
PROMPT_DATE = date(2024, 7, 26)
"""What chat templates get as today's date: a run samples the same prompts on every day.

The templates of Llama have this date where there is no clock.
"""
_ANSWER = "Forty-two."
"""An answer that no chat template contains."""


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of one model.

    `style` is chat or plain; an example is (question, worked solution). `system_prompt` and
    `template_options` are only for the style chat.
    """

    tokenizer: Any
    style: str
    instruction: str
    examples: tuple[tuple[str, str], ...] = ()
    system_prompt: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    function: PromptFunction | None = None
    """The user's function that builds prompts instead of this class."""
    time_limit_s: float = TIME_LIMIT_S
    end_ids: frozenset[int] = frozenset()
    """The tokens at which sampling ends (`folder.end_token_ids`)."""

    def build(self, question: str, hint: str | None = None) -> tuple[int, ...]:
        """Prompt token ids of a question, with the hint section if there is a hint."""
        if self.function is not None:
            ids = self._own_ids(self.function, question, hint)
        elif self.style == "chat":
            messages = []
            for example, solution in self.examples:
                messages += [
                    {"role": "user", "content": self._ask(example, None)},
                    {"role": "assistant", "content": solution},
                ]
            messages.append({"role": "user", "content": self._ask(question, hint)})
            ids = self.chat(messages, tokenize=True)
        else:
            blocks = [
                f"Question: {self._ask(example, None)}\nAnswer: {solution}" for example, solution in self.examples
            ]
            blocks.append(f"Question: {self._ask(question, hint)}\nAnswer:")
            ids = self.tokenizer("\n\n".join(blocks))["input_ids"]
        return tuple(int(i) for i in ids)

    def _own_ids(self, function: PromptFunction, question: str, hint: str | None) -> Any:
        """Token ids of what the user's function returns: the text of the prompt, or messages of a chat."""
        arguments = (question, hint, list(self.examples), self.instruction, self.style)
        (prompt,) = shared_workers().call_many(
            function.function, "prompt_builder", [arguments], function.options, limit_s=self.time_limit_s
        )
        if self.style != "chat":
            return self.tokenizer(prompt)["input_ids"]
        return self.chat([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, tokenize=True)

    @cached_property
    def opened_thinking(self) -> str:
        """The mark of thinking that the chat template puts at the end of prompts, or an empty text.

        Completions of such a model start inside the thoughts. The mark is therefore put before
        their text, because readers of the text do not see the prompt.
        """
        return next((f"{mark}\n" for mark in _CLOSING if self._prompt_end.endswith(mark)), "")

    @cached_property
    def _prompt_end(self) -> str:
        """The end of a prompt of the chat template, or an empty text."""
        if self.style != "chat":
            return ""
        return str(self.chat([{"role": "user", "content": "?"}], tokenize=False)).rstrip()[-16:]

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

    def completion_ids(self, text: str, stop_strings: Sequence[str], *, ends: bool = True) -> tuple[int, ...]:
        """Token ids of another model's text, in the form in which this model would have sampled it.

        The ids end with this model's stop string or end token, if the text `ends`.
        """
        text = self._own_form(text)
        if ends and stop_strings:
            text += stop_strings[0]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        end = [self.end_id] if ends and not stop_strings else []
        return tuple(int(i) for i in [*ids, *end])

    def early_end(self, text: str, stop_strings: Sequence[str]) -> str | None:
        """The stop string or end token inside another model's text, at which this model would have ended, or None."""
        own = self._own_form(text)
        return next((end for end in (*stop_strings, *self._end_tokens) if end in own), None)

    def _own_form(self, text: str) -> str:
        """Another model's text as this model would have written it, without an end.

        Its thought has the marks of this model. If the prompt opens a thought, the thought of the text
        continues it, and a text without a thought comes after an empty one. If the prompt closes a
        thought, the text has none.
        """
        text = text.strip()
        opening = self.opened_thinking.strip() or self._own_mark
        closing = _CLOSING.get(opening, "")
        if opening:
            for other, end in _CLOSING.items():
                text = text.replace(other, opening).replace(end, closing)
        if self.style == "plain":
            return f" {text}"  # after `Answer:`
        if self._prompt_end.endswith(tuple(_CLOSING.values())):
            return after_thinking(text).strip() or text
        if not self.opened_thinking:
            return text
        if text.startswith(opening):
            return text.removeprefix(opening).strip()
        return text if closing in text else f"\n{closing}\n\n{text}"

    @cached_property
    def _own_mark(self) -> str:
        """The mark that opens a thought of this model, or an empty text if it knows none, or those of both families.

        The model knows the marks that are tokens, and those of its chat template.
        """
        template = str(self.tokenizer.chat_template) if self.style == "chat" else ""
        vocabulary = self.tokenizer.get_vocab()
        known = [mark for mark in _CLOSING if mark in vocabulary or mark in template]
        return known[0] if len(known) == 1 else ""

    @cached_property
    def _end_tokens(self) -> list[str]:
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids))]

    @cached_property
    def end_id(self) -> int:
        """The token with which this model ends a text.

        In a chat it is the end token that follows an answer, such as `<end_of_turn>`. It may differ
        from the end token of the tokenizer, which is taken otherwise.

        Raises:
            InputError: there is none.
        """
        follows: list[int] = []
        if self.style == "chat":
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
            _, found, rest = self.chat(turns, tokenize=False, answered=True).rpartition(_ANSWER)
            follows = self.tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []
        end = next((i for i in follows if i in self.end_ids), self.tokenizer.eos_token_id)
        if end is None:
            raise InputError(
                "its tokenizer has no end token, so texts would have no end; set eos_token in tokenizer_config.json, "
                "or stop_strings for this model"
            )
        return int(end)

    @cached_property
    def _special_marks(self) -> dict[int, str]:
        """Token -> mark of thinking, for the marks that are special tokens of this tokenizer.

        Decoding removes these tokens. In other tokenizers the marks are ordinary text.
        """
        return {token: mark for mark in THINKING_MARKS for token, name in self.special_tokens(mark) if name == mark}

    def stop_token_ids(self, stop_strings: Sequence[str]) -> tuple[int, ...]:
        """The tokens of the stop strings that are special tokens of this tokenizer.

        Decoding removes them, so an engine would not find them in a text.
        """
        return tuple(token for stop in stop_strings for token, name in self.special_tokens(stop) if name == stop)

    def special_tokens(self, text: str) -> list[tuple[int, str]]:
        """The tokens of a text that decoding removes, each with its name."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        names = self.tokenizer.convert_ids_to_tokens(ids)
        return [(i, name) for i, name in zip(ids, names, strict=True) if name in text and not self._decode([i])]

    def chat(self, messages: Sequence[Mapping[str, str]], *, tokenize: bool, answered: bool = False) -> Any:
        """The chat as the model sees it, up to the beginning of its answer: token ids, or text.

        If it is `answered`, the last message is the answer.
        """
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return self.tokenizer.apply_chat_template(
            [*system, *messages],
            add_generation_prompt=not answered,
            tokenize=tokenize,
            return_dict=False,
            strftime_now=PROMPT_DATE.strftime,  # instead of the clock of transformers
            **self.template_options,
        )

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _ask(self, question: str, hint: str | None) -> str:
        parts = [question]
        if hint is not None:
            parts.append(f"{HINT_HEADING}\n{hint}")
        if self.instruction:
            parts.append(self.instruction)
        return "\n".join(parts)


def prompt_builder(
    config: RunConfig,
    model: ModelSection,
    tokenizer: Any,
    *,
    style: str,
    examples: tuple[tuple[str, str], ...],
    end_ids: frozenset[int] = frozenset(),
) -> PromptBuilder:
    """The builder of a team member's prompts. `style` is chat or plain; `end_ids` are only for texts of others."""
    return PromptBuilder(
        tokenizer,
        style,
        config.problems.instruction,
        examples,
        model.system_prompt,
        model.template_options,
        config.protocol.prompt_function,
        config.extensions.time_limit_s,
        end_ids,
    )


def check_chat_settings(builder: PromptBuilder) -> None:
    """Check that the chat template uses the system prompt and every option.

    Templates ignore what they do not know, so a misspelled option would change nothing.

    Raises:
        InputError: something is given that does not reach the prompt.
    """
    given = [n for n in ("system_prompt", "template_options") if getattr(builder, n)]
    if not given:
        return
    if builder.style != "chat":
        raise InputError(f"{' and '.join(given)}: the tokenizer has no chat template; leave it out")
    template = builder.tokenizer.get_chat_template()
    for name in builder.template_options:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(f"template_options.{name}: the chat template has no variable of this name")
    if builder.system_prompt:
        try:
            shown = builder.chat([{"role": "user", "content": "?"}], tokenize=False)
        except Exception as e:  # templates raise errors of their own, of any class
            raise InputError(f"system_prompt: the chat template refuses a system message ({e})") from e
        if builder.system_prompt.strip() not in shown:
            raise InputError("system_prompt: the chat template ignores a system message; put it into the instruction")


def check_ends(builder: PromptBuilder, stop_strings: Sequence[str]) -> None:
    """Check that texts of the model have an end, and that sampling can find it.

    Raises:
        InputError: the model has neither a stop string nor an end token, or a stop string has a special
            token besides other text.
    """
    for stop in stop_strings:
        for _, name in builder.special_tokens(stop):
            if name != stop:
                raise InputError(
                    f"stop_strings: {stop!r} contains the special token {name}, which texts do not show, so sampling "
                    f"would never end there; write {name} alone"
                )
    if not stop_strings:
        _ = builder.end_id


def stop_strings_of(style: str, configured: Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings of a model: the configured ones, or the default of its prompt style."""
    if configured is not None:
        return tuple(configured)
    return PLAIN_STOP_STRINGS if style == "plain" else ()
