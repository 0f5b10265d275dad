"""The section `update` of the configuration: the loss with its options, and the optimizer (METHOD section 5).

In: plain data. Out: a frozen `UpdateSection` in which every option of the chosen loss has its value. An option that the
loss does not use is None, and a mistake where the file sets it; null in a file means "the loss's own default". Written
defaults and omitted ones are therefore the same run. The formulae are training/losses.py's.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from core_hpc.config.base import PositiveInt, Section, operational

_COMMON: dict[str, Any] = {"kl_weight": 0.0, "kl_times_ratio": False, "ratio": "token", "advantage_scale": "std"}
_CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}

LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {**_COMMON, **_CLIP, "kl_weight": 0.04},
    "dapo": {**_COMMON, "clip_low": 0.2, "clip_high": 0.28},
    "dr_grpo": {**_COMMON, **_CLIP, "advantage_scale": "none"},
    "bnpo": {**_COMMON, **_CLIP, "kl_weight": 0.04},
    "gspo": {**_COMMON, "clip_low": 3e-4, "clip_high": 4e-4, "ratio": "sequence"},
    "sapo": {**_COMMON, "tau_positive": 1.0, "tau_negative": 1.05, "tau_rescue": 0.8, "kl_weight": 0.04},
    "cispo": {**_COMMON, "ratio_cap": 5.0},
}
"""Options of every loss with their defaults: METHOD's where it has one, else those of the loss's source (training/losses.py)."""

IMPORTANCE_CAPS: dict[str, float | None] = {
    "token_truncate": 2.0,
    "sequence_mask": 3.0,
    "geometric_truncate": 2.0,
    "none": None,
}
"""Default cap of every kind of importance correction; TRL's for sequence_mask."""


class ImportanceSection(Section):
    """Correction of the engine's against the trainer's log-probabilities; d_t is their difference at a token.

    With top_p < 1 the engine's are those of the cut distribution, so every d_t is a little below 0: `sequence_mask`,
    which weighs by the sum of the d_t, then fades long completions out; `geometric_truncate` does not.
    """

    kind: Literal["token_truncate", "sequence_mask", "geometric_truncate", "none"] = Field(
        "token_truncate",
        description="weight of a token: min(exp(d_t), cap); exp(sum of the completion's d_t), 0 above the cap; "
        "min(exp(mean of the completion's d_t), cap); 1",
    )
    cap: float | None = Field(
        None, validate_default=True, ge=1, description="largest weight; default: 2, for sequence_mask 3"
    )

    @field_validator("cap", mode="before")
    @classmethod
    def _of_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        if kind is None:  # a mistake of its own
            return value
        if value is not None and IMPORTANCE_CAPS[kind] is None:
            raise ValueError(f"kind {kind} has no cap; leave it out")
        return IMPORTANCE_CAPS[kind] if value is None else value


class UpdateSection(Section):
    """Policy optimisation under DeepSpeed ZeRO-2 (METHOD section 5); what is trained is the model's `tuning`.

    >>> settings = UpdateSection(loss="gspo")
    >>> settings.ratio, settings.clip_low, settings.clip_high, settings.kl_weight, settings.ratio_cap
    ('sequence', 0.0003, 0.0004, 0.0, None)
    """

    loss: str = Field("grpo", description=f"one of {', '.join(LOSS_OPTIONS)}")
    ratio: Literal["token", "sequence"] = Field(
        None,
        validate_default=True,
        description="policy ratio of a token, or exp(mean log-ratio) of its completion; gspo: sequence",
    )
    clip_low: float | None = Field(
        None, validate_default=True, gt=0, lt=1, description="grpo and its kin: ratios below 1 - clip_low"
    )
    clip_high: float | None = Field(
        None, validate_default=True, gt=0, description="grpo and its kin: ratios above 1 + clip_high"
    )
    ratio_cap: float | None = Field(
        None, validate_default=True, ge=1, description="cispo: largest weight, the ratio itself"
    )
    tau_positive: float | None = Field(
        None, validate_default=True, gt=0, description="sapo: temperature of the gate where A > 0"
    )
    tau_negative: float | None = Field(None, validate_default=True, gt=0, description="sapo: where A <= 0")
    tau_rescue: float | None = Field(
        None, validate_default=True, gt=0, description="sapo: of completions of the rescue phase, both signs"
    )
    advantage_scale: Literal["std", "none"] = Field(
        None,
        validate_default=True,
        description="are centred rewards divided by their standard deviation; dr_grpo: none",
    )
    kl_weight: float = Field(
        None, validate_default=True, ge=0, description="beta of Eq. 21; 0.04 for grpo, bnpo and sapo, else 0"
    )
    kl_times_ratio: bool = Field(
        None,
        validate_default=True,
        description="multiply k3 by the token's ratio: its gradient is then that of the reverse KL",
    )
    group: Literal["team", "model"] = Field(
        "team",
        description="completions of a problem that rewards and advantages compare: of all models, or of one model alone. With "
        "`model` no peer enters a reward (no rescue, no cross): independent training, once protocol.rescue_samples is 0 too",
    )
    rescue_weight: float = Field(0.8, ge=0, description="weight of rescue completions in the loss")
    share_rescues: float = Field(
        0.0,
        ge=0,
        description="weight of the peers' rescued completions, as text without the hint, in a model's own loss (buddy "
        "distillation; not in the paper); 0: none",
    )
    problems_per_step: PositiveInt = Field(4, description="problems of one optimizer step")
    learning_rate: float = Field(1e-5, gt=0, le=1, description="of every model that has none of its own")
    weight_decay: float = Field(0.01, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of all optimizer steps")
    schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: float = Field(1.0, gt=0)
    importance: ImportanceSection = ImportanceSection()
    gradient_checkpointing: bool | None = operational(
        None,
        description="compute activations again in the backward pass: of all layers, or of none; default: of as many as the memory "
        "of the GPU demands (of none on a CPU)",
    )
    compile: bool | None = operational(
        None,
        description="compile the model's layers, on a GPU: it takes a minute or two; default: where updates are long enough to pay",
    )
    micro_batch_tokens: PositiveInt = operational(
        4096, description="tokens of one forward pass at most, what completions begin with alike counted once"
    )
    checkpoint_min: float = operational(
        15, ge=0, description="minutes between checkpoints of a running update; 0: only when told to stop"
    )

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, loss: str) -> str:
        if loss not in LOSS_OPTIONS:
            raise ValueError(f"there is no such loss; choose {', '.join(LOSS_OPTIONS)}")
        return loss

    @field_validator(
        "ratio",
        "clip_low",
        "clip_high",
        "ratio_cap",
        "tau_positive",
        "tau_negative",
        "tau_rescue",
        "advantage_scale",
        "kl_weight",
        "kl_times_ratio",
        mode="before",
    )
    @classmethod
    def _option_of_the_loss(cls, value: Any, info: ValidationInfo) -> Any:
        loss, name = info.data.get("loss"), str(info.field_name)
        options = LOSS_OPTIONS[loss or "grpo"]
        if value is None:
            return options.get(name)
        if loss is not None and name not in options:  # an unknown loss is a mistake of its own
            raise ValueError(f"loss {loss} has no such option; leave it out, or choose among {', '.join(options)}")
        return value

    @field_validator("ratio")
    @classmethod
    def _ratio_of_gspo(cls, ratio: str, info: ValidationInfo) -> str:
        if info.data.get("loss") == "gspo" and ratio != "sequence":
            raise ValueError("gspo is defined by the sequence ratio; for token ratios write `loss: grpo`")
        return ratio

    @field_validator("kl_times_ratio")
    @classmethod
    def _needs_kl(cls, kl_times_ratio: bool, info: ValidationInfo) -> bool:
        if kl_times_ratio and info.data.get("kl_weight") == 0:
            raise ValueError("has no effect while kl_weight is 0; give kl_weight, or leave this out")
        return kl_times_ratio
