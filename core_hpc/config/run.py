"""The typed configuration of one run: every field with its meaning, unit, range and default.

In: plain data (the sweep file after inheritance, grid and --set; see sweep.py). Out: a frozen `RunConfig`.
Fields marked `operational` do not change what a run computes (resources, display, how far it goes); all others
are scientific: they enter the run's identity and cannot change once it has started.
This module does not read files and loads no heavy package.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from core_hpc.config.base import OPERATIONAL, PositiveInt, Section, operational
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.problems import ProblemsSection
from core_hpc.config.update import UpdateSection
from core_hpc.store.paths import TEAM
from core_hpc.store.schema import EVALUATE

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Weight = Annotated[float, Field(ge=0, le=100)]
Schedule = Weight | Annotated[list[Weight], Field(min_length=1)]
"""A weight, or a list of weights, one per epoch (or iteration); the last one holds from then on."""


class LoraSection(Section):
    """Low-rank adapter (METHOD: r 16, alpha 32, dropout 0, all seven projections)."""

    rank: int = Field(16, ge=1, le=512)
    alpha: float = Field(32, gt=0)
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="last parts of the names of the linear layers that get an adapter",
    )


class SamplingSection(Section):
    """Sampling of one kind of phase."""

    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(0.9, gt=0, le=1)
    max_new_tokens: int = Field(3072, ge=1)


class OwnSamplingSection(Section):
    """What one model samples otherwise than the team; what is left out is the team's."""

    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1)


class ModelSection(Section):
    """One member of the team."""

    name: str = Field(pattern=NAME_PATTERN, description="short name used in files, tables and plots")
    model: str = Field(
        min_length=1, description="hub name, local folder, or pypi:<name> for a model shipped by a registry package"
    )
    revision: str | None = Field(None, description="hub revision (a commit hash makes it exact)")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(False, description="load pickled weights (.bin); they can run code")
    engine: Literal["vllm", "transformers", "fake"] = Field(
        "vllm", description="generation engine; fake is for tests of this software"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the base weights; auto: bfloat16 on GPU, else float32"
    )
    prompt_style: Literal["auto", "chat", "plain"] = Field(
        "auto", description="auto: the model's own chat template where it has one"
    )
    stop_strings: list[str] | None = Field(
        None, description="generation ends there; default: none for chat, a new question for plain"
    )
    sampling: OwnSamplingSection = Field(OwnSamplingSection(), description="of this model; default: protocol.sampling")
    evaluation_sampling: OwnSamplingSection = Field(
        OwnSamplingSection(), description="of this model; default: evaluation.sampling"
    )
    max_context_tokens: int | None = Field(
        None, ge=16, description="prompt + hint + new tokens; default: what the run needs"
    )
    tuning: Literal["lora", "qlora", "full"] = Field(
        "lora",
        description="what an update trains. lora: an adapter; qlora: an adapter on base weights of 4 bits (NF4, double quantisation, "
        "computing in bfloat16), in the trainer and in the engine, which needs a GPU and the extra `qlora`; full: every weight",
    )
    lora: LoraSection | None = Field(None, validate_default=True, description="the adapter; none with tuning: full")
    learning_rate: float | None = Field(None, gt=0, le=1, description="of this model; default: update.learning_rate")

    @field_validator("tuning")
    @classmethod
    def _four_bits_compute_in_bfloat16(cls, tuning: str, info: ValidationInfo) -> str:
        if tuning == "qlora" and info.data.get("dtype") == "float32":
            raise ValueError("qlora computes in bfloat16, and dtype says float32; leave dtype out")
        return tuning

    @field_validator("lora", mode="before")
    @classmethod
    def _adapter_of_the_tuning(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("tuning") == "full":
            if value is not None:
                raise ValueError("tuning: full trains every weight and has no adapter; leave it out")
            return None
        return LoraSection() if value is None else value


class ProtocolSection(Section):
    """The CORE protocol: cold samples, teacher, hint, rescue samples (METHOD section 1)."""

    problems_per_iteration: PositiveInt = Field(32, description="training problems of one iteration")
    problems_per_part: PositiveInt = Field(
        256, description="problems of one generation task; changes the last digits of engines"
    )
    cold_samples: PositiveInt = Field(2, description="K")
    rescue_samples: int = Field(1, ge=0, description="K'; 0 switches the rescue phase off")
    scope: Literal["failed", "all"] = Field(
        "failed", description="who samples again: models with no correct cold completion, or all"
    )
    even_budget: bool = Field(
        False,
        description="who gets no hint samples again too, without one, so that every problem costs K + K' completions of every model",
    )
    hint_probability: float = Field(0.75, ge=0, le=1)
    hint_tokens: PositiveInt = Field(1536, description="a hint is cut to so many of the student's tokens")
    hint_style: Literal["full", "strategy", "compressed"] = Field(
        "full",
        description="full: the teacher's text without thoughts and answers, or its first right strategy where it is written in "
        "strategies; strategy: the latter or no hint; compressed: of `full` the approach and the sentences that compute",
    )
    teacher_score: Literal["total", "exploit"] = "total"
    sampling: SamplingSection = SamplingSection()


class ExploitSection(Section):
    weight: Schedule = 1.0
    partial_weight: float = Field(0.3, ge=0, lt=1, description="alpha of Eq. 2")
    partial: Literal["token_f1", "none"] = "token_f1"


class ExploreSection(Section):
    weight: Schedule = [0.2, 0.05]
    rule: Literal["leave_one_out", "greedy_outsider", "dpp"] = "leave_one_out"
    margin: float = Field(0.15, ge=0, description="delta of Eq. 3")
    cap: int = Field(10, ge=1, description="greatest size of the chosen set of greedy_outsider")


class WeightSection(Section):
    weight: Schedule


class CrossSection(Section):
    weight: Schedule = [0.0, 0.1]
    margin: float = Field(0.15, ge=0)
    gate: float = Field(0.1, ge=0, description="a partner counts when its best exploit is at least this")


class DistanceSection(Section):
    """Distance of two completions (Eq. 13)."""

    embedder: str = Field(
        "pypi:all-minilm-l6-v2", description="folder, hub name, pypi:all-minilm-l6-v2, or fake:hashing (for tests)"
    )
    embedding_weight: float = Field(0.6, ge=0, le=1, description="the rest is the weight of the operation signatures")


class FormatSection(Section):
    """Pays for the form that the instruction of style `strategies` asks for (the authors' code; not in the paper)."""

    weight: Schedule = Field(0.0, description="the authors' runs with strategies: 0.1")
    per_strategy: float = Field(0.2, ge=0, le=1, description="for each closed strategy block")
    final_answer: float = Field(
        0.5, ge=0, le=1, description="for a closed <final_answer>; both together give 1 at most"
    )


class LengthSection(Section):
    """Pays for long completions (the authors' code; not in the paper), in words, which all models count alike."""

    weight: Schedule = Field(0.0, description="the authors' runs with strategies: 0.05")
    min_words: int = Field(128, ge=0, description="up to so many words: 0")
    max_words: int = Field(1024, validate_default=True, ge=1, description="from so many words: 1; linear in between")

    @field_validator("max_words")
    @classmethod
    def _above_min(cls, max_words: int, info: ValidationInfo) -> int:
        if max_words <= info.data.get("min_words", 0):
            raise ValueError("must be greater than min_words")
        return max_words


class RewardSection(Section):
    """Reward of a completion (METHOD section 4; the paper's weights).

    `format` and `length` are parts of the authors' code and off by default; they are in the column `reward` of the scores and
    have none of their own. Left out is that code's reward for different thoughts: it gives every completion with thoughts the
    same amount, so where all models think, advantages do not see it; what one completion adds to it is nowhere defined.
    """

    schedule_by: Literal["epoch", "iteration"] = Field(
        "epoch", description="what an entry of a list of weights stands for"
    )
    exploit: ExploitSection = ExploitSection()
    explore: ExploreSection = ExploreSection()
    rescue: WeightSection = WeightSection(weight=0.15)
    trace_accuracy: WeightSection = WeightSection(weight=0.2)
    cross: CrossSection = CrossSection()
    format: FormatSection = FormatSection()
    length: LengthSection = LengthSection()
    distance: DistanceSection = DistanceSection()


class EvaluationSection(Section):
    """Held-out evaluation: before the first and after the last iteration, and after every n-th."""

    before: bool = operational(
        True, description="of the untrained models too; arms that share a seed need it in one of them only"
    )
    every: int = operational(0, ge=0, description="also after every n-th iteration; 0: only before and after")
    samples: PositiveInt = 8
    sampling: SamplingSection = SamplingSection(max_new_tokens=4096)


class RunConfig(Section):
    """One point of a sweep, resolved."""

    name: str = operational(pattern=NAME_PATTERN, description="name of the sweep: its folder under output")
    output: str = operational("outputs", description="folder of all sweeps")
    seed: int = Field(42, ge=0, lt=2**31)
    iterations: PositiveInt = operational(
        description="cold -> hint -> rescue -> score -> update, so many times; may be raised later"
    )
    team: list[ModelSection] = Field(min_length=1)
    problems: ProblemsSection
    protocol: ProtocolSection = ProtocolSection()
    reward: RewardSection = RewardSection()
    update: UpdateSection = UpdateSection()
    evaluation: EvaluationSection = EvaluationSection()
    cluster: ClusterSection = Field(ClusterSection(), json_schema_extra=OPERATIONAL)

    @field_validator("team")
    @classmethod
    def _distinct_names(cls, team: list[ModelSection]) -> list[ModelSection]:
        names = [m.name for m in team]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two models are called {', '.join(twice)}; give each model its own name")
        if TEAM in names:
            raise ValueError(
                f"no model may be called `{TEAM}`: in files and tables `{TEAM}` stands for all models together"
            )
        return team

    @model_validator(mode="after")
    def _rescue_needs_cold(self) -> RunConfig:
        if self.protocol.rescue_samples and len(self.team) == 1 and self.protocol.hint_probability == 1:
            raise ValueError(
                "a team of one has no peer to give hints: set protocol.rescue_samples to 0, or add a model"
            )
        return self

    @model_validator(mode="after")
    def _alone_without_rescues(self) -> RunConfig:
        if self.update.group == "model" and self.protocol.rescue_samples:
            raise ValueError(
                "update.group: model trains each model alone, but who samples again in a rescue phase depends on its peers; set "
                "protocol.rescue_samples to 0, and protocol.cold_samples to K + K' for the same budget"
            )
        return self

    @model_validator(mode="after")
    def _rescues_to_share(self) -> RunConfig:
        alone = len(self.team) == 1 or not self.protocol.rescue_samples or self.protocol.hint_probability == 0
        if self.update.share_rescues and alone:
            raise ValueError(
                "update.share_rescues: there are no rescues by hints to share (one model, no rescue samples, or no hints); leave it out"
            )
        return self

    def model(self, name: str) -> ModelSection:
        """The team member of that name."""
        return next(m for m in self.team if m.name == name)

    def sampling_of(self, model: ModelSection, phase: str) -> SamplingSection:
        """How a model samples in a phase: its own settings, and the team's where it has none."""
        if phase == EVALUATE:
            team, own = self.evaluation.sampling, model.evaluation_sampling
        else:
            team, own = self.protocol.sampling, model.sampling
        return team.model_copy(update=own.model_dump(exclude_none=True))


def scientific_fields(config: Section) -> dict[str, Any]:
    """All fields which change the result, as nested plain data."""
    out: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("operational"):
            continue
        value = getattr(config, name)
        if isinstance(value, Section):
            out[name] = scientific_fields(value)
        elif isinstance(value, (list, tuple)):
            out[name] = [scientific_fields(v) if isinstance(v, Section) else v for v in value]
        else:
            out[name] = value
    return out


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data as {dotted path: value}; lists of mappings are indexed, other lists are values."""
    if isinstance(data, dict) and data:
        return {
            k: v
            for key, value in data.items()
            for k, v in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(data, list) and data and all(isinstance(v, dict) for v in data):
        return {k: v for i, value in enumerate(data) for k, v in flatten(value, f"{prefix}.{i}").items()}
    return {prefix: data}


def config_hash(fields: dict[str, Any]) -> str:
    """Eight hex digits which identify a set of scientific fields."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def weight_at(schedule: float | list[float], index: int) -> float:
    """Weight of a reward part in epoch or iteration `index` (0-based)."""
    if isinstance(schedule, list):
        return schedule[min(index, len(schedule) - 1)]
    return schedule
