"""Checks of a dry run: model folders, context lengths and numbers of GPUs.

In: a sweep and its problems. Out: `Check`s, each with what is wrong and what to do. Nothing is
downloaded, converted or created, and neither torch nor transformers is loaded. What a start checks
besides, with transformers, is in `prepare.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.config.run import ModelSection, RunConfig
from core_hpc.local.executor import LocalLimits
from core_hpc.local.gpus import check_gpus
from core_hpc.models.resolve import ModelPlace, context_of_folder, place_of_model, resolve_embedder
from core_hpc.problems.splits import Splits
from core_hpc.runs.sweep import Sweep
from core_hpc.store.phases import COLD, EVALUATE

LONGEST_CHECKED = 200
"""Questions of a split whose tokens are counted: the longest ones, by characters."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that a user should know before a start.

    Attributes:
        what: what is wrong, where, and what to do.
        refuses: whether a start would end with this message.
    """

    what: str
    refuses: bool


def check_sweep(sweep: Sweep, splits: Mapping[str, Splits]) -> tuple[Check, ...]:
    """All findings about a sweep, each once.

    Args:
        sweep: the sweep.
        splits: the problems of its runs, as far as they are on this machine.
    """
    found = [*_gpus(sweep)]
    for plan in sweep.runs:
        found += _models(plan.config, splits.get(plan.run_id))
    return tuple(dict.fromkeys(found))


def _models(config: RunConfig, splits: Splits | None) -> Iterator[Check]:
    try:
        resolve_embedder(config.reward.distance.embedder)
    except InputError as e:
        yield Check(what=str(e), refuses=True)
    for index, model in enumerate(config.team):
        where = f"team.{index} ({model.name}): "
        try:
            place = place_of_model(model.model, revision=model.revision, allow_pickle=model.allow_pickle)
        except InputError as e:
            yield Check(what=where + str(e), refuses=True)
            continue
        if place.missing:
            yield Check(what=f"{where}{place.missing}", refuses=False)
        if problem := _context(config, model, place, splits):
            yield Check(what=where + problem, refuses=True)


def _context(config: RunConfig, model: ModelSection, place: ModelPlace, splits: Splits | None) -> str:
    """What is wrong with the context length of a model, or "".

    The tokens that are counted are a lower bound: the longest question and the instruction, without
    the chat template and worked examples.
    """
    has = place.context_tokens
    if has is None and place.folder is not None:
        has = context_of_folder(place.folder)
    limit = min((n for n in (has, model.max_context_tokens) if n is not None), default=None)
    if limit is None:
        return ""
    protocol = config.protocol
    new, new_evaluation = (config.sampling_of(model, phase).max_new_tokens for phase in (COLD, EVALUATE))
    hint = protocol.hint_tokens if protocol.rescue_samples else 0
    train = evaluation = 0
    if place.folder is not None and splits is not None:
        questions = splits.train["question"].to_list(), splits.evaluation["question"].to_list()
        train, evaluation = (_longest(place.folder, q, config.problems.instruction) for q in questions)
    needed = max(train + hint + new, evaluation + new_evaluation)
    if needed <= limit:
        return ""
    return (
        f"needs at least {needed} tokens of context (longest question {train} + hint {hint} + new {new}; evaluation "
        f"{evaluation} + {new_evaluation}), but {'the model' if limit == has else 'max_context_tokens'} has {limit}; "
        "lower max_new_tokens or protocol.hint_tokens"
    )


def _longest(folder: Path, questions: list[str], instruction: str) -> int:
    """Tokens of the longest question with the instruction; 0 if the tokenizer is not in the usual file."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return 0
    with contextlib.suppress(Exception):  # the library raises plain Exceptions; a start reports what is wrong
        tokenizer = Tokenizer.from_file(str(path))
        texts = sorted(questions, key=len)[-LONGEST_CHECKED:]
        tokens = tokenizer.encode_batch([f"{text}\n\n{instruction}" for text in texts], add_special_tokens=False)
        return max((len(t.ids) for t in tokens), default=0)
    return 0


def _gpus(sweep: Sweep) -> Iterator[Check]:
    """Whether the GPUs that jobs ask for, or this machine has, fit what uses them."""
    cluster, slurm = sweep.cluster, sweep.cluster.slurm
    try:
        if cluster.driver == "local":
            LocalLimits.of(cluster, sweep.largest_team)
        elif cluster.driver == "resident":
            check_gpus(cluster, sweep.largest_team, slurm.num_gpus("resident"))
    except InputError as e:
        yield Check(what=str(e), refuses=True)
    if cluster.driver != "arrays":
        return
    engines, update = slurm.num_gpus("generate"), slurm.update.nodes * slurm.num_gpus("update")
    ranks = cluster.update_ranks
    if engines > 1:
        yield Check(
            what=f"slurm.generate asks for {engines} GPUs, but an engine uses one; the others are idle. Set "
            "slurm.generate.gpus_per_node to 1",
            refuses=False,
        )
    if update and update != ranks:
        what = "each rank needs one of its own" if update < ranks else "the others are idle"
        yield Check(
            what=f"an update has {ranks} rank(s) (cluster.update_ranks) and {update} GPU(s) (slurm.update): {what}. "
            "Set both to the same number",
            refuses=False,
        )
    if not engines and not update:
        yield Check(
            what="the jobs ask for no GPU (slurm.gpus_per_node or slurm.gres), so engines and updates use CPU cores",
            refuses=False,
        )
