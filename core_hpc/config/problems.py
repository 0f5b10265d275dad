"""The section `problems` of the configuration: the sources of training and evaluation problems.

In: plain data. Out: frozen sections, which `run.py` uses. Checks that need the generators or the
data sets themselves are in `problems/splits.py` (`source_mistakes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from core_hpc.config.base import DEFAULT_BY, PositiveInt, Section, added_later, null_means_default
from core_hpc.config.extensions import FUNCTION, OWN_NAME_PATTERN, FunctionReference, OwnFunction, function_of
from core_hpc.config.instructions import default_instruction

AnswerKindName = Literal["number", "integer", "latex", "letter", "text"]
_KIND = (
    "number: exact value; integer: 0 to 999 (AIME); latex: by algebra; letter: A to J; text: same words; or a name in "
    "problems.answer_kinds"
)
AnswerKind = Annotated[str, Field(pattern=OWN_NAME_PATTERN)]
"""A name of `AnswerKindName`, or a key of `problems.answer_kinds`."""
_COUNT = "problems to draw by seed; evaluation draws from what training does not use; null: all"
_MADE = "problems to generate"
MAX_MADE = 1_000_000
COMMIT_PATTERN = r"^[0-9a-f]{40}$"
ANSWER_KINDS: dict[str, AnswerKindName] = {
    "generated": "number",
    "gsm8k": "number",
    "math": "latex",
    "aime": "integer",
    "gpqa": "letter",
    "medmcqa": "letter",
}
"""Source -> kind of its answers, for the sources that have no field for it."""


class GeneratedProblems(Section):
    """Problems made by a seeded generator of this package."""

    source: Literal["generated"] = Field(description="where the problems come from")
    task: str = Field("addition_chain", description="name of a generator in core_hpc/problems/generators.py")
    count: PositiveInt = Field(le=MAX_MADE, description=_MADE)
    seed: int = Field(0, ge=0, description="seed of the generator")
    options: dict[str, int] = Field({}, description="parameters of the generator")


class GymProblems(Section):
    """Problems made by reasoning-gym (extra `gym`).

    Tasks with several correct answers do not fit: an answer is compared with one gold answer.
    """

    source: Literal["reasoning_gym"] = Field(description="where the problems come from")
    task: str = Field(
        min_length=1, description="name of a reasoning-gym data set, for example gsm_symbolic or chain_sum"
    )
    count: PositiveInt = Field(le=MAX_MADE, description=_MADE)
    seed: int = Field(0, ge=0, description="seed of the task")
    options: dict[str, JsonValue] = Field({}, description="parameters of the task, except seed and size")
    answer_kind: AnswerKind = Field("number", description=f"how answers are verified. {_KIND}")


class FileProblems(Section):
    """Problems from a file of the user, with the fields id, question and answer.

    Every other field of a row is kept as metadata.
    """

    source: Literal["jsonl", "parquet"] = Field(description="where the problems come from: a file in this format")
    path: str = Field(min_length=1, description="the file, relative to the current folder")
    answer_kind: AnswerKind = Field(
        "number", description=f"how answers are verified, for rows without a field answer_kind. {_KIND}"
    )
    count: PositiveInt | None = Field(None, description=_COUNT)
    seed: int = Field(0, ge=0, description="seed of the draw")


class FunctionProblems(OwnFunction):
    """Problems made by a function of the user."""

    source: Literal["function"] = Field(description="where the problems come from: a function of your own")
    function: FunctionReference = function_of("problem_source", description=FUNCTION)
    count: PositiveInt = Field(le=MAX_MADE, description=_MADE)
    seed: int = Field(0, ge=0, description="the function gets a seed that depends on this one and on the split")
    answer_kind: AnswerKind = Field("number", description=f"how answers are verified. {_KIND}")


class DataSetProblems(Section):
    """Problems of a published data set, from the hub at a pinned commit or from a file."""

    source: Literal["gsm8k", "math", "aime", "gpqa", "medmcqa"] = Field(
        description="where the problems come from: a published data set"
    )
    path: str | None = Field(
        None,
        min_length=1,
        description="a file (.jsonl, .parquet, .csv) in the format of the data set, instead of the hub",
    )
    subset: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="math: full or math-500; aime: 1983-2024, 2024 or 2025; gpqa: main, diamond or extended; "
        "null: the first of these",
    )
    split: str | None = Field(
        None, description="split of the data set; null: its first split for training, its last for evaluation"
    )
    repository: str | None = Field(
        None, description="another hub repository with the same row format; needs revision and files"
    )
    revision: str | None = Field(None, pattern=COMMIT_PATTERN, description="commit hash of repository")
    files: list[str] | None = Field(None, min_length=1, description="files of repository")
    count: PositiveInt | None = Field(None, description=_COUNT)
    seed: int = Field(0, ge=0, description="seed of the draw, and of the order of options (gpqa)")

    @model_validator(mode="after")
    def _one_place(self) -> DataSetProblems:
        hub = [n for n in ("subset", "split", "repository", "revision", "files") if getattr(self, n) is not None]
        if self.path is not None and hub:
            raise ValueError(f"path (a file) excludes {' and '.join(hub)} (of the hub); give one of them")
        own = [getattr(self, n) is not None for n in ("repository", "revision", "files")]
        if any(own) and (not all(own) or len(hub) > 3):
            raise ValueError(
                "another repository needs all of repository, revision and files, and neither subset nor split"
            )
        return self


class NoProblems(Section):
    """No training problems. The run only evaluates."""

    source: Literal["none"] = Field(description="no training problems, for a run with `iterations: 0`")


AnySource = GeneratedProblems | GymProblems | FileProblems | DataSetProblems | FunctionProblems
ProblemSource = Annotated[AnySource, Field(discriminator="source")]
TrainingSource = Annotated[AnySource | NoProblems, Field(discriminator="source")]
MADE = (GeneratedProblems, GymProblems, FunctionProblems)
"""Sections of the sources that make as many problems as they are asked for."""
PROBLEM_SOURCES: dict[str, type[Section]] = {
    name: section
    for section in (*get_args(AnySource), NoProblems)
    for name in get_args(section.model_fields["source"].annotation)
}
"""Value of `source` -> its section."""


class OwnAnswerKind(Section):
    """A kind of answers of the user."""

    normalize: FunctionReference = function_of("answer_normalize", description=f"canonical answer. {FUNCTION}")
    extract: FunctionReference | None = function_of(
        "answer_extract",
        None,
        description="answer in a completion; null: the last tag, box, #### or sentence that `normalize` accepts",
    )
    verify: FunctionReference | None = function_of(
        "answer_verify", None, description="whether an answer is right; null: both are the same after `normalize`"
    )


def answer_kind_of(source: ProblemSource) -> str:
    """Kind of a source's answers. Single rows of the user's own files may have another kind."""
    if isinstance(source, (GymProblems, FileProblems, FunctionProblems)):
        return source.answer_kind
    return ANSWER_KINDS[source.source]


def check_kind(source: ProblemSource, own: Mapping[str, OwnAnswerKind]) -> None:
    """Raise ValueError unless the source's kind of answers exists. `own` are the kinds of the user."""
    known = [*get_args(AnswerKindName), *own]
    if answer_kind_of(source) not in known:
        raise ValueError(f"unknown answer_kind {answer_kind_of(source)!r}; known: {', '.join(known)}")


_NO_COMMON_FORM = "(no default)"
"""Stands for a missing default instruction until `ProblemsSection` has reported it."""


def _kinds(data: dict[str, Any]) -> set[str]:
    sources = (data["train"], data["evaluation"])
    return {answer_kind_of(source) for source in sources if not isinstance(source, NoProblems)}


def _instruction_by_answers(data: dict[str, Any]) -> str:
    """The default instruction, from the fields of the section that are already validated."""
    return default_instruction(_kinds(data), data["instruction_style"]) or _NO_COMMON_FORM


class ProblemsSection(Section):
    """What the team trains on, and what is held out for evaluation."""

    answer_kinds: dict[AnswerKind, OwnAnswerKind] = added_later({}, description="kinds of answers of your own, by name")
    train: TrainingSource = Field(description="training problems")
    evaluation: ProblemSource = Field(description="held-out problems")
    near_duplicates: Literal["error", "drop", "allow"] = Field(
        "error",
        description="training problems that are nearly equal to held-out ones, if both come from files. error: stop; "
        "drop: leave them out of training, equal ones too; allow: keep them (never equal ones). A warm-up leaves them "
        "out, unless it is allow",
    )
    num_examples: int = Field(
        0, ge=0, le=16, description="worked examples in every prompt; they belong to neither split"
    )
    instruction_style: Literal["direct", "strategies"] = Field(
        "direct",
        description="style of the default instruction. direct: solve the problem; strategies: solve it in several "
        "ways, each in a <strategy> block",
    )
    instruction: str = Field(
        default_factory=_instruction_by_answers,
        validate_default=True,
        json_schema_extra={DEFAULT_BY: "instruction_style and the kinds of answers"},
        description="text after each question (and hint); may be empty if the worked examples show the form of answers",
    )

    @field_validator("answer_kinds")
    @classmethod
    def _names_of_their_own(cls, kinds: dict[str, OwnAnswerKind]) -> dict[str, OwnAnswerKind]:
        if taken := sorted(set(kinds).intersection(get_args(AnswerKindName))):
            raise ValueError(f"there is a kind {taken[0]} already; give your kind another name")
        return kinds

    @field_validator("train", "evaluation")
    @classmethod
    def _known_kind(cls, source: Any, info: ValidationInfo) -> Any:
        if not isinstance(source, NoProblems):
            check_kind(source, info.data.get("answer_kinds", {}))
        return source

    @field_validator("num_examples")
    @classmethod
    def _examples_of_training(cls, num_examples: int, info: ValidationInfo) -> int:
        if num_examples and isinstance(info.data.get("train"), NoProblems):
            raise ValueError("worked examples are drawn from problems.train, whose source is none; set a source there")
        return num_examples

    @field_validator("instruction", mode="before")
    @classmethod
    def _null_means_default(cls, instruction: Any) -> Any:
        return null_means_default(instruction)

    @field_validator("instruction")
    @classmethod
    def _one_form_of_answers(cls, instruction: str, info: ValidationInfo) -> str:
        if instruction == _NO_COMMON_FORM:
            raise ValueError(
                f"training and evaluation have answers of different kinds ({', '.join(sorted(_kinds(info.data)))}); "
                "write one instruction for both"
            )
        return instruction
