"""The configuration of the problems: where they come from, how many, and what training and evaluation may share.

In: plain data. Out: frozen sections, used by config.py. What needs a look at generators or data sets beyond the shape of the
fields is checked by problems.py (`source_mistakes`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from core_hpc.config.base import PositiveInt, Section
from core_hpc.config.instructions import default_instruction

AnswerKindName = Literal["number", "integer", "latex", "letter", "text"]
_KIND = "number: by exact value; integer: 0 to 999 (AIME); latex: by algebra; letter: A to J; text: same words"
_DRAW = "use only so many, drawn by seed; evaluation draws from what training does not use"
COMMIT_PATTERN = r"^[0-9a-f]{40}$"
ANSWER_KINDS: dict[str, AnswerKindName] = {
    "generated": "number",
    "gsm8k": "number",
    "math": "latex",
    "aime": "integer",
    "gpqa": "letter",
    "medmcqa": "letter",
}
"""Source -> kind of its answers, where the source decides it and no field does."""


class GeneratedProblems(Section):
    """Problems made by a seeded generator of this package."""

    source: Literal["generated"]
    task: str = Field("addition_chain", description="name of a generator in core_hpc.problems.generators")
    count: PositiveInt
    seed: int = Field(0, ge=0)
    options: dict[str, int] = Field({}, description="parameters of the generator")


class GymProblems(Section):
    """Problems made by reasoning-gym (extra `gym`). Its tasks with several right answers do not fit: ours compares with one."""

    source: Literal["reasoning_gym"]
    task: str = Field(min_length=1, description="name of a reasoning-gym data set, such as gsm_symbolic or chain_sum")
    count: PositiveInt
    seed: int = Field(0, ge=0)
    options: dict[str, JsonValue] = Field({}, description="parameters of the task, but seed and size")
    answer_kind: AnswerKindName = Field("number", description=_KIND)


class FileProblems(Section):
    """Problems from a file of the user's: rows of id, question, answer; every other field is kept as metadata."""

    source: Literal["jsonl", "parquet"]
    path: str = Field(min_length=1, description="relative to the current folder")
    answer_kind: AnswerKindName = Field("number", description=f"of rows without a field answer_kind. {_KIND}")
    count: PositiveInt | None = Field(None, description=_DRAW)
    seed: int = Field(0, ge=0)


class DataSetProblems(Section):
    """Problems of a published data set: from the hub at a pinned commit, or from a file in its own row format."""

    source: Literal["gsm8k", "math", "aime", "gpqa", "medmcqa"]
    path: str | None = Field(
        None, min_length=1, description="a file (.jsonl, .parquet, .csv) in the format of the data set, not the hub"
    )
    subset: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="math: full or math-500; aime: 1983-2024, 2024 or 2025; gpqa: main, diamond or extended; default: the first",
    )
    split: str | None = Field(None, description="default: the first split for training, the last for evaluation")
    repository: str | None = Field(
        None, description="another hub repository in the same row format; needs revision and files"
    )
    revision: str | None = Field(None, pattern=COMMIT_PATTERN, description="commit hash of `repository`")
    files: list[str] | None = Field(None, min_length=1, description="files of `repository`")
    count: PositiveInt | None = Field(None, description=_DRAW)
    seed: int = Field(0, ge=0, description="of the draw, and of the order of options (gpqa)")

    @model_validator(mode="after")
    def _one_place(self) -> DataSetProblems:
        hub = [n for n in ("subset", "split", "repository", "revision", "files") if getattr(self, n) is not None]
        if self.path is not None and hub:
            raise ValueError(f"path names a file of yours, {' and '.join(hub)} the hub; give one of them")
        own = [getattr(self, n) is not None for n in ("repository", "revision", "files")]
        if any(own) and (not all(own) or len(hub) > 3):
            raise ValueError(
                "another repository needs all of repository, revision and files, and neither subset nor split"
            )
        return self


ProblemSource = Annotated[
    GeneratedProblems | GymProblems | FileProblems | DataSetProblems, Field(discriminator="source")
]
PROBLEM_SOURCES: dict[str, type[Section]] = {
    name: section
    for section in (GeneratedProblems, GymProblems, FileProblems, DataSetProblems)
    for name in get_args(section.model_fields["source"].annotation)
}
"""Value of `source` -> its section."""


def answer_kind_of(source: ProblemSource) -> AnswerKindName:
    """Kind of a source's answers; rows of the user's own files may say otherwise."""
    if isinstance(source, (GymProblems, FileProblems)):
        return source.answer_kind
    return ANSWER_KINDS[source.source]


class ProblemsSection(Section):
    """What is practised on, and what is held out."""

    train: ProblemSource
    evaluation: ProblemSource
    near_duplicates: Literal["error", "drop", "allow"] = Field(
        "error",
        description="training problems that are nearly the same as held-out ones, when both come from files: stop, leave them out of "
        "training (the very same ones too), or keep them knowingly (never the very same)",
    )
    num_examples: int = Field(
        0, ge=0, le=16, description="worked examples shown in every prompt; they come from neither split"
    )
    instruction_style: Literal["direct", "strategies"] = Field(
        "direct",
        description="of the default instruction: solve it; or solve it in several ways, each in a <strategy> block",
    )
    instruction: str = Field(
        None,
        validate_default=True,
        description="said after each question (and hint); default: by style, and asks for the form of the problems' answers; may be "
        "empty when the examples show it",
    )

    @field_validator("instruction", mode="before")
    @classmethod
    def _by_answer_kind(cls, instruction: Any, info: ValidationInfo) -> Any:
        """In the resolved configuration the instruction is always spelled out."""
        if instruction is not None:
            return instruction
        style = info.data.get("instruction_style")
        train, evaluation = info.data.get("train"), info.data.get("evaluation")
        if style is None or train is None or evaluation is None:  # mistakes of their own
            return ""
        kinds = {answer_kind_of(train), answer_kind_of(evaluation)}
        found = default_instruction(kinds, style)
        if found is None:
            raise ValueError(
                f"training and evaluation ask for answers of different kinds ({', '.join(sorted(kinds))}); write one for both"
            )
        return found
