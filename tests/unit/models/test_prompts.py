"""Prompts and completions as ids and text, the default instruction, and how each model samples."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_hpc.answers.extract import extract_answer
from core_hpc.config.instructions import default_instruction
from core_hpc.config.problems import ANSWER_KINDS, ProblemsSection
from core_hpc.config.run import RunConfig
from core_hpc.controller import prepare
from core_hpc.engines.base import Completion
from core_hpc.models.prompts import THINKING_MARKS, PromptBuilder
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


# --- prompts -------------------------------------------------------------------------------------


def test_a_chat_model_sees_examples_as_turns_and_the_hint_before_the_instruction() -> None:
    builder = PromptBuilder(PLAIN, "chat", "Solve it.", (("1 + 1?", "1 + 1 = 2.\n#### 2"),))
    shown = PLAIN.decode(builder.build("3 + 4?", "Count up."))
    assert shown == (
        "<s>user: 1 + 1?\nSolve it.</s><s>assistant: 1 + 1 = 2.\n#### 2</s><s>user: 3 + 4?\n"
        "Here is the reasoning of another student, with the answer removed. It may help:\nCount up.\nSolve it.</s><s>assistant:"
    )


def test_a_base_model_sees_blocks_and_no_empty_instruction() -> None:
    builder = PromptBuilder(PLAIN, "plain", "", (("1 + 1?", "2"),))
    assert PLAIN.decode(builder.build("3 + 4?")) == "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 3 + 4?\nAnswer:"


# --- completions as text -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 257), max_size=40))
def test_text_is_what_the_tokenizer_decodes(ids: list[int]) -> None:
    assert PromptBuilder(PLAIN, "plain", "").completion_text(ids, ()) == PLAIN.decode(ids, skip_special_tokens=True)


def test_marks_of_thinking_stay_where_they_are_special_tokens_and_the_answer_is_not_that_of_the_thoughts() -> None:
    said = "[THINK]Is the answer 7? \\boxed{7}[/THINK]Four and four.</s>[INST]"
    ids = ids_of(MISTRAL, said)
    assert len(ids) < len(said) - 20  # the marks are tokens of their own
    assert "[THINK]" not in MISTRAL.decode(ids, skip_special_tokens=True)
    text = PromptBuilder(MISTRAL, "plain", "").completion_text(ids, ())
    assert text == "[THINK]Is the answer 7? \\boxed{7}[/THINK]Four and four."
    assert extract_answer(text, "number") is None
    assert extract_answer(text + " #### 8", "number") == "8"


@pytest.mark.parametrize("mark", THINKING_MARKS)
def test_every_mark_of_thinking_is_kept_whether_special_or_not(mark: str) -> None:
    for tokenizer in (PLAIN, byte_tokenizer(special=(mark,), template=CHAT)):
        text = PromptBuilder(tokenizer, "plain", "").completion_text(ids_of(tokenizer, f"a{mark}b{mark}"), ())
        assert text == f"a{mark}b{mark}"


def test_text_ends_before_the_first_stop_string() -> None:
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
def test_a_thought_that_the_template_opens_is_marked_in_the_text(end: str, opened: str) -> None:
    tokenizer = byte_tokenizer(template=f"{TURNS}{{% if add_generation_prompt %}}{end}{{% endif %}}")
    text = PromptBuilder(tokenizer, "chat", "").completion_text(ids_of(tokenizer, "Hm.\n8"), ("\n",))
    assert text == f"{opened}Hm."
    assert PromptBuilder(tokenizer, "plain", "").completion_text(ids_of(tokenizer, "Hm."), ()) == "Hm."


# --- instructions --------------------------------------------------------------------------------

GOLD = {"number": "8", "integer": "8", "latex": r"\frac{1}{2}", "letter": "B", "text": "New York"}
OBEYED = {
    "number": ("'#### '", "#### {}"),
    "integer": (r"\boxed{{}}", r"\boxed{{{}}}"),
    "latex": (r"\boxed{{}}", r"\boxed{{{}}}"),
    "letter": ("'Answer: '", "Answer: {}"),
    "text": ("'Answer: '", "Answer: {}"),
}


@pytest.mark.parametrize("kind", GOLD)
def test_an_answer_in_the_form_that_is_asked_for_is_read(kind: str) -> None:
    asked, form = OBEYED[kind]
    instruction = default_instruction({kind}, "direct") or ""
    assert asked.format() in instruction
    assert extract_answer(f"First this, then that.\n{form.format(GOLD[kind])}", kind) == GOLD[kind]


@pytest.mark.parametrize("kind", GOLD)
def test_strategies_written_as_the_instruction_shows_are_read(kind: str) -> None:
    """Each model of a block and of the final answer is taken from the instruction itself."""
    instruction = default_instruction({kind}, "strategies") or ""
    block = re.search(r"<strategy id=1>.*</strategy>", instruction, re.DOTALL)
    final = re.search(r"<final_answer>.*</final_answer>", instruction)
    assert block
    assert final
    wrong = {"letter": "C", "text": "Paris"}.get(kind, "9")
    written = [
        re.sub(
            r"<outcome>.*</outcome>",
            lambda _, said=said: f"<outcome>{said}</outcome>",
            block.group().replace("the steps of", how),
        )
        for how, said in (("Guess", wrong), ("Work out", GOLD[kind]))
    ]
    text = "\n".join([*written, f"<final_answer>{GOLD[kind]}</final_answer>"])
    assert extract_answer(text, kind) == GOLD[kind]
    hint = make_hint(text, GOLD[kind], kind, lambda t: list(t.encode()), lambda ids: bytes(ids).decode(), 1000)
    assert hint == "Work out this way"


def problems(train: dict[str, Any], evaluation: dict[str, Any], **more: Any) -> ProblemsSection:
    return ProblemsSection.model_validate({"train": train, "evaluation": evaluation, **more})


def test_the_default_instruction_follows_the_kind_of_answers_and_is_spelled_out() -> None:
    asks = {
        "gsm8k": "'#### '",
        "math": r"\boxed{}",
        "aime": "0 to 999",
        "gpqa": "letter",
        "medmcqa": "letter",
        "generated": "'#### '",
    }
    for name, words in asks.items():
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


def test_the_kinds_of_answers_are_those_of_the_rows() -> None:
    made = {name: parse(ROWS[name], "id", 0).answer_kind for name, parse in datasets.ROW_FORMATS.items()}
    made["generated"] = generators.generate(problems(SOURCE, SOURCE).train, 1, "train", set())[0].answer_kind  # type: ignore[arg-type]
    assert made == ANSWER_KINDS


def test_an_instruction_of_ones_own_wins_and_a_resolved_section_stays_as_it_is() -> None:
    for own in ("", "Say it."):
        assert problems(SOURCE, SOURCE, instruction=own, instruction_style="strategies").instruction == own
    for style in ("direct", "strategies"):
        section = problems(SOURCE, SOURCE, instruction_style=style)
        assert ProblemsSection.model_validate_json(section.model_dump_json()) == section


def test_no_instruction_suits_numbers_and_letters() -> None:
    with pytest.raises(ValueError, match=r"different kinds \(letter, number\)"):
        problems({"source": "gsm8k"}, {"source": "gpqa"})
    assert problems({"source": "gsm8k"}, {"source": "gpqa"}, instruction="Answer.").instruction == "Answer."


# --- sampling ------------------------------------------------------------------------------------


def config_of(**own: Any) -> RunConfig:
    """Two models; the first one has settings of its own."""
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


def test_a_model_samples_by_its_own_settings_and_else_by_those_of_the_team() -> None:
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
def test_what_is_sampled_is_what_is_recorded_and_what_the_engine_is_told(
    phase: str, recorded: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(sampling={"temperature": 0.25, "max_new_tokens": 5}, evaluation_sampling={"temperature": 0.75})
    told, published = [], []

    def sample(requests: Any, sampling: Any, **_: Any) -> list[Completion]:
        told.append(sampling)
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
        stop_strings=lambda _: (),
        adapter=lambda _: None,
        prompt_builder=lambda _: PromptBuilder(PLAIN, "plain", ""),
        stats=lambda **_: None,
        paths=SimpleNamespace(task_folder=lambda _: None, task_name=lambda _: None),
    )
    generate._sample_and_publish(context, phase, [generate._Wanted(problem, 0, (3,))], adapter_iteration=0)
    assert published[0]["temperature"].to_list() == [told[0].temperature] == [recorded]
    assert told[0].max_new_tokens == (5 if phase == COLD else 30)


def test_the_update_uses_the_temperature_that_its_model_sampled_with() -> None:
    config = config_of(sampling={"temperature": 0.25, "max_new_tokens": 5}, evaluation_sampling={"temperature": 0.75})
    for name, expected in (("a", (0.25, 5)), ("b", (0.5, 20))):
        run = SimpleNamespace(config=config, horizons=lambda: [Horizon(1, 1)])
        context: Any = SimpleNamespace(run=run, key=TaskKey(1, "update", name), model=config.model(name))
        task = update._task(context, [], None)
        assert (task.temperature, task.max_new_tokens) == expected


def test_the_context_is_that_of_the_models_own_new_tokens(tmp_path: Path) -> None:
    PLAIN.save_pretrained(tmp_path)
    splits: Any = SimpleNamespace(train={"question": ["3 + 4?"]}, evaluation={"question": ["5 + 6?"]}, examples=None)
    resolved: Any = SimpleNamespace(folder=tmp_path, max_context_tokens=10**6)

    def context(name: str, **own: Any) -> int:
        config = config_of(**own)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prepare, "worked_examples", lambda _: ())
            return prepare._context_tokens(config, config.model(name), resolved, "plain", splits)

    usual = context("a")
    assert context("a", sampling={"max_new_tokens": 6400 + 20}) == usual + 6400
    assert context("b", sampling={"max_new_tokens": 6400 + 20}) == usual
    assert context("a", evaluation_sampling={"max_new_tokens": 20_000}) >= 20_000
