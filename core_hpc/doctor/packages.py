"""Checks of Python and of the installed packages, against the ranges that this software declares.

In: a `Subject`. Out: `Finding`s.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from core_hpc.common.shipped import checkout_folder
from core_hpc.doctor.checks import FAIL, OK, WARN, Finding, Subject


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
