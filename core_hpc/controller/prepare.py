"""Preparation of runs in a process of its own: find the models, check them against the configuration, measure prompts.

In (standard input): {"configs": [...]}. Out (the file named on the command line): {"facts": [{model: facts}]} or
{"error": text}. It loads transformers and torch, which the launcher must not; it creates nothing in run folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.config.run import ModelSection, RunConfig
from core_hpc.engines import has_gpu
from core_hpc.models.prompts import PromptBuilder
from core_hpc.models.quantization import no_gpu, require_package
from core_hpc.models.resolve import (
    ResolvedModel,
    adapter_targets,
    load_tokenizer,
    num_weights,
    resolve_embedder,
    resolve_model,
)
from core_hpc.problems.splits import Splits, check_counts, make_splits, worked_examples
from core_hpc.runs import folder as runfolders
from core_hpc.runs.folder import ModelFacts
from core_hpc.runs.sweep import RunPlan, Sweep
from core_hpc.store.schema import COLD, EVALUATE

CONTEXT_STEP_TOKENS = 64
HINT_MARGIN_TOKENS = 4  # tokens at the seams of question, hint and instruction may merge differently


def prepare(config: RunConfig) -> dict[str, ModelFacts]:
    """Facts about every model of a run; InputError lists everything that does not fit."""
    splits = make_splits(config.problems)
    resolve_embedder(config.reward.distance.embedder)
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
    if model.tuning == "qlora":
        _check_four_bit(config)
    if model.lora is not None:
        missing = adapter_targets(resolved.folder, model.lora.targets, trust_remote_code=model.trust_remote_code)
        if missing:
            raise InputError(f"lora.targets: {', '.join(missing)} not found among the linear layers of {model.model}")
    style = model.prompt_style
    if style == "auto":
        style = "chat" if resolved.has_chat_template else "plain"
    context_tokens = _context_tokens(config, model, resolved, style, splits)
    return ModelFacts(resolved.fingerprint, context_tokens, style, num_weights(resolved.folder))


def _check_four_bit(config: RunConfig) -> None:
    """What can be known of tuning: qlora before a task starts: jobs get their GPUs elsewhere, but run the same Python."""
    if not config.cluster.uses_slurm and not has_gpu():
        raise no_gpu()
    require_package()


def _context_tokens(config: RunConfig, model: ModelSection, resolved: ResolvedModel, style: str, splits: Splits) -> int:
    """Tokens that the longest prompt, a full hint and the new tokens need; InputError when the model has fewer."""
    tokenizer = load_tokenizer(resolved.folder, trust_remote_code=model.trust_remote_code)
    builder = PromptBuilder(tokenizer, style, config.problems.instruction, worked_examples(splits.examples))
    protocol = config.protocol
    new, new_evaluation = (config.sampling_of(model, phase).max_new_tokens for phase in (COLD, EVALUATE))
    hint = protocol.hint_tokens + HINT_MARGIN_TOKENS if protocol.rescue_samples else 0
    longest_train = max(len(builder.build(q, "" if hint else None)) for q in splits.train["question"])
    longest_evaluation = max(len(builder.build(q)) for q in splits.evaluation["question"])
    needed = max(longest_train + hint + new, longest_evaluation + new_evaluation)
    limit = min(model.max_context_tokens or resolved.max_context_tokens, resolved.max_context_tokens)
    if needed > limit:
        raise InputError(
            f"needs {needed} tokens of context (longest prompt {longest_train} + hint {hint} + new {new}; "
            f"evaluation {longest_evaluation} + {new_evaluation}), it has {limit}; "
            "lower max_new_tokens or protocol.hint_tokens"
        )
    # A round number, so that runs of a sweep with other problems can share a warm engine.
    return model.max_context_tokens or min(limit, -(-needed // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS)


def main(arguments: list[str]) -> int:
    """Read configurations from standard input and write the facts as JSON to the named file."""
    answer: dict[str, Any]
    try:
        configs = [RunConfig.model_validate(c) for c in json.load(sys.stdin)["configs"]]
        answer = {"facts": [{name: asdict(f) for name, f in prepare(c).items()} for c in configs]}
    except CoreHpcError as e:
        answer = {"error": str(e)}
    Path(arguments[0]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


def splits_of(plan: RunPlan) -> Splits:
    """The problems of a run; errors name the file and row."""
    splits = make_splits(plan.config.problems)
    check_counts(plan.config, splits)
    return splits


Prepared = dict[str, tuple[Splits, dict[str, ModelFacts]]]


@dataclass(frozen=True)
class Start:
    """One start by the user; `start_id` is handed on from a detached controller to its successor."""

    start_id: str
    by_user: bool = True
    verify: bool = False

    @classmethod
    def new(cls, *, verify: bool) -> Start:
        return cls(uuid.uuid4().hex[:8], verify=verify)


def _prepare_new(sweep: Sweep, console: Console) -> Prepared:
    """Splits and model facts of the runs whose folder does not exist yet, by run id."""
    new = [plan for plan in sweep.runs if not runfolders.exists(plan, sweep.folder)]
    splits = [splits_of(plan) for plan in new]
    if not new:
        return {}
    console.print("preparing models and problems (the first time converts weights; a minute or two) ...")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "facts.json")
        request = json.dumps({"configs": [plan.config.model_dump(mode="json") for plan in new]})
        done = subprocess.run(
            [sys.executable, "-m", "core_hpc.controller.prepare", str(answer)],
            input=request.encode(),
            capture_output=True,
            check=False,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        if not answer.exists():
            words = done.stderr.decode(errors="replace")[-4000:]
            raise CoreHpcError(f"preparation ended with status {done.returncode}; its last words:\n{words}")
        facts = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in facts:
        raise InputError(f"{sweep.source}: nothing was created\n{facts['error']}")
    found = [{name: ModelFacts(**f) for name, f in run.items()} for run in facts["facts"]]
    return {plan.run_id: (s, f) for plan, s, f in zip(new, splits, found, strict=True)}
