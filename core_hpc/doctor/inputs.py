"""Checks of what the sweep names: models, embedders and problems.

In: a `Subject`. Out: `Finding`s. Nothing is downloaded or converted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from core_hpc.common.errors import InputError
from core_hpc.controller.prepare import problems_key, splits_of
from core_hpc.doctor.checks import FAIL, OK, Finding, Subject
from core_hpc.models.cache import cache_folder
from core_hpc.models.embedders import resolve_embedder
from core_hpc.models.gguf import GGUF_MODELS, PYPI, find_parts
from core_hpc.models.resolve import resolve_model


def check_models(subject: Subject) -> Iterator[Finding]:
    """Check that every model is here, is complete, and may be loaded. HF_HUB_OFFLINE must be set."""
    if not subject.given:
        return
    for model in subject.models:
        name = model.model.removeprefix(PYPI)
        try:
            if model.model.startswith(PYPI) and name in GGUF_MODELS:
                find_parts(name)
                home = cache_folder() / "models"
                state = (
                    "converted in"
                    if any(home.glob(f"{name}-*"))
                    else "its package is installed; the launcher converts it into"
                )
                yield Finding(OK, f"model {model.model}: {state} {home}")
                continue
            found = resolve_model(
                model.model,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                allow_pickle=model.allow_pickle,
            )
        except InputError as e:
            yield Finding(FAIL, str(e))
            continue
        yield Finding(OK, f"model {model.model}: {found.folder}, context {found.max_context_tokens} tokens")
    for embedder in subject.embedders:
        yield _embedder(embedder)


def _embedder(reference: str) -> Finding:
    try:
        folder = resolve_embedder(reference)
    except InputError as e:
        return Finding(FAIL, str(e))
    return Finding(OK, f"embedder {reference}: {'made up, for tests' if isinstance(folder, str) else folder}")


def model_folders(subject: Subject) -> list[Path]:
    """Model folders that tasks will read: local folders, and folders in the hub's cache."""
    found = []
    for model in (m for m in subject.models if not m.model.startswith(PYPI)):
        with contextlib.suppress(InputError):
            found.append(resolve_model(model.model, revision=model.revision, allow_pickle=model.allow_pickle).folder)
    return found


def check_problems(subject: Subject) -> Iterator[Finding]:
    """Check that the problems can be read or generated, and that there are enough of them."""
    if not subject.given:
        return
    seen = set()
    for plan in subject.sweep.runs:
        key = problems_key(plan.config)
        if key in seen:
            continue
        seen.add(key)
        try:
            splits = splits_of(plan)
        except InputError as e:
            yield Finding(FAIL, f"run {plan.label}: {e}")
            continue
        counts = (
            f"{splits.train.height} to train on, {splits.evaluation.height} held out, "
            f"{splits.examples.height} shown as examples"
        )
        yield Finding(OK, f"problems of run {plan.label}: {counts}")
