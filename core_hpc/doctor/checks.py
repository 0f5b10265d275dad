"""Checks of this machine: packages, models, problems, GPUs, ports.

In: a `Subject` (the sweep that is examined). Out: `Finding`s. No check changes or downloads anything. The output
folder is checked in `doctor/storage.py`, SLURM in `doctor/slurm.py`, and the compute nodes in `doctor/job.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.shipped import checkout_folder
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.model import ModelSection
from core_hpc.controller.prepare import problems_key, splits_of
from core_hpc.engines import has_gpu
from core_hpc.local.executor import LocalLimits
from core_hpc.models.gguf import GGUF_MODELS, find_parts
from core_hpc.models.resolve import MINILM, PYPI, cache_folder, resolve_embedder, resolve_model
from core_hpc.runs.sweep import Sweep
from core_hpc.slurm.commands import Slurm, slurm_installed

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was found, and what to do about it (empty if nothing needs to be done)."""

    status: str
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Subject:
    """What is examined. `given` is false if the user named no sweep and `sweep` is a small stand-in."""

    sweep: Sweep
    given: bool
    slurm: Slurm

    @property
    def cluster(self) -> ClusterSection:
        return self.sweep.cluster

    @property
    def submits(self) -> bool:
        """Whether the sweep's tasks become SLURM jobs."""
        return self.cluster.uses_slurm

    @property
    def asks_slurm(self) -> bool:
        return self.submits or (not self.given and slurm_installed())

    @property
    def models(self) -> list[ModelSection]:
        """The different models of the runs."""
        found: dict[tuple[object, ...], ModelSection] = {}
        for model in (m for plan in self.sweep.runs for m in plan.config.team):
            found.setdefault((model.model, model.revision, model.trust_remote_code, model.allow_pickle), model)
        return list(found.values())

    @property
    def engines(self) -> set[str]:
        return {m.engine for plan in self.sweep.runs for m in plan.config.team}

    @property
    def embedders(self) -> list[str]:
        return sorted({plan.config.reward.distance.embedder for plan in self.sweep.runs})


Check = Callable[[Subject], Iterable[Finding]]


def run_checks(checks: Iterable[Check], subject: Subject) -> Iterator[Finding]:
    """Findings of several checks. An error for the user that a check raises becomes a finding."""
    for check in checks:
        try:
            yield from check(subject)
        except CoreHpcError as e:
            yield Finding(FAIL, str(e))


# --- packages ------------------------------------------------------------------------------------


def _declared() -> tuple[str, list[tuple[str, Requirement]]]:
    """The range of Python versions, and (extra or '', requirement) per package that this software declares.

    In a checkout they come from pyproject.toml, which may be newer than the installed metadata.
    """
    checkout = checkout_folder()
    if checkout is not None:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = [("", line) for line in project["dependencies"]]
        lines += [(extra, line) for extra, own in project["optional-dependencies"].items() for line in own]
        return project["requires-python"], [(extra, Requirement(line)) for extra, line in lines]
    found = []
    for line in metadata.requires("core_hpc") or []:
        extra = re.search(r"""extra == ["'](\w+)["']""", line)
        found.append((extra[1] if extra else "", Requirement(line)))
    return metadata.metadata("core_hpc")["Requires-Python"], found


def check_python(subject: Subject) -> Iterator[Finding]:
    """Compare Python and the packages with the ranges that this software declares."""
    wanted, requirements = _declared()
    here = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(wanted).contains(here):
        yield Finding(OK, f"Python {here} ({sys.executable})")
    else:
        yield Finding(FAIL, f"Python {here} is not {wanted}", f"make a virtual environment with a Python {wanted}")
    good = []
    for _, requirement in [r for r in requirements if r[0] == ""]:
        version = _version(requirement.name)
        if version is None:
            yield Finding(FAIL, f"package {requirement.name} is missing", f"run: pip install '{requirement}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                WARN,
                f"package {requirement.name} {version} is not {requirement.specifier}",
                f"run: pip install '{requirement}'",
            )
        else:
            good.append(f"{requirement.name} {version}")
    yield Finding(OK, f"packages in range: {', '.join(good) or 'none'}")
    yield from _vllm(subject, [r for extra, r in requirements if extra in ("cpu", "gpu")])


def _vllm(subject: Subject, builds: list[Requirement]) -> Iterator[Finding]:
    """Check that exactly one build of vLLM is installed, if an engine needs it."""
    installed = [(r, v) for r in builds if (v := _version(r.name)) is not None]
    choices = " or ".join(f"'{r}'" for r in builds)
    for requirement, version in installed:
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(OK, f"{requirement.name} {version}")
        else:
            yield Finding(
                WARN,
                f"{requirement.name} {version} is not {requirement.specifier}",
                f"run: pip install '{requirement}'",
            )
    if len(installed) > 1:
        yield Finding(
            WARN, "several builds of vLLM are installed over each other", "make a new environment with one build"
        )
    if not installed and subject.given and "vllm" not in subject.engines:
        yield Finding(OK, "vLLM is not installed and not used by this sweep")
    elif not installed:
        status = FAIL if subject.given else WARN
        advice = f"run: pip install {choices} (CPU, GPU), or write `engine: transformers` for the models"
        yield Finding(status, "vLLM is not installed", advice)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# --- what the sweep names ------------------------------------------------------------------------


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
    if isinstance(folder, Path) or reference.startswith("fake:"):
        return Finding(OK, f"embedder {reference}: {'made up, for tests' if isinstance(folder, str) else folder}")
    import huggingface_hub

    if isinstance(huggingface_hub.try_to_load_from_cache(reference, "modules.json"), str):
        return Finding(OK, f"embedder {reference}: in the local cache of the hub")
    return Finding(
        FAIL,
        f"embedder {reference}: not in the local cache of the hub",
        f"run `hf download {reference}` where there is a network (and share HF_HOME), or write a folder or {MINILM}",
    )


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


# --- this machine --------------------------------------------------------------------------------


def check_machine(subject: Subject) -> Iterator[Finding]:
    """Report cores and memory, and check how many tasks the driver `local` would run at once."""
    cores, mem_gb = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    here = f"this machine ({socket.gethostname()}): {cores} cores, {mem_gb:.0f} GB of memory"
    if subject.submits:
        yield Finding(OK, f"{here}; tasks run elsewhere")
        return
    limits = LocalLimits.of(subject.cluster, subject.sweep.largest_team)
    plan = f"{limits.num_running} task(s) at a time with {limits.threads} thread(s) each"
    if limits.num_running * limits.threads > cores:
        yield Finding(WARN, f"{here}; {plan}: more threads than cores", "lower cluster.num_running or cluster.threads")
    else:
        yield Finding(OK, f"{here}; {plan}")


def check_port(subject: Subject) -> Iterator[Finding]:
    """Check that the ranks of an update can connect to each other on this machine."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except OSError as e:
        advice = "the ranks of an update need one; ask the administrator whether sockets are limited on this machine"
        yield Finding(FAIL, f"no port of 127.0.0.1 can be used: {e}", advice)
        return
    yield Finding(OK, f"ranks can connect to each other on this machine (tested port {port})")


def gpu_facts() -> dict[str, Any] | None:
    """The output of nvidia-smi: {gpus: [name, ...], mem_gb: [...], driver, cuda}; None if it is missing or fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(["nvidia-smi", *fields], capture_output=True, text=True, timeout=60, check=True).stdout
        head = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    gpus = [tuple(part.strip() for part in row.split(",")) for row in rows.splitlines() if row.count(",") == 2]
    if not gpus:
        return None
    cuda = re.search(r"CUDA\D{0,20}Version\s*:\s*(\d+\.\d+)", head)
    mem_gb = [round(float(g[1]) / 1024, 1) if g[1].replace(".", "").isdecimal() else None for g in gpus]
    return {"gpus": [g[0] for g in gpus], "mem_gb": mem_gb, "driver": gpus[0][2], "cuda": cuda[1] if cuda else None}


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built with, without importing torch.

    Returns:
        None for a CPU build, or without torch.
    """
    spec = find_spec("torch")
    path = Path(spec.submodule_search_locations[0], "version.py") if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        return None
    match = re.search(r"^cuda.*=\s*'([\d.]+)'", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def judge_gpus(where: str, facts: dict[str, Any], built_for: str | None) -> Finding:
    """Compare the driver with the CUDA version of torch. Within a major version of CUDA an older driver is enough."""
    cuda = facts["cuda"] or "unknown"
    gpus = f"{where}: {len(facts['gpus'])} x {facts['gpus'][0]}, driver {facts['driver']} (CUDA {cuda})"
    if built_for is None:
        return Finding(
            WARN,
            f"{gpus}, but torch is a build for CPU only",
            "install the extra `gpu` instead of `cpu`, in a new environment",
        )
    if facts["cuda"] and int(facts["cuda"].split(".")[0]) < int(built_for.split(".")[0]):
        return Finding(
            FAIL,
            f"{gpus} is too old for torch, which was built for CUDA {built_for}",
            f"ask for a newer driver, or install a torch built for CUDA {facts['cuda']}",
        )
    return Finding(OK, f"{gpus}; torch was built for CUDA {built_for}")


def check_gpu(subject: Subject) -> Iterator[Finding]:
    """Report the GPUs of this machine, and whether torch can use them."""
    facts = gpu_facts()
    if facts is not None:
        yield judge_gpus("GPU", facts, torch_cuda())
    elif has_gpu() and not subject.submits:
        yield Finding(WARN, "there are GPU devices, but nvidia-smi does not answer", "check the driver: run nvidia-smi")
    elif subject.submits:
        yield Finding(OK, "no GPU on this machine; the test job checks the nodes")
    else:
        yield Finding(OK, "no GPU on this machine: everything runs on the CPU")


MACHINE_CHECKS: tuple[Check, ...] = (check_python, check_machine, check_gpu, check_port, check_models, check_problems)
