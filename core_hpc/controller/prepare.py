"""Preparation of new runs in a separate process: problems, models, and checks of both.

In: configurations and files of the user on standard input, as {"configs": [...], "sources": [...]}.
Out: files in the folder that is named on the command line: the problems as Parquet, once for all runs
that share them, and `facts.json` with {"facts": [{model: facts}], "splits": [number]}, both by run, or
{"error": text}. The process loads transformers and
torch, which the launcher must not load. It creates nothing in run folders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.model import ModelSection
from core_hpc.config.problems import NoProblems
from core_hpc.config.run import RunConfig
from core_hpc.engines import has_gpu
from core_hpc.extensions.sources import Source, remember
from core_hpc.models.adapters import adapter_digest, check_adapter, find_adapter
from core_hpc.models.embedders import resolve_embedder
from core_hpc.models.folder import adapter_targets, end_token_ids, load_tokenizer, longer_context, num_weights
from core_hpc.models.loading import (
    check_rope,
    check_split,
    check_vllm_dtype,
    check_vllm_packages,
    load_config,
    original_context,
)
from core_hpc.models.prompts import PromptBuilder, check_chat_settings, check_ends, prompt_builder, stop_strings_of
from core_hpc.models.quantization import no_gpu, require_packages
from core_hpc.models.resolve import ResolvedModel, resolve_model
from core_hpc.phases.own_functions import try_functions
from core_hpc.phases.warmup_examples import check_examples
from core_hpc.problems.sets import all_problems, evaluation_tokens
from core_hpc.problems.splits import SPLITS, Splits, check_counts, warmup_split, worked_examples
from core_hpc.runs.folder import ModelFacts
from core_hpc.runs.sweep import RunPlan
from core_hpc.store import parquet
from core_hpc.store.schema import COLD

FACTS_FILE = "facts.json"
SHOWN_CHARACTERS = 500
"""Of an error of a library."""
CONTEXT_STEP_TOKENS = 64
HINT_MARGIN_TOKENS = 4
"""Tokens may merge differently where question, hint and instruction meet."""


def splits_of(plan: RunPlan) -> Splits:
    """Make the problems of a run.

    Raises:
        InputError: a source is missing or wrong, or has too few problems. It names file and row.
    """
    return _checked_splits(plan.config)


def _checked_splits(config: RunConfig) -> Splits:
    splits = all_problems(config)
    check_counts(config, splits)
    return splits


_NOT_FOR_FACTS = {"name", "output", "seed", "iterations", "reward", "update", "analysis", "tracking"}
"""Sections in which runs may differ whose models have the same facts."""


def prepare(
    config: RunConfig, splits: Splits | None = None, known: dict[str, dict[str, ModelFacts]] | None = None
) -> dict[str, ModelFacts]:
    """Find the facts about every model of a run, by name.

    Args:
        splits: the problems, if they exist already.
        known: facts of other runs, to which those of this run are added. Runs that differ only in
            seed, reward and update share them, because encoding all questions takes seconds.

    Raises:
        InputError: some models do not fit. It lists all mistakes.
    """
    splits = splits if splits is not None else all_problems(config)
    if not isinstance(config.problems.train, NoProblems):
        resolve_embedder(config.reward.distance.embedder)
        try_functions(config, splits.train)
    if config.update.loss_function is not None:
        from core_hpc.training.own_loss import try_loss

        try_loss(config.update)
    known, key = {} if known is None else known, config.model_dump_json(exclude=_NOT_FOR_FACTS)
    if key not in known:
        known[key] = _facts_of_team(config, splits)
    return known[key]


def _facts_of_team(config: RunConfig, splits: Splits) -> dict[str, ModelFacts]:
    facts, mistakes = {}, []
    for index, model in enumerate(config.team):
        try:
            facts[model.name] = _model_facts(config, model, splits)
        except InputError as e:
            mistakes.append(f"team.{index} ({model.name}): {e}")
    if mistakes:
        raise InputError("\n".join(mistakes))
    return facts


def _model_facts(config: RunConfig, model: ModelSection, splits: Splits) -> ModelFacts:
    resolved = resolve_model(
        model.model, revision=model.revision, trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle
    )
    if model.prompt_style == "chat" and not resolved.has_chat_template:
        raise InputError("prompt_style is chat, but its tokenizer has no chat template; write prompt_style: plain")
    with _refused(f"model {resolved.folder}: transformers cannot read its config.json"):
        loaded = load_config(resolved.folder, trust_remote_code=model.trust_remote_code)
    check_rope(loaded)
    if model.engine == "vllm":
        check_vllm_packages(loaded)
        check_split(loaded, config.cluster.engine_gpus)
        if _engines_have_gpus(config.cluster):
            check_vllm_dtype(model.dtype, has_adapter=model.lora is not None)
    if model.tuning == "qlora":
        _check_four_bit(config, model)
    if model.lora is not None:
        missing = adapter_targets(resolved.folder, model.lora.targets, trust_remote_code=model.trust_remote_code)
        if missing:
            raise InputError(f"lora.targets: {', '.join(missing)} not found among the linear layers of {model.model}")
    style = model.prompt_style
    if style == "auto":
        style = "chat" if resolved.has_chat_template else "plain"
    with _refused(f"model {resolved.folder}: its tokenizer cannot be loaded"):
        tokenizer = load_tokenizer(resolved.folder, trust_remote_code=model.trust_remote_code)
    with _refused(f"model {resolved.folder}: its generation_config.json cannot be read"):
        end_ids = end_token_ids(resolved.folder, tokenizer)
    examples = worked_examples(splits.examples)
    builder = prompt_builder(config, model, tokenizer, style=style, examples=examples, end_ids=end_ids)
    context_tokens = _context_tokens(config, model, resolved, builder, splits)
    adapter = _adapter_digest(model, resolved) if model.adapter is not None else ""
    weights = num_weights(resolved.folder)
    return ModelFacts(
        resolved.fingerprint, context_tokens, style, weights, adapter, resolved.commit, tuple(sorted(end_ids))
    )


@contextmanager
def _refused(message: str) -> Iterator[None]:
    """Turn an error of a library about a file of the user into an InputError; templates and tokenizers have any class.

    Args:
        message: what cannot be done. The error of the library follows.
    """
    try:
        yield
    except (CoreHpcError, MemoryError):
        raise
    except Exception as e:
        raise InputError(f"{message} ({type(e).__name__}: {str(e)[:SHOWN_CHARACTERS]})") from e


def _adapter_digest(model: ModelSection, resolved: ResolvedModel) -> str:
    """Digest of the adapter with which a model begins, after a check that it fits the model.

    Raises:
        InputError: it does not fit, or there is none.
    """
    assert model.adapter is not None
    assert model.lora is not None
    source = find_adapter(model.adapter, name=model.name)
    check_adapter(source, model.lora, resolved.folder, trust_remote_code=model.trust_remote_code)
    return adapter_digest(source.folder)


def _engines_have_gpus(cluster: ClusterSection) -> bool:
    """Whether the profile gives GPUs to the jobs of engines. With the driver local each engine checks this itself."""
    return cluster.uses_slurm and cluster.slurm.num_gpus("resident" if cluster.driver == "resident" else "generate") > 0


def _check_four_bit(config: RunConfig, model: ModelSection) -> None:
    """Check what `tuning: qlora` needs. Jobs have other GPUs than this machine, but its Python."""
    if not config.cluster.uses_slurm and not has_gpu():
        raise no_gpu()
    require_packages(vllm=model.engine == "vllm")


def _context_tokens(
    config: RunConfig, model: ModelSection, resolved: ResolvedModel, builder: PromptBuilder, splits: Splits
) -> int:
    """Tokens that the longest prompt, a full hint and the new tokens need; for longrope, enough for its long factors.

    Raises:
        InputError: the model has fewer, or an example of its warm-up needs more.
    """
    if mistake := longer_context(model.max_context_tokens, resolved.max_context_tokens):
        raise InputError(mistake)
    check_chat_settings(builder)
    stops = stop_strings_of(builder.style, model.stop_strings)
    with _refused(f"model {resolved.folder}: its chat template fails; correct it, or write prompt_style: plain"):
        if builder.style == "chat" and builder.function is None:
            builder.build("?")
        check_ends(builder, stops)
    if model.warmup is not None:
        check_examples(splits.warmups[model.name], builder, stops, limit_tokens=resolved.max_context_tokens)
    protocol = config.protocol
    new = config.sampling_of(model, COLD).max_new_tokens
    hint = protocol.hint_tokens + HINT_MARGIN_TOKENS if protocol.rescue_samples else 0
    longest_train = max((len(builder.build(q, "" if hint else None)) for q in splits.train["question"]), default=0)

    def longest_of_set(own: RunConfig, questions: pl.Series) -> int:
        of_set = prompt_builder(own, model, builder.tokenizer, style=builder.style, examples=builder.examples)
        return max(len(of_set.build(question)) for question in questions)

    longest_evaluation, new_evaluation = evaluation_tokens(config, model.name, splits.evaluation, longest_of_set)
    needed = longest_evaluation + new_evaluation
    if longest_train:
        needed = max(needed, longest_train + hint + new)
    limit = model.max_context_tokens or resolved.max_context_tokens
    if needed > limit:
        raise InputError(
            f"needs {needed} tokens of context (longest prompt {longest_train} + hint {hint} + new {new}; "
            f"evaluation {longest_evaluation} + {new_evaluation}), but the model has {limit}; "
            "lower max_new_tokens or protocol.hint_tokens"
        )
    if model.max_context_tokens:
        return model.max_context_tokens
    # The context selects the factors of longrope. Arms with other lengths, and an evaluation of the run, need the same.
    original = original_context(load_config(resolved.folder, trust_remote_code=model.trust_remote_code))
    if original is not None:
        needed = max(needed, original + 1)
    # A round number, so that runs of a sweep with other problems can share a warm engine.
    return min(limit, -(-needed // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS)


def problems_key(config: RunConfig) -> tuple[str, ...]:
    """What decides which problems a run has, and whether they can be made: equal for most runs of a sweep."""
    warmups = [
        (model.name, [source.model_dump_json() for source in model.warmup.sources] if model.warmup else [])
        for model in config.team
    ]
    sections = (config.problems.model_dump_json(), config.evaluation.model_dump_json())
    return *sections, json.dumps(warmups), str(config.protocol.problems_per_iteration)


def _write_splits(folder: Path, number: int, splits: Splits) -> None:
    for name, frame in splits.by_name().items():
        frame.write_parquet(folder / f"{number}-{name}.parquet")


def read_splits(folder: Path, number: int) -> Splits:
    """Read the problems with this number, which the answer gives for each run."""
    start = f"{number}-{warmup_split('')}"
    warmups = {p.stem.removeprefix(start): parquet.read(p) for p in sorted(folder.glob(f"{start}*.parquet"))}
    train, evaluation, examples = (parquet.read(folder / f"{number}-{name}.parquet") for name in SPLITS)
    return Splits(train, evaluation, examples, warmups)


def main(arguments: list[str]) -> int:
    """Read configurations from standard input; write problems and facts into the named folder."""
    folder = Path(arguments[0])
    answer: dict[str, Any] = {"facts": [], "splits": []}
    try:
        request = json.load(sys.stdin)
        remember(Source(**source) for source in request["sources"])
        configs = [RunConfig.model_validate(c) for c in request["configs"]]
        distinct = {problems_key(config): config for config in configs}
        shared = {key: _checked_splits(config) for key, config in distinct.items()}
        numbers = {key: number for number, key in enumerate(shared)}
        known: dict[str, dict[str, ModelFacts]] = {}
        for config in configs:
            key = problems_key(config)
            facts = prepare(config, shared[key], known)
            answer["facts"].append({name: asdict(of_model) for name, of_model in facts.items()})
            answer["splits"].append(numbers[key])
        for key, splits in shared.items():
            _write_splits(folder, numbers[key], splits)
    except CoreHpcError as e:
        answer = {"error": str(e)}
    (folder / FACTS_FILE).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
