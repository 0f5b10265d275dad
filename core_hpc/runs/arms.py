"""The arms of a sweep: runs that differ in their seed only, and the names by which they are known.

In: labels of runs, names of sweeps, and the folder of a sweep file. Out: names of arms, and the
mistakes of a declared primary comparison. Nothing is computed from results here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import yaml
from core_hpc.config.analysis import PrimarySection
from core_hpc.config.yaml_text import parse_yaml, read_text
from core_hpc.runs.names import ONLY_RUN

_SEED = re.compile(r"(^|-)seed-[0-9]+(?=-|$)")


def arm_of_label(label: str) -> str:
    """The name of the arm that the run with this label belongs to. It is empty if the label has the seed only.

    >>> arm_of_label("core"), arm_of_label("seed-1-scope-all"), arm_of_label("seed-12")
    ('core', 'scope-all', '')
    """
    return _SEED.sub("", label).strip("-")


def arm_name(sweep: str, label: str) -> str:
    """The name of the arm of a run: its label without the seed.

    A run whose label has no more than the seed is known by its sweep, because the whole sweep is one arm.

    >>> arm_name("core", "seed-1"), arm_name("core", "run"), arm_name("core", "seed-1-scope-all")
    ('core', 'core', 'scope-all')
    """
    arm = arm_of_label(label)
    return sweep if arm in ("", ONLY_RUN) else arm


def names_of_arm(sweep: str, label: str) -> set[str]:
    """All names by which the arm of a run is known: the label with and without the seed."""
    return {label, arm_name(sweep, label)}


def missing_arms(primary: PrimarySection, *, source: Path, sweep: str, labels: Collection[str]) -> Iterator[str]:
    """Yield a mistake for each arm of the primary comparison that is neither in the sweep nor beside it.

    The name of the sweep is a mistake, too, if its runs have labels of their own: it could mean each of them.

    Args:
        primary: the declared comparison.
        source: the sweep file. Other sweep files in its folder can be arms.
        sweep: the name of the sweep.
        labels: the labels of its runs.
    """
    known = {arm for label in labels for arm in names_of_arm(sweep, label)}
    own = {arm_of_label(label) or sweep for label in labels}
    beside = _sweeps_beside(source) - {sweep} if set(primary.arms) - known else set()
    for i, arm in enumerate(primary.arms):
        where = f"analysis.primary.arms.{i}"
        if arm in known | beside:
            continue
        if arm == sweep:
            names = ", ".join(sorted(own))
            yield f"{where}: {arm!r} is this sweep, whose runs have labels; name one of its labels: {names}"
        else:
            names = ", ".join(sorted(own | beside))
            yield f"{where}: there is no arm {arm!r}; arms of this sweep and its folder: {names}"


def _sweeps_beside(source: Path) -> set[str]:
    """The names of all sweep files in the folder of a sweep file. Files that are not valid YAML have no name."""
    found = set()
    for path in source.expanduser().resolve().parent.glob("*.yaml"):
        try:
            data = parse_yaml(read_text(path))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(data, dict) and isinstance(data.get("name"), str):
            found.add(data["name"])
    return found
