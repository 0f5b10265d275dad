"""Checks of a dry run: output folder, model folders, context lengths, numbers of GPUs, the tracker, and SLURM's answer.

In: a sweep and its problems. Out: `Check`s, each with what is wrong and what to do. Nothing is
downloaded, converted or created, and neither torch nor transformers is loaded. What a start checks
besides, with transformers, is in `prepare.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.model import ModelSection
from core_hpc.config.problems import NoProblems
from core_hpc.config.run import RunConfig
from core_hpc.local.executor import LocalLimits
from core_hpc.local.gpus import check_gpus
from core_hpc.models.embedders import missing_embedder
from core_hpc.models.folder import context_of_folder, longer_context
from core_hpc.models.resolve import ModelPlace, place_of_model
from core_hpc.problems.sets import evaluation_tokens
from core_hpc.problems.splits import Splits
from core_hpc.runs import conflicts
from core_hpc.runs.inputs import check_inputs
from core_hpc.runs.sweep import Sweep
from core_hpc.slurm.acceptance import NoClusterError, check_accepted
from core_hpc.slurm.commands import Slurm, SlurmUnavailableError, slurm_installed
from core_hpc.store.phases import COLD
from core_hpc.store.schema import PROBLEMS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
    found = [*_folder(sweep), *_gpus(sweep), *_embedders(sweep), *_tracking(sweep)]
    found += _passes(partial(check_inputs, sweep, splits, {}))
    lengths = _Lengths()
    for plan in sweep.runs:
        found += [*_rescues(plan.config), *_equal_samples(plan.config)]
        found += _models(plan.config, splits.get(plan.run_id), lengths)
    return tuple(dict.fromkeys(found))


def slurm_checks(cluster: ClusterSection) -> tuple[Check, ...]:
    """What SLURM answers about the jobs of a sweep; nothing on a machine that belongs to no cluster."""
    if not (cluster.uses_slurm and slurm_installed()):
        return ()
    try:
        return tuple(Check(what=message, refuses=False) for message in check_accepted(cluster, Slurm()))
    except NoClusterError:
        return ()
    except InputError as e:
        return (Check(what=str(e), refuses=True),)
    except SlurmUnavailableError as e:
        return (Check(what=str(e), refuses=False),)


def _passes(check: Callable[[], object]) -> Iterator[Check]:
    """Nothing if a check of the start passes, else its message."""
    try:
        check()
    except CoreHpcError as e:
        yield Check(what=str(e), refuses=True)


def _folder(sweep: Sweep) -> Iterator[Check]:
    for check in conflicts.folder_checks(sweep):
        yield from _passes(check)


def _trains(config: RunConfig) -> bool:
    return not isinstance(config.problems.train, NoProblems)


def _embedders(sweep: Sweep) -> Iterator[Check]:
    for embedder in dict.fromkeys(p.config.reward.distance.embedder for p in sweep.runs if _trains(p.config)):
        try:
            missing = missing_embedder(embedder)
        except InputError as e:
            yield Check(what=str(e), refuses=True)
            continue
        if missing:
            yield Check(what=missing, refuses=False)


def _tracking(sweep: Sweep) -> Iterator[Check]:
    sections = dict.fromkeys(p.config.tracking for p in sweep.runs if p.config.tracking.wandb is not None)
    if sections:
        from core_hpc.controller.wandb_copy import check_tracking  # loads TensorBoard's tracker, too
    for section in sections:
        yield from _passes(partial(check_tracking, section))


def _rescues(config: RunConfig) -> Iterator[Check]:
    protocol = config.protocol
    if _trains(config) and len(config.team) == 1 and protocol.rescue_samples and not protocol.even_budget:
        yield Check(
            what="a team of one model has no peer that gives hints, so its rescue phase samples nothing; set "
            "protocol.rescue_samples to 0, or add a model",
            refuses=False,
        )


def _equal_samples(config: RunConfig) -> Iterator[Check]:
    samples = config.protocol.cold_samples
    for model in config.team:
        if _trains(config) and samples > 1 and config.sampling_of(model, COLD).temperature == 0:
            yield Check(
                what=f"{model.name} samples at temperature 0, so its {samples} completions of a problem are equal; "
                "set protocol.sampling.temperature above 0",
                refuses=False,
            )


def _models(config: RunConfig, splits: Splits | None, lengths: _Lengths) -> Iterator[Check]:
    for index, model in enumerate(config.team):
        where = f"team.{index} ({model.name}): "
        try:
            place = place_of_model(model.model, revision=model.revision, allow_pickle=model.allow_pickle)
        except InputError as e:
            yield Check(what=where + str(e), refuses=True)
            continue
        if place.missing:
            yield Check(what=f"{where}{place.missing}", refuses=False)
        if problem := _context(config, model, place, splits, lengths):
            yield Check(what=where + problem, refuses=True)


def _context(
    config: RunConfig, model: ModelSection, place: ModelPlace, splits: Splits | None, lengths: _Lengths
) -> str:
    """What is wrong with the context length of a model, or "".

    The tokens that are counted are a lower bound: the longest question and the instruction, without
    the chat template and worked examples.
    """
    has = place.context_tokens
    if has is None and place.folder is not None:
        has = context_of_folder(place.folder)
    if mistake := longer_context(model.max_context_tokens, has):
        return mistake
    limit = min((n for n in (has, model.max_context_tokens) if n is not None), default=None)
    if limit is None:
        return ""
    protocol = config.protocol
    new = config.sampling_of(model, COLD).max_new_tokens
    hint = protocol.hint_tokens if protocol.rescue_samples else 0
    train = 0
    if place.folder is not None and splits is not None:
        train = lengths.longest(place.folder, splits.train["question"], config.problems.instruction)

    def longest_of_set(own: RunConfig, questions: pl.Series) -> int:
        return lengths.longest(place.folder, questions, own.problems.instruction) if place.folder is not None else 0

    problems = splits.evaluation if splits is not None else pl.DataFrame(schema=PROBLEMS.schema)
    evaluation, new_evaluation = evaluation_tokens(config, model.name, problems, longest_of_set)
    needed = evaluation + new_evaluation
    if _trains(config):
        needed = max(needed, train + hint + new)
    if needed <= limit:
        return ""
    training = f"longest question {train} + hint {hint} + new {new}; " if _trains(config) else ""
    return (
        f"needs at least {needed} tokens of context ({training}evaluation {evaluation} + {new_evaluation}), but "
        f"{'the model' if limit == has else 'max_context_tokens'} has {limit}; "
        f"lower max_new_tokens{' or protocol.hint_tokens' if _trains(config) else ''}"
    )


class _Lengths:
    """Counts the tokens of questions. What several runs of a sweep share is counted once."""

    def __init__(self) -> None:
        self._tokenizer = cache(load_fast_tokenizer)
        self._count = cache(self._count_tokens)

    def longest(self, folder: Path, questions: Iterable[str], instruction: str) -> int:
        """Tokens of the longest question with the instruction; 0 if the tokenizer is not in the usual file."""
        return self._count(folder, tuple(sorted(questions, key=len)[-LONGEST_CHECKED:]), instruction)

    def _count_tokens(self, folder: Path, questions: tuple[str, ...], instruction: str) -> int:
        with contextlib.suppress(Exception):  # the library raises plain Exceptions; a start reports what is wrong
            if (tokenizer := self._tokenizer(folder)) is not None:
                texts = [f"{question}\n\n{instruction}" for question in questions]
                tokens = tokenizer.encode_batch(texts, add_special_tokens=False)
                return max((len(t.ids) for t in tokens), default=0)
        return 0


def load_fast_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder, without transformers; None if it is not in the usual file."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


def _gpus(sweep: Sweep) -> Iterator[Check]:
    """Whether the GPUs that jobs ask for, or this machine has, fit what uses them."""
    cluster, slurm = sweep.cluster, sweep.cluster.slurm
    if cluster.driver == "local":
        yield from _passes(lambda: LocalLimits.of(cluster, sweep.largest_team))
    elif cluster.driver == "resident":
        yield from _passes(lambda: check_gpus(cluster, sweep.largest_team, slurm.num_gpus("resident")))
    if cluster.driver != "arrays":
        return
    engines, update = slurm.num_gpus("generate"), slurm.update.nodes * slurm.num_gpus("update")
    ranks = cluster.update_ranks
    if engines > cluster.engine_gpus:
        uses = "one" if cluster.engine_gpus == 1 else f"{cluster.engine_gpus} (cluster.engine_gpus)"
        yield Check(
            what=f"slurm.generate asks for {engines} GPUs, but an engine uses {uses}; the others are idle. Set "
            f"slurm.generate.gpus_per_node to {cluster.engine_gpus}",
            refuses=False,
        )
    if update > ranks:
        yield Check(
            what=f"an update has {ranks} rank(s) (cluster.update_ranks) and {update} GPU(s) (slurm.update): the others "
            "are idle. Set both to the same number",
            refuses=False,
        )
    if not engines and not update:
        yield Check(
            what="the jobs ask for no GPU (slurm.gpus_per_node or slurm.gres), so engines and updates use CPU cores",
            refuses=False,
        )
