"""Checks of a whole run configuration: fields of different sections that must fit together.

In: a `RunConfig` whose fields are valid one by one. Out: nothing, or a ValueError that names the
fields and what to write. `RunConfig` calls the functions of `CHECKS` in their order and reports the
first mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core_hpc.config.problems import answer_kind_of, check_kind
from core_hpc.store.phases import COLD

if TYPE_CHECKING:
    from core_hpc.config.run import RunConfig

MAX_TASKS = 1_000_000
"""Tasks of a run. A controller of more would need minutes for each look at its run."""


def has_hinted_rescues(config: RunConfig) -> bool:
    """Whether some rescue completions may see a hint of a peer."""
    protocol = config.protocol
    return len(config.team) > 1 and protocol.rescue_samples > 0 and protocol.hint_probability > 0


def _number_of_tasks(config: RunConfig) -> None:
    num_parts, num_models = config.num_parts, len(config.team)
    # Cold and rescue per model and part, hint and score per part, update per model.
    num_tasks = config.iterations * (num_parts * (2 * num_models + 2) + num_models)
    if num_tasks > MAX_TASKS:
        raise ValueError(
            f"iterations: {config.iterations:,} iterations of {num_parts:,} part(s) and {num_models} model(s) are "
            f"{num_tasks:,} tasks, more than the limit of {MAX_TASKS:,} per run; lower iterations, or raise "
            "protocol.problems_per_part"
        )


def _something_to_do(config: RunConfig) -> None:
    if config.iterations == 0 and not config.evaluation.before:
        raise ValueError(
            "iterations: 0 only evaluates, but evaluation.before is false, so nothing is left to do; leave before out"
        )


def _problems_to_train_on(config: RunConfig) -> None:
    if config.iterations > 0 and config.problems.train.source == "none":
        raise ValueError(
            "problems.train: its source is none, which is for a run with iterations: 0; set a source to train on"
        )


def _instructions_of_sets(config: RunConfig) -> None:
    main = answer_kind_of(config.problems.evaluation)
    for index, own in enumerate(config.evaluation.sets):
        kind = answer_kind_of(own.problems)
        if own.instruction is None and kind != main:
            raise ValueError(
                f"evaluation.sets.{index}.instruction: the answers of {own.name} are of the kind {kind}, and those of "
                f"problems.evaluation of the kind {main}; write an instruction for this set"
            )


def _hints_need_a_peer(config: RunConfig) -> None:
    if config.protocol.rescue_samples and len(config.team) == 1 and config.protocol.hint_probability == 1:
        raise ValueError(
            "a team of one model has no peer that gives hints; set protocol.rescue_samples to 0, or add a model"
        )


def _alone_without_rescues(config: RunConfig) -> None:
    if config.update.group == "model" and config.protocol.rescue_samples:
        raise ValueError(
            "update.group: model trains each model alone, but the rescue phase depends on peers; "
            "set protocol.rescue_samples to 0, and protocol.cold_samples to K + K' for the same budget"
        )


def _baseline_of_a_team(config: RunConfig) -> None:
    if config.update.baseline != "team" and config.update.group == "model":
        raise ValueError(
            "update.baseline has no effect with update.group: model, where rewards and advantages know only one "
            "model; leave baseline out, or set group to team"
        )


def _rescues_to_compare(config: RunConfig) -> None:
    if config.update.baseline == "model_phase" and config.protocol.rescue_samples == 1:
        raise ValueError(
            "update.baseline: model_phase compares a rescue completion with the other ones of its model and problem, "
            "but protocol.rescue_samples is 1, so all their advantages are 0; set rescue_samples to 2 or more, or "
            "choose another baseline"
        )


def _rescues_to_share(config: RunConfig) -> None:
    if config.update.share_rescues and not has_hinted_rescues(config):
        raise ValueError(
            "update.share_rescues: this run has no rescues by hints to share (one model, no rescue samples, or no "
            "hints); leave it out"
        )


def _batches_in_one_part(config: RunConfig) -> None:
    protocol = config.protocol
    if config.update.baseline == "model_batch" and protocol.problems_per_part < protocol.problems_per_iteration:
        raise ValueError(
            "update.baseline: model_batch compares all problems of an optimizer step, which may be in different "
            f"parts; set protocol.problems_per_part to {protocol.problems_per_iteration} or more"
        )


def _rescues_on_the_plain_prompt(config: RunConfig) -> None:
    update = config.update
    if update.rescue_context == "hinted":
        if update.rescue_correction != "none" or update.rescue_others != "hinted":
            raise ValueError(
                "update.rescue_correction and update.rescue_others have no effect with rescue_context: hinted; "
                "leave them out, or set rescue_context to plain"
            )
    elif not has_hinted_rescues(config):
        raise ValueError("update.rescue_context: plain has no effect without hinted rescue completions; leave it out")


def _hints_to_rely_on(config: RunConfig) -> None:
    if config.update.reliance_scale is not None and not has_hinted_rescues(config):
        raise ValueError("update.reliance_scale has no effect without hinted rescue completions; leave it out")


def _hacpo_is_a_method_of_its_own(config: RunConfig) -> None:
    update = config.update
    if not update.hacpo.enabled:
        return
    if update.loss != "gspo" or len(config.team) == 1 or config.protocol.rescue_samples:
        raise ValueError(
            "update.hacpo is defined for a team with update.loss: gspo and without a rescue phase; set the loss, "
            "and protocol.rescue_samples to 0"
        )
    own = update.advantage_function is not None or update.loss_function is not None
    scaled = update.advantage_scale == "std"
    if update.group != "team" or update.baseline != "team" or update.team_pass.is_on or own or not scaled:
        raise ValueError(
            "update.hacpo has advantages of its own, and a gain; leave update.group, update.baseline, "
            "update.advantage_scale, update.team_pass, update.advantage_function and update.loss_function out"
        )


def _ratios_of_peers_in_every_step(config: RunConfig) -> None:
    hacpo, steps = config.update.hacpo, config.steps_per_iteration
    if hacpo.enabled and (steps - 1) * hacpo.clip_step >= hacpo.clip_delta:
        # The authors make four steps of 0.025, so that their bound ends at 0.875.
        suggested = 3 * 0.025 / (steps - 1)
        raise ValueError(
            f"update.hacpo.clip_step: {hacpo.clip_step:g} closes the range of ratios of a peer's completion, "
            f"[1 - clip_delta + step * clip_step, 1], before the last of the {steps} optimizer steps of an iteration; "
            f"from then on peers teach nothing. Set it to {suggested:.2g}, or make fewer steps"
        )


def _a_teacher_needs_hints(config: RunConfig) -> None:
    if config.update.self_teacher.is_on and (not config.protocol.rescue_samples or len(config.team) == 1):
        raise ValueError(
            "update.self_teacher uses the hints of peers, which exist only in a team with a rescue phase; set "
            "protocol.rescue_samples, or leave it out"
        )


def _samples_for_pass_at_k(config: RunConfig) -> None:
    k, samples = config.update.team_pass.k, config.protocol.cold_samples
    if config.update.team_pass.is_on and samples <= k:
        raise ValueError(
            f"update.team_pass.k is {k}, but protocol.cold_samples is {samples}: a completion is compared with k "
            f"others of its model; set cold_samples to {k + 1} or more, or lower k"
        )


def _lessons_need_a_peer(config: RunConfig) -> None:
    if config.update.teach.is_on and len(config.team) == 1:
        raise ValueError("update.teach: a team of one model has no peer to learn from; leave it out, or add a model")


def _engines_that_split(config: RunConfig) -> None:
    unable = [m.name for m in config.team if m.engine == "transformers"]
    if config.cluster.engine_gpus > 1 and unable:
        raise ValueError(
            f"cluster.engine_gpus: only vllm can split a model, but {', '.join(unable)} has engine: transformers; set "
            "engine: vllm, or leave engine_gpus out"
        )


def _base_weights_to_divide(config: RunConfig) -> None:
    if config.cluster.zero_stage == 2:
        return
    unable = [m.name for m in config.team if m.tuning != "lora" or m.warmup is not None]
    if unable:
        raise ValueError(
            f"cluster.zero_stage: 3 divides only the frozen weights under an adapter, but {', '.join(unable)} has "
            "another tuning or a warm-up; set tuning: lora without a warm-up, or leave zero_stage out"
        )
    if config.update.compile:
        raise ValueError("update.compile: layers with cluster.zero_stage: 3 cannot be compiled; leave one of them out")


def _primary_can_be_computed(config: RunConfig) -> None:
    primary = config.analysis.primary
    mistake = primary.mistake([m.name for m in config.team], config.evaluation.samples) if primary else ""
    if mistake:
        raise ValueError(f"analysis.primary.{mistake}")


def _engine_log_probs_to_use(config: RunConfig) -> None:
    if config.update.old_log_probs != "engine":
        return
    for i, model in enumerate(config.team):
        if model.engine == "fake":
            raise ValueError(
                f"update.old_log_probs: engine, but team[{i}].engine is fake, whose log-probabilities are made up; "
                "leave old_log_probs out"
            )
        top_p = config.sampling_of(model, COLD).top_p
        if top_p < 1:
            raise ValueError(
                f"update.old_log_probs: engine, but {model.name} samples with top_p {top_p:g}: the engine's "
                "log-probabilities are those of the truncated distribution; set protocol.sampling.top_p to 1.0, or "
                "leave old_log_probs out"
            )


def _stale_samples_are_corrected(config: RunConfig) -> None:
    if config.protocol.staleness == 0:
        return
    if config.update.old_log_probs == "engine":
        raise ValueError(
            "update.old_log_probs: engine, but with protocol.staleness: 1 the engine samples with older weights than "
            "those before the update; leave old_log_probs out"
        )
    if config.update.importance.kind == "none":
        raise ValueError(
            "update.importance.kind: none, but with protocol.staleness: 1 the importance weights correct the "
            "difference from the older weights that sampled; choose another kind, or leave kind out"
        )


def _skills_of_the_team(config: RunConfig) -> None:
    unknown = sorted(set(config.analysis.skills) - {m.name for m in config.team})
    if unknown:
        team = ", ".join(m.name for m in config.team)
        raise ValueError(f"analysis.skills: {', '.join(unknown)} is not in the team ({team})")


def _known_kinds(config: RunConfig) -> None:
    """Kinds of answers outside the section `problems`, which checks its own sources."""
    warmups = {f"team.{i}.warmup": model.warmup for i, model in enumerate(config.team)}
    sources = [
        *((f"evaluation.sets.{i}.problems", own.problems) for i, own in enumerate(config.evaluation.sets)),
        *((where, source) for where, w in warmups.items() if w is not None for source in w.sources),
    ]
    for where, source in sources:
        try:
            check_kind(source, config.problems.answer_kinds)
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from e


CHECKS: tuple[Callable[[RunConfig], None], ...] = (
    _number_of_tasks,
    _something_to_do,
    _problems_to_train_on,
    _known_kinds,
    _instructions_of_sets,
    _hints_need_a_peer,
    _alone_without_rescues,
    _baseline_of_a_team,
    _rescues_to_compare,
    _rescues_to_share,
    _batches_in_one_part,
    _rescues_on_the_plain_prompt,
    _hints_to_rely_on,
    _hacpo_is_a_method_of_its_own,
    _ratios_of_peers_in_every_step,
    _a_teacher_needs_hints,
    _samples_for_pass_at_k,
    _lessons_need_a_peer,
    _engines_that_split,
    _base_weights_to_divide,
    _primary_can_be_computed,
    _engine_log_probs_to_use,
    _stale_samples_are_corrected,
    _skills_of_the_team,
)
