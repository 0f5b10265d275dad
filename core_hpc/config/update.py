"""The section `update` of the configuration: the loss with its options, and the optimizer.

In: plain data. Out: a frozen `UpdateSection` in which every option of the chosen loss has a value.
An option that the loss does not use is None, and it is a mistake to set it. In a file, null stands
for the default of the loss. A written default and an omitted one are therefore the same run.
METHOD.md section 5 has the formulas, and `training/losses.py` computes them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from core_hpc.config.base import (
    PositiveInt,
    Section,
    added_later,
    null_means_default,
    operational,
    with_default_by,
)
from core_hpc.config.extensions import AdvantageFunction, LossFunction
from core_hpc.config.teach import HacpoSection, SelfTeacherSection, TeachSection, TeamPassSection

Beta = Annotated[float, Field(ge=0, lt=1)]
Loss = Literal["grpo", "dapo", "dr_grpo", "bnpo", "gspo", "sapo", "cispo"]
ImportanceKind = Literal[
    "token_truncate", "sequence_mask", "geometric_truncate", "token_band", "geometric_reject", "none"
]

_COMMON: dict[str, Any] = {"kl_weight": 0.0, "kl_times_ratio": False, "ratio": "token", "advantage_scale": "std"}
_CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}

LOSS_OPTIONS: dict[Loss, dict[str, Any]] = {
    "grpo": {**_COMMON, **_CLIP, "kl_weight": 0.04},
    "dapo": {**_COMMON, "clip_low": 0.2, "clip_high": 0.28},
    "dr_grpo": {**_COMMON, **_CLIP, "advantage_scale": "none"},
    "bnpo": {**_COMMON, **_CLIP, "kl_weight": 0.04},
    "gspo": {**_COMMON, "clip_low": 3e-4, "clip_high": 4e-4, "ratio": "sequence"},
    "sapo": {**_COMMON, "tau_positive": 1.0, "tau_negative": 1.05, "tau_rescue": 0.8, "kl_weight": 0.04},
    "cispo": {**_COMMON, "ratio_cap": 5.0},
}
"""Loss -> its options with their defaults, from METHOD.md, else from the source of the loss."""

IMPORTANCE_CAPS: dict[ImportanceKind, float | None] = {
    "token_truncate": 2.0,
    "sequence_mask": 3.0,
    "geometric_truncate": 2.0,
    "token_band": 5.0,
    "geometric_reject": 2.0,
    "none": None,
}
"""Kind of importance correction -> its default cap. That of sequence_mask is TRL's, that of
token_band the one of IcePop (arXiv 2510.18855)."""
IMPORTANCE_FLOORS: dict[ImportanceKind, float] = {"token_band": 0.5, "geometric_reject": 0.5}
"""Kind of importance correction -> its default floor. That of token_band is the one of IcePop."""


def _option(name: str, **kwargs: Any) -> Any:
    """Declare an option of the losses; its default is None for a loss that does not use it."""
    return with_default_by("loss", lambda loss: LOSS_OPTIONS[loss].get(name), **kwargs)


class ImportanceSection(Section):
    """Importance correction of engine log-probabilities against trainer log-probabilities.

    u_t is their difference at token t (METHOD.md section 5). With top_p < 1 the engine's
    log-probabilities refer to the truncated distribution, so every u_t is slightly negative. Then
    `sequence_mask`, which uses the sum of the u_t, fades out long completions. `geometric_truncate`
    does not.
    """

    kind: ImportanceKind = Field(
        "token_truncate",
        description="weight of a token. token_truncate: min(exp(u_t), cap); sequence_mask: exp(sum of u_t over the "
        "completion), 0 above the cap; geometric_truncate: min(exp(mean of u_t), cap); token_band: exp(u_t), 0 outside "
        "floor and cap; geometric_reject: 1, or 0 where exp(mean of u_t) is outside floor and cap; none: 1",
    )
    cap: float | None = with_default_by(
        "kind",
        lambda kind: IMPORTANCE_CAPS[kind],
        ge=1,
        description="largest weight; default: 2, for sequence_mask 3, for token_band 5",
    )
    floor: float | None = with_default_by(
        "kind",
        IMPORTANCE_FLOORS.get,
        later=True,
        gt=0,
        le=1,
        description="smallest weight above 0 (token_band, geometric_reject); default: 0.5",
    )

    @field_validator("cap", mode="before")
    @classmethod
    def _cap_of_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        if value is not None and kind is not None and IMPORTANCE_CAPS[kind] is None:
            raise ValueError(f"kind {kind} has no cap; leave it out")
        return null_means_default(value)

    @field_validator("floor", mode="before")
    @classmethod
    def _floor_of_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        if value is not None and kind is not None and kind not in IMPORTANCE_FLOORS:
            raise ValueError(f"kind {kind} has no floor; leave it out, or choose one of {', '.join(IMPORTANCE_FLOORS)}")
        return null_means_default(value)


class UpdateSection(Section):
    """Policy optimisation with DeepSpeed ZeRO-2 (METHOD.md section 5).

    What is trained depends on the field `tuning` of the model.

    >>> settings = UpdateSection(loss="gspo")
    >>> settings.ratio, settings.clip_low, settings.clip_high, settings.kl_weight, settings.ratio_cap
    ('sequence', 0.0003, 0.0004, 0.0, None)
    """

    loss: Loss = Field("grpo", description="the loss; it decides which of the following options exist")
    loss_function: LossFunction | None = added_later(
        None,
        description="a function of your own for the gain of a token, instead of that of `loss`, which still has the "
        "ratio, the KL term and the mean over tokens; null: none",
    )
    ratio: Literal["token", "sequence", "current"] = _option(
        "ratio",
        description="policy ratio. token: of each token; sequence: exp(mean log-ratio) of the completion; current: "
        "always 1, because the old policy is the current one (authors' older trainer)",
    )
    clip_low: float | None = _option(
        "clip_low", gt=0, lt=1, description="ratios below 1 - clip_low are clipped (grpo, dapo, dr_grpo, bnpo, gspo)"
    )
    clip_high: float | None = _option(
        "clip_high", gt=0, description="ratios above 1 + clip_high are clipped (the same losses)"
    )
    ratio_cap: float | None = _option("ratio_cap", ge=1, description="largest ratio that is used as a weight (cispo)")
    tau_positive: float | None = _option(
        "tau_positive", gt=0, description="temperature of the gate if the advantage is positive (sapo)"
    )
    tau_negative: float | None = _option("tau_negative", gt=0, description="temperature of the gate otherwise (sapo)")
    tau_rescue: float | None = _option(
        "tau_rescue", gt=0, description="temperature of the gate for completions of the rescue phase (sapo)"
    )
    advantage_scale: Literal["std", "none"] = _option(
        "advantage_scale", description="std: divide centred rewards by their standard deviation; none: do not divide"
    )
    kl_weight: float = _option("kl_weight", ge=0, description="weight beta of the KL term (Eq. 21)")
    kl_times_ratio: bool = _option(
        "kl_times_ratio", description="multiply k3 by the ratio of the token, for the gradient of the reverse KL"
    )
    group: Literal["team", "model"] = Field(
        "team",
        description="completions of a problem that rewards and advantages compare. team: of all models; model: of one "
        "model (independent training; needs protocol.rescue_samples: 0)",
    )
    baseline: Literal["team", "model", "model_phase", "model_batch"] = added_later(
        "team",
        description="completions of a problem over which an advantage takes mean and standard deviation; the rewards "
        "compare as `group` has it. team: all that are compared; model: those of the model, of both phases; "
        "model_phase: those of the model in the phase; model_batch: those of the model, of all problems of the "
        "optimizer step (authors' older trainer)",
    )
    advantage_function: AdvantageFunction | None = added_later(
        None, description="a function of your own for the advantages of compared completions; null: none"
    )
    team_pass: TeamPassSection = added_later(
        TeamPassSection(), description="advantages for team Pass@k, beside those of the reward (not in the paper)"
    )
    rescue_weight: float = Field(0.8, ge=0, description="weight of rescue completions in the loss")
    rescue_context: Literal["hinted", "plain"] = added_later(
        "hinted",
        description="prompt on which a correct hinted rescue completion with a positive advantage is learned. hinted: "
        "the one that produced it; plain: the model's prompt without the hint",
    )
    rescue_correction: Literal["none", "importance", "shaped"] = added_later(
        "none",
        description="with rescue_context: plain. none: the loss, as if the completion were sampled from the plain "
        "prompt; importance: weight min(p without hint / p with hint, 1) of a token; shaped: gain p / (p + 0.1)",
    )
    rescue_others: Literal["hinted", "plain", "drop"] = added_later(
        "hinted",
        description="with rescue_context: plain, what happens with the other hinted rescue completions: learned on "
        "their own prompt, on the plain prompt, or left out",
    )
    reliance_scale: float | None = added_later(
        None,
        gt=0,
        description="weight of a correct hinted rescue by its reliance D on the hint: exp(min(D, 0) / scale), with D "
        "in nats per token; null: 1. HiLL uses 0.3",
    )
    share_rescues: float = Field(
        0.0,
        ge=0,
        description="weight of the rescued completions of peers, as text without the hint and without a clip, in a "
        "model's own loss (not in the paper); 0: off",
    )
    teach: TeachSection = added_later(
        TeachSection(), description="learning from the correct cold completions of peers (not in the paper)"
    )
    self_teacher: SelfTeacherSection = added_later(
        SelfTeacherSection(), description="the model with a hint as the teacher of its own failures (not in the paper)"
    )
    hacpo: HacpoSection = added_later(
        HacpoSection(), description="learning from the rollouts of all models, as a baseline from the literature"
    )
    truncated: Literal["keep", "mask"] = added_later(
        "keep",
        description="completions that were cut at max_new_tokens. keep: they are trained on like others; mask: their "
        "loss is 0, but their rewards still count in the mean of their problem",
    )
    old_log_probs: Literal["recompute", "engine"] = added_later(
        "recompute",
        description="log-probabilities under the weights before the update, from which ratios are computed. recompute: "
        "by the trainer, in a pass before training; engine: those that the engine recorded while it sampled (needs "
        "top_p: 1). The first optimizer step is the same with both",
    )
    problems_per_step: PositiveInt = Field(4, description="problems per optimizer step")
    learning_rate: float = Field(1e-5, gt=0, le=1, description="peak learning rate of models without one of their own")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    adam_betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="betas of AdamW")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the run's optimizer steps used for warm-up")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm above which gradients are clipped")
    importance: ImportanceSection = Field(
        ImportanceSection(), description="correction of engine against trainer log-probabilities"
    )
    max_mismatch: float | None = operational(
        None,
        gt=0,
        description="a run stops if the trainer's log-probabilities of sampled tokens differ from the engine's by more "
        "than this on average (nats per token in one optimizer step); null: 0.1, with dtype float32 0.02, with qlora "
        "0.5, and -log(top_p) more",
    )
    gradient_checkpointing: bool | None = operational(
        None,
        description="compute activations again in the backward pass: true for all layers, false for none; null: as "
        "many layers as the memory of the GPU requires (none on a CPU)",
    )
    compile: bool | None = operational(
        None,
        description="compile the layers of the model on a GPU, which takes a minute or two; null: if updates are long "
        "enough to benefit",
    )
    micro_batch_tokens: PositiveInt = operational(
        4096, description="most tokens of one forward pass; a prefix that completions share counts once"
    )
    checkpoint_min: float = operational(
        15, ge=0, description="minutes between checkpoints of a running update; 0: only if it is asked to stop"
    )

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
        loss: Loss | None = info.data.get("loss")  # None: unknown, reported already
        if value is not None and loss is not None and info.field_name not in LOSS_OPTIONS[loss]:
            options = ", ".join(LOSS_OPTIONS[loss])
            raise ValueError(f"loss {loss} has no such option; leave it out, or choose one of {options}")
        return null_means_default(value)

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
            raise ValueError("has no effect while kl_weight is 0; set kl_weight, or leave this out")
        return kl_times_ratio
