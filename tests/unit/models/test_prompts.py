"""Prompts and completions as ids and text, default instructions, and sampling settings."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from core_hpc.answers.extract import extract_answer
from core_hpc.common.errors import InputError
from core_hpc.config.identity import scientific_fields
from core_hpc.config.instructions import default_instruction
from core_hpc.config.problems import ANSWER_KINDS, ProblemsSection
from core_hpc.config.run import RunConfig
from core_hpc.controller import prepare
from core_hpc.engines.base import Completion
from core_hpc.models.prompts import THINKING_MARKS, PromptBuilder, check_chat_settings, check_ends, prompt_builder
from core_hpc.phases import generate, update
from core_hpc.phases.context import Stopwatch
from core_hpc.problems import datasets, generators
from core_hpc.protocol.hints import make_hint
from core_hpc.runs.graph import Horizon
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, EVALUATE, RESCUE
from tests.support.tiny import byte_tokenizer

TURNS = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
PLAIN_END = "{% if add_generation_prompt %}<s>assistant:{% endif %}"
CHAT = TURNS + PLAIN_END
SOURCE = {"source": "generated", "count": 4}


PLAIN = byte_tokenizer(template=CHAT)
MISTRAL = byte_tokenizer(special=("[THINK]", "[/THINK]", "[INST]"), template=CHAT)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


THINKING = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>assistant:"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% else %}<think>{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"
    "{% endfor %}"
)
DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<s>system: Today Date: {{ date_string }}</s>"
)
"""The beginning of the templates of Llama-3.2-Instruct. Those of SmolLM3 and gpt-oss have no `date_string`."""
IGNORES_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


# --- prompts -------------------------------------------------------------------------------------


def test_a_chat_model_sees_examples_as_turns_and_the_hint_before_the_instruction() -> None:
    builder = PromptBuilder(PLAIN, "chat", "Solve it.", (("1 + 1?", "1 + 1 = 2.\n#### 2"),))
    shown = PLAIN.decode(builder.build("3 + 4?", "Count up."))
    assert shown == (
        "<s>user: 1 + 1?\nSolve it.</s><s>assistant: 1 + 1 = 2.\n#### 2</s><s>user: 3 + 4?\n"
        "Here is the reasoning of another student, with the answer removed. It may help:\nCount up.\n"
        "Solve it.</s><s>assistant:"
    )


def test_a_base_model_sees_blocks_and_no_empty_instruction() -> None:
    builder = PromptBuilder(PLAIN, "plain", "", (("1 + 1?", "2"),))
    assert PLAIN.decode(builder.build("3 + 4?")) == "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 3 + 4?\nAnswer:"


# --- completions as text -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 257), max_size=40))
def test_the_text_of_a_completion_is_what_the_tokenizer_decodes(ids: list[int]) -> None:
    assert PromptBuilder(PLAIN, "plain", "").completion_text(ids, ()) == PLAIN.decode(ids, skip_special_tokens=True)


def test_special_tokens_that_mark_thinking_stay_in_the_text() -> None:
    """So the answer is not taken from the thoughts."""
    sampled = "[THINK]Is the answer 7? \\boxed{7}[/THINK]Four and four.</s>[INST]"
    ids = ids_of(MISTRAL, sampled)
    assert len(ids) < len(sampled) - 20  # each mark is a single token
    assert "[THINK]" not in MISTRAL.decode(ids, skip_special_tokens=True)
    text = PromptBuilder(MISTRAL, "plain", "").completion_text(ids, ())
    assert text == "[THINK]Is the answer 7? \\boxed{7}[/THINK]Four and four."
    assert extract_answer(text, "number") is None
    assert extract_answer(text + " #### 8", "number") == "8"


@pytest.mark.parametrize("mark", THINKING_MARKS)
def test_every_mark_of_thinking_is_kept_as_a_special_token_and_as_text(mark: str) -> None:
    for tokenizer in (PLAIN, byte_tokenizer(special=(mark,), template=CHAT)):
        text = PromptBuilder(tokenizer, "plain", "").completion_text(ids_of(tokenizer, f"a{mark}b{mark}"), ())
        assert text == f"a{mark}b{mark}"


def test_the_text_ends_before_the_first_stop_string() -> None:
    builder = PromptBuilder(MISTRAL, "plain", "")
    assert builder.completion_text(ids_of(MISTRAL, "8\nQuestion: 9[/THINK]"), ("[/THINK]", "\nQuestion:")) == "8"


@pytest.mark.parametrize(
    ("end", "opened"),
    [
        ("<s>assistant:<think>\n", "<think>\n"),
        ("<s>assistant:[THINK]", "[THINK]\n"),
        ("<s>assistant:<think>\n\n</think>\n\n", ""),
    ],
)
def test_a_mark_of_thinking_at_the_end_of_the_prompt_is_put_before_the_text(end: str, opened: str) -> None:
    tokenizer = byte_tokenizer(template=f"{TURNS}{{% if add_generation_prompt %}}{end}{{% endif %}}")
    text = PromptBuilder(tokenizer, "chat", "").completion_text(ids_of(tokenizer, "Hm.\n8"), ("\n",))
    assert text == f"{opened}Hm."
    assert PromptBuilder(tokenizer, "plain", "").completion_text(ids_of(tokenizer, "Hm."), ()) == "Hm."


# --- texts of others, as the model would have sampled them --------------------------------------

TURN_ENDS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<turn_end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""Turns of a chat end with a token that is not the end token of the tokenizer, as in Gemma 3 and Phi-4-mini."""


def ended(tokenizer: Any, style: str = "chat", *ends: str) -> PromptBuilder:
    """A builder of a model whose generation configuration has these end tokens besides that of the tokenizer."""
    ids = tokenizer.convert_tokens_to_ids(["</s>", *ends])
    return PromptBuilder(tokenizer, style, "", end_ids=frozenset(ids))


@pytest.mark.parametrize(
    ("template", "style", "ends", "end"),
    [
        (TURN_ENDS, "chat", ("<turn_end>",), "<turn_end>"),
        (TURN_ENDS, "plain", ("<turn_end>",), "</s>"),
        (TURN_ENDS, "chat", (), "</s>"),  # sampling does not stop at the end of the turn
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", "chat", ("<turn_end>",), "</s>"),
        ("<turn_end>{% for m in messages %}[{{ m.role }}]{% endfor %}", "chat", ("<turn_end>",), "</s>"),
        (
            TURN_ENDS.replace("<turn_end>", "{{ '<return>' if loop.last and not add_generation_prompt else '<end>' }}"),
            "chat",
            ("<return>", "<end>"),
            "<return>",  # as in gpt-oss
        ),
    ],
)
def test_a_text_ends_with_the_token_that_ends_an_answer_in_the_chat_template(
    template: str, style: str, ends: tuple[str, ...], end: str
) -> None:
    tokenizer = byte_tokenizer(special=("<turn_end>", "<return>", "<end>"), template=template)
    builder = ended(tokenizer, style, *ends)
    lead = " " if style == "plain" else ""
    assert tokenizer.decode(builder.completion_ids("Seven.", ())) == f"{lead}Seven.{end}"
    assert tokenizer.decode(builder.completion_ids("Seven", (), ends=False)) == f"{lead}Seven"


@pytest.mark.parametrize("mark", ["<think>", "[THINK]"])
@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("7 it is.\n#### 7", "\n{close}\n\n7 it is.\n#### 7"),
        ("{open}\n3 + 4\n{close}\n#### 7", "3 + 4\n{close}\n#### 7"),
        ("{open}3 + 4{close}#### 7", "3 + 4{close}#### 7"),
        ("3 + 4{close}#### 7", "3 + 4{close}#### 7"),
        ("{open}3 + 4 = 7", "3 + 4 = 7"),  # HACPO also learns thoughts without an end
    ],
)
@pytest.mark.parametrize("peer", ["<think>", "[THINK]"])
def test_a_text_closes_the_thought_that_the_prompt_has_opened(mark: str, peer: str, text: str, written: str) -> None:
    """Its marks become those of the model, if they are of the other family."""
    closes = {"<think>": "</think>", "[THINK]": "[/THINK]"}
    for special in ((), tuple(THINKING_MARKS)):
        tokenizer = byte_tokenizer(special=special, template=f"{CHAT}{mark}\n")
        builder = PromptBuilder(tokenizer, "chat", "")
        ids = builder.completion_ids(text.format(open=peer, close=closes[peer]), ())
        assert tokenizer.decode(ids) == written.format(close=closes[mark]) + "</s>"


HYBRID = f"{TURNS}{PLAIN_END}{{% if thinks %}}{{{{ '<think>' }}}}{{% endif %}}"
"""The template of a model that thinks only on request; only the marks of its family are in it."""


@pytest.mark.parametrize(
    ("template", "special", "style", "text", "written"),
    [
        (CHAT, ("<think>", "</think>"), "chat", "[THINK]try 2[/THINK]It is 2.", "<think>try 2</think>It is 2."),
        (CHAT, ("[THINK]", "[/THINK]"), "chat", "<think>try 2</think>It is 2.", "[THINK]try 2[/THINK]It is 2."),
        (CHAT, ("[THINK]", "[/THINK]"), "plain", "<think>try 2</think>It is 2.", " [THINK]try 2[/THINK]It is 2."),
        (HYBRID, (), "chat", "[THINK]try 2[/THINK]It is 2.", "<think>try 2</think>It is 2."),
        (CHAT, (), "chat", "[THINK]try 2[/THINK]It is 2.", "[THINK]try 2[/THINK]It is 2."),
        (CHAT, THINKING_MARKS, "chat", "[THINK]try 2[/THINK]It is 2.", "[THINK]try 2[/THINK]It is 2."),
        (f"{CHAT}<think>\n\n</think>\n\n", (), "chat", "[THINK]try 2[/THINK]\nIt is 2.", "It is 2."),
        (f"{CHAT}[THINK][/THINK]", (), "chat", "<think>try 2</think>It is 2.", "It is 2."),
        (f"{CHAT}[THINK][/THINK]", (), "chat", "It is 2.", "It is 2."),
        (f"{CHAT}<think>\n\n</think>", (), "chat", "<think>try 2", "<think>try 2"),  # nothing else is in it
    ],
)
def test_a_thought_of_a_peer_has_the_marks_of_the_model_and_is_left_out_where_the_prompt_closes_it(
    template: str, special: tuple[str, ...], style: str, text: str, written: str
) -> None:
    tokenizer = byte_tokenizer(special=special, template=template)
    ids = PromptBuilder(tokenizer, style, "").completion_ids(text, ())
    assert tokenizer.decode(ids) == f"{written}</s>"


PROMPT_ENDS = ["", "<think>\n", "[THINK]", "<think>\n\n</think>\n\n"]
MARKS_AND_WORDS = st.lists(st.sampled_from([*THINKING_MARKS, "\n", " ", "#### 7", "#### 8", "so ", "</s>"]), max_size=8)


@given(MARKS_AND_WORDS.map("".join), st.sampled_from(PROMPT_ENDS), st.booleans(), st.booleans())
def test_a_text_without_an_early_end_keeps_its_answer(text: str, end: str, special: bool, is_chat: bool) -> None:
    """The answer is that of the text which the model would have sampled, whatever thoughts a peer has written."""
    builder = BUILDERS[end, special, is_chat]
    for stops in ((), ("\n",)):
        written = builder.completion_text(builder.completion_ids(text, stops), stops)
        if builder.early_end(text, stops) is None:
            assert extract_answer(written, "number") == extract_answer(text, "number")


BUILDERS = {
    (end, special, is_chat): PromptBuilder(
        byte_tokenizer(special=THINKING_MARKS if special else (), template=f"{CHAT}{end}"),
        "chat" if is_chat else "plain",
        "",
        end_ids=frozenset({1}),
    )
    for end in PROMPT_ENDS
    for special in (False, True)
    for is_chat in (False, True)
}


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("3 + 4 = 7.\n#### 7", ("\n",), "\n"),
        ("3 + 4 = 7.\n#### 7", ("\nQuestion:", "####"), "####"),
        ("\n 3 + 4 = 7. #### 7\n", ("\n",), None),  # the text is stripped
        ("3 + 4 = 7.\n#### 7", (), None),
        ("It is 7.</s> Next", ("\n",), "</s>"),  # a peer with another vocabulary can write this
        ("It is 7.<turn_end> Next", (), "<turn_end>"),
    ],
)
@pytest.mark.parametrize("style", ["chat", "plain"])
def test_a_text_in_which_the_model_would_have_ended_is_recognised(
    text: str, stops: tuple[str, ...], expected: str | None, style: str
) -> None:
    tokenizer = byte_tokenizer(special=("<turn_end>",), template=TURN_ENDS)
    assert ended(tokenizer, style, "<turn_end>").early_end(text, stops) == expected


def test_stop_strings_that_are_special_tokens_are_end_tokens() -> None:
    """Decoding removes them, so no engine finds them in the text. This is the usual setting for a base model."""
    tokenizer = byte_tokenizer(special=("<turn_end>", "[/THINK]"), template=TURN_ENDS)
    builder = PromptBuilder(tokenizer, "chat", "")
    ids = tokenizer.convert_tokens_to_ids
    stops = ("\n", "<turn_end>", "</s>", "[/THINK]", "<other>")
    assert builder.stop_token_ids(stops) == (ids("<turn_end>"), ids("</s>"), ids("[/THINK]"))
    assert builder.completion_ids("7", ("<turn_end>",)) == (*ids_of(tokenizer, "7"), ids("<turn_end>"))
    assert builder.early_end("7<turn_end>", ("<turn_end>",)) == "<turn_end>"
    check_ends(builder, stops)


@pytest.mark.parametrize("stop", ["<turn_end>\n", "\n</s>"])
def test_a_stop_string_with_a_special_token_and_more_is_refused(stop: str) -> None:
    tokenizer = byte_tokenizer(special=("<turn_end>",), template=TURN_ENDS)
    with pytest.raises(
        InputError, match=rf"stop_strings: .* the special token {stop.strip()}.* write {stop.strip()} al"
    ):
        check_ends(PromptBuilder(tokenizer, "chat", ""), ("\n", stop))


def test_a_model_that_cannot_end_a_text_is_refused_unless_it_has_a_stop_string() -> None:
    tokenizer = byte_tokenizer(template=CHAT)
    tokenizer.eos_token = None
    builder = PromptBuilder(tokenizer, "chat", "")
    check_ends(builder, ("\n",))
    with pytest.raises(InputError, match="no end token"):
        check_ends(builder, ())


# --- instructions --------------------------------------------------------------------------------

GOLD = {"number": "8", "integer": "8", "latex": r"\frac{1}{2}", "letter": "B", "text": "New York"}
FORMS = {
    "number": ("'#### '", "#### {}"),
    "integer": (r"\boxed{{}}", r"\boxed{{{}}}"),
    "latex": (r"\boxed{{}}", r"\boxed{{{}}}"),
    "letter": ("'Answer: '", "Answer: {}"),
    "text": ("'Answer: '", "Answer: {}"),
}


@pytest.mark.parametrize("kind", GOLD)
def test_an_answer_in_the_form_of_the_instruction_is_extracted(kind: str) -> None:
    request, form = FORMS[kind]
    instruction = default_instruction({kind}, "direct") or ""
    assert request.format() in instruction
    assert extract_answer(f"First this, then that.\n{form.format(GOLD[kind])}", kind) == GOLD[kind]


@pytest.mark.parametrize("kind", GOLD)
def test_strategies_in_the_form_of_the_instruction_are_extracted(kind: str) -> None:
    """The forms of the block and of the final answer are taken from the instruction."""
    instruction = default_instruction({kind}, "strategies") or ""
    block = re.search(r"<strategy id=1>.*</strategy>", instruction, re.DOTALL)
    final = re.search(r"<final_answer>.*</final_answer>", instruction)
    assert block
    assert final
    wrong = {"letter": "C", "text": "Paris"}.get(kind, "9")
    written = [
        re.sub(
            r"<outcome>.*</outcome>",
            lambda _, outcome=outcome: f"<outcome>{outcome}</outcome>",
            block.group().replace("the steps of", how),
        )
        for how, outcome in (("Guess", wrong), ("Work out", GOLD[kind]))
    ]
    text = "\n".join([*written, f"<final_answer>{GOLD[kind]}</final_answer>"])
    assert extract_answer(text, kind) == GOLD[kind]
    hint = make_hint(text, GOLD[kind], kind, lambda t: list(t.encode()), lambda ids: bytes(ids).decode(), 1000)
    assert hint == "Work out this way"


def problems(train: dict[str, Any], evaluation: dict[str, Any], **more: Any) -> ProblemsSection:
    return ProblemsSection.model_validate({"train": train, "evaluation": evaluation, **more})


def test_the_default_instruction_depends_on_the_kind_of_answers_and_is_stored() -> None:
    words_of = {
        "gsm8k": "'#### '",
        "math": r"\boxed{}",
        "aime": "0 to 999",
        "gpqa": "letter",
        "medmcqa": "letter",
        "generated": "'#### '",
    }
    for name, words in words_of.items():
        source = SOURCE if name == "generated" else {"source": name}
        assert words in problems(source, source).model_dump()["instruction"], name
    own = {"source": "jsonl", "path": "p.jsonl", "answer_kind": "text"}
    assert "'Answer: '" in problems(own, own).instruction
    assert r"\boxed{}" in problems({"source": "gsm8k"}, {"source": "math"}).instruction
    assert "<strategy id=1>" in problems(SOURCE, SOURCE, instruction_style="strategies").instruction


ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "q", "answer": "#### 7"},
    "math": {"problem": "p", "solution": r"\boxed{7}"},
    "aime": {"ID": "1", "Question": "q", "Answer": "7"},
    "gpqa": {
        "Question": "q",
        "Correct Answer": "a",
        "Incorrect Answer 1": "b",
        "Incorrect Answer 2": "c",
        "Incorrect Answer 3": "d",
    },
    "medmcqa": {"id": "1", "question": "q", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2},
}


def test_the_answer_kinds_of_the_configuration_are_those_of_the_rows() -> None:
    made = {name: parse(ROWS[name], "id", 0).answer_kind for name, parse in datasets.ROW_FORMATS.items()}
    source: Any = problems(SOURCE, SOURCE).train
    made["generated"] = generators.generate(source, 1, "train", set())[0].answer_kind
    assert made == ANSWER_KINDS


def test_an_explicit_instruction_has_priority_and_a_resolved_section_does_not_change() -> None:
    for own in ("", "Answer it."):
        assert problems(SOURCE, SOURCE, instruction=own, instruction_style="strategies").instruction == own
    for style in ("direct", "strategies"):
        section = problems(SOURCE, SOURCE, instruction_style=style)
        assert ProblemsSection.model_validate_json(section.model_dump_json()) == section


def test_there_is_no_default_instruction_for_numbers_and_letters_together() -> None:
    with pytest.raises(ValueError, match=r"different kinds \(letter, number\)"):
        problems({"source": "gsm8k"}, {"source": "gpqa"})
    assert problems({"source": "gsm8k"}, {"source": "gpqa"}, instruction="Answer.").instruction == "Answer."


# --- sampling ------------------------------------------------------------------------------------


def config_of(**own: Any) -> RunConfig:
    """A run with two models; `own` are additional settings of the first one."""
    return RunConfig.model_validate(
        {
            "name": "s",
            "iterations": 1,
            "team": [{"name": "a", "model": "x", **own}, {"name": "b", "model": "y"}],
            "problems": {"train": SOURCE, "evaluation": SOURCE},
            "protocol": {
                "sampling": {"temperature": 0.5, "top_p": 0.8, "max_new_tokens": 20},
                "problems_per_iteration": 2,
            },
            "evaluation": {"sampling": {"temperature": 0.6, "top_p": 0.7, "max_new_tokens": 30}},
        }
    )


def test_a_model_samples_with_its_own_settings_or_those_of_the_team() -> None:
    config = config_of(sampling={"temperature": 0.0, "max_new_tokens": 5}, evaluation_sampling={"top_p": 1.0})
    expected = {
        ("a", COLD): (0.0, 0.8, 5),
        ("a", RESCUE): (0.0, 0.8, 5),
        ("a", EVALUATE): (0.6, 1.0, 30),
        ("b", COLD): (0.5, 0.8, 20),
        ("b", RESCUE): (0.5, 0.8, 20),
        ("b", EVALUATE): (0.6, 0.7, 30),
    }
    for (name, phase), wanted in expected.items():
        found = config.sampling_of(config.model(name), phase)
        assert (found.temperature, found.top_p, found.max_new_tokens) == wanted


@pytest.mark.parametrize(("phase", "recorded"), [(COLD, 0.25), (EVALUATE, 0.75)])
def test_the_engine_samples_with_the_recorded_settings_and_ends_of_the_model(
    phase: str, recorded: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(sampling={"temperature": 0.25, "max_new_tokens": 5}, evaluation_sampling={"temperature": 0.75})
    used, published = [], []

    def sample(requests: Any, sampling: Any, **_: Any) -> list[Completion]:
        used.append(sampling)
        return [Completion((5,), (0.0,), "stop")] * len(requests)

    monkeypatch.setattr(shards, "publish_frame", lambda folder, name, frame, table, stats: published.append(frame))
    problem = {"problem_id": "p", "question": "q", "gold": "8", "answer_kind": "number"}
    context: Any = SimpleNamespace(
        run=SimpleNamespace(config=config, run_id="r"),
        key=TaskKey(1, phase, "a"),
        model=config.model("a"),
        stopwatch=Stopwatch(),
        warm=SimpleNamespace(engine=lambda _: SimpleNamespace(generate=sample), take_compile_s=lambda: 0.0),
        engine_spec=lambda _: None,
        progress=lambda *_: None,
        stop_strings=lambda _: ("\n", "</s>"),
        adapter=lambda _: None,
        stats=lambda **_: None,
        paths=SimpleNamespace(task_folder=lambda _: None, task_name=lambda _: None),
    )
    builder = PromptBuilder(PLAIN, "plain", "")
    wanted = generate._Wanted(problem=problem, sample_index=0, prompt=(3,))
    generate._publish(context, generate._sample(context, builder, phase, [wanted], adapter_iteration=0))
    assert published[0]["temperature"].to_list() == [used[0].temperature] == [recorded]
    assert (used[0].stop_strings, used[0].stop_token_ids) == (("\n", "</s>"), (PLAIN.eos_token_id,))
    assert used[0].max_new_tokens == (5 if phase == COLD else 30)


def test_the_update_uses_the_temperature_with_which_its_model_sampled() -> None:
    config = config_of(sampling={"temperature": 0.25, "max_new_tokens": 5}, evaluation_sampling={"temperature": 0.75})
    for name, expected in (("a", (0.25, 5)), ("b", (0.5, 20))):
        run = SimpleNamespace(config=config, horizons=lambda: [Horizon(1, 1)])
        context: Any = SimpleNamespace(
            run=run, key=TaskKey(1, "update", name), model=config.model(name), first_adapter=lambda: None
        )
        task = update._task(context, [], None)
        assert (task.temperature, task.max_new_tokens) == expected


def test_the_context_of_a_model_depends_on_its_own_number_of_new_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    train, evaluation = (pl.DataFrame({"problem_id": ["p"], "question": [q]}) for q in ("3 + 4?", "5 + 6?"))
    splits: Any = SimpleNamespace(train=train, evaluation=evaluation, examples=None)
    resolved: Any = SimpleNamespace(folder=tmp_path, max_context_tokens=10**6)

    def context(name: str, **own: Any) -> int:
        config = config_of(**own)
        builder = prompt_builder(config, config.model(name), PLAIN, style="plain", examples=())
        return prepare._context_tokens(config, config.model(name), resolved, builder, splits)

    usual = context("a")
    assert context("a", sampling={"max_new_tokens": 6400 + 20}) == usual + 6400
    assert context("b", sampling={"max_new_tokens": 6400 + 20}) == usual
    assert context("a", evaluation_sampling={"max_new_tokens": 20_000}) >= 20_000


# --- system prompt and options of the chat template ------------------------------------------------


def builder_with(template: str | None, *, style: str = "chat", **model: Any) -> PromptBuilder:
    config = config_of(**model)
    return prompt_builder(config, config.model("a"), byte_tokenizer(template=template), style=style, examples=())


def test_the_system_prompt_comes_first_and_options_reach_the_template() -> None:
    plain = builder_with(THINKING)
    changed = builder_with(THINKING, system_prompt="Think.", template_options={"enable_thinking": False})
    check_chat_settings(changed)
    shown = {name: b.tokenizer.decode(b.build("3 + 4?", "Add.")) for name, b in {"p": plain, "c": changed}.items()}
    assert shown["p"].startswith("<s>user: 3 + 4?")
    assert shown["p"].endswith("<s>assistant:<think>")
    assert shown["c"].startswith("<s>system: Think.</s><s>user: 3 + 4?")
    assert shown["c"].endswith("<s>assistant:<think>\n\n</think>")
    assert (plain.opened_thinking, changed.opened_thinking) == ("<think>\n", "")


def test_prompts_do_not_depend_on_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    builder, dated = builder_with(DATED + CHAT), builder_with(DATED + CHAT, template_options={"date_string": "May 1"})
    check_chat_settings(dated)
    found = set()
    for day in (datetime(2025, 12, 31), datetime(2026, 1, 1)):
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda day=day: day))
        found.add((builder.build("3 + 4?"), builder.build("3 + 4?", "Add."), dated.build("3 + 4?")))
    ((plain, hinted, own),) = found
    for ids, date in ((plain, "26 Jul 2024"), (hinted, "26 Jul 2024"), (own, "May 1")):
        assert PLAIN.decode(ids).startswith(f"<s>system: Today Date: {date}</s><s>user: 3 + 4?")


@pytest.mark.parametrize(
    ("template", "style", "model", "expected"),
    [
        (NO_SYSTEM, "chat", {"system_prompt": "Hi"}, "system_prompt: the chat template refuses a system message"),
        (IGNORES_SYSTEM, "chat", {"system_prompt": "Hi"}, "system_prompt: the chat template ignores a system message"),
        (THINKING, "chat", {"template_options": {"enable_thinkin": True}}, "template_options.enable_thinkin: the chat"),
        (None, "plain", {"system_prompt": "Hi"}, "system_prompt: the tokenizer has no chat template"),
        (None, "plain", {"template_options": {"x": 1}}, "template_options: the tokenizer has no chat template"),
    ],
)
def test_chat_settings_that_would_not_reach_the_prompt(
    template: str | None, style: str, model: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_chat_settings(builder_with(template, style=style, **model))
    assert str(caught.value).startswith(expected)


def test_chat_settings_are_part_of_the_identity_only_if_they_are_given() -> None:
    def team(**model: Any) -> dict[str, Any]:
        member: dict[str, Any] = scientific_fields(config_of(**model))["team"][0]
        return member

    assert not {"system_prompt", "template_options"} & team().keys()
    assert team(system_prompt="Hi")["system_prompt"] == "Hi"
    assert team(template_options={"enable_thinking": False})["template_options"] == {"enable_thinking": False}
