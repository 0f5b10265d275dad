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

_SEED = re.compile(r"(^|-)seed-[0-9]+(?=-|$)")


def arm_of_label(label: str) -> str:
    """The name of the arm that the run with this label belongs to. It is empty if the label has the seed only.

    >>> arm_of_label("core"), arm_of_label("seed-1-scope-all"), arm_of_label("seed-12")
    ('core', 'scope-all', '')
    """
    return _SEED.sub("", label).strip("-")


def names_of_arm(sweep: str, label: str) -> set[str]:
    """The names of the arm of a run: its label with and without the seed, and the name of its sweep.

    >>> sorted(names_of_arm("core", "seed-1"))
    ['core', 'seed-1']
    """
    return {sweep, label, arm_of_label(label)} - {""}


def missing_arms(primary: PrimarySection, *, source: Path, sweep: str, labels: Collection[str]) -> Iterator[str]:
    """Yield a mistake for each arm of the primary comparison that is neither in the sweep nor beside it.

    Args:
        primary: the declared comparison.
        source: the sweep file. Other sweep files in its folder can be arms.
        sweep: the name of the sweep.
        labels: the labels of its runs.
    """
    known = {arm for label in labels for arm in names_of_arm(sweep, label)}
    beside = _sweeps_beside(source) if set(primary.arms) - known else set()
    for i, arm in enumerate(primary.arms):
        if arm not in known | beside:
            names = ", ".join(sorted({arm_of_label(label) for label in labels} - {""} | {sweep} | beside))
            yield f"analysis.primary.arms.{i}: there is no arm {arm!r}; arms of this sweep and its folder: {names}"


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
