"""The runs of a sweep: the points of its grid, the entries of `runs`, or both together.

In: the content of a sweep file, as YAML has it. Out: for each run its label and the fields it changes;
mistakes are appended to a list. The changed fields are applied and checked in `sweep.py`.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core_hpc.config.extensions import REFERENCE
from core_hpc.config.identity import flatten
from core_hpc.config.run import RunConfig
from core_hpc.runs.names import ONLY_RUN

MAX_RUNS = 1000
MAX_LABEL_CHARS = 80
RUN_KEYS = ("label", *RunConfig.model_fields)
"""Keys of a member of `runs`."""


def expand(data: dict[str, Any], mistakes: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """The runs of a sweep. With `grid` and `runs`, every entry of `runs` at every point of the grid.

    Args:
        data: the content of the sweep file.
        mistakes: takes the mistakes that are found.

    Returns:
        The label of each run, and its values by dotted path.
    """
    grid, runs = data.get("grid"), data.get("runs")
    if grid is None and runs is None:
        return [(ONLY_RUN, {})]
    if runs is None:
        return _expand_grid(grid, mistakes)
    entries = _expand_runs(runs, mistakes)
    if grid is None:
        return entries
    points = _expand_grid(grid, mistakes)
    if len(entries) * len(points) > MAX_RUNS:
        mistakes.append(f"grid, runs: give {len(entries) * len(points)} runs, more than the limit of {MAX_RUNS}")
        return []
    mistakes += [
        f"grid.{path}: the run {label} of `runs` sets it, too; leave one of them out"
        for label, changes in entries
        for path in (points[0][1] if points else {})
        if path in changes
    ]
    both = [
        (_slug(f"{label}-{of_point}"), {**changes, **point}) for label, changes in entries for of_point, point in points
    ]
    mistakes += _repeated_labels(both)
    return both


def _expand_runs(runs: Any, mistakes: list[str]) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(runs, list) or not runs or not all(isinstance(r, dict) for r in runs):
        mistakes.append("runs: must be a list of at least one mapping {label: ..., path.to.field: value}")
        return []
    points = []
    for i, run in enumerate(runs):
        label = run.get("label")
        if isinstance(label, bool):
            mistakes.append(f"runs.{i}.label: YAML reads it as {str(label).lower()}; put it in quotes")
        label = str(label or f"run{i}")
        misspelled = [key for key in run if difflib.get_close_matches(str(key), RUN_KEYS, n=1) == ["label"] != [key]]
        mistakes += [f"runs.{i}.{key}: unknown key; did you mean `label`?" for key in misspelled]
        changes = {key: value for key, value in run.items() if key not in ("label", *misspelled)}
        # A list replaces a list.
        points.append((_slug(label), _by_path(changes, f"runs.{i}", mistakes, lists=False)))
    mistakes += _repeated_labels(points)
    return points


def _by_path(fields: dict[str, Any], where: str, mistakes: list[str], *, lists: bool = True) -> dict[str, Any]:
    """`flatten`, with a mistake for each field that is written twice, as a dotted and as a nested key."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        own = flatten({str(key): value}, lists=lists)
        mistakes += [f"{where}.{path}: stands there twice; leave one of them out" for path in own if path in found]
        found |= own
    return found


def _repeated_labels(points: Sequence[tuple[str, Any]]) -> list[str]:
    counts = Counter(label for label, _ in points)
    advice = f" (labels have at most {MAX_LABEL_CHARS} characters)"
    return [
        f"runs: two runs have the label {label!r}{advice * (len(label) == MAX_LABEL_CHARS)}"
        for label, count in counts.items()
        if count > 1
    ]


def _expand_grid(grid: Any, mistakes: list[str]) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(grid, dict) or not grid:
        mistakes.append("grid: must be a mapping {path.to.field: [value, value]} with at least one field")
        return []
    axes = _by_path(grid, "grid", mistakes)
    bad = [path for path, values in axes.items() if not isinstance(values, list) or not values]
    mistakes += [f"grid.{path}: must be a list with at least one value" for path in bad]
    if bad:
        return []
    num_points = math.prod(len(values) for values in axes.values())
    if num_points > MAX_RUNS:
        mistakes.append(f"grid: gives {num_points} runs, more than the limit of {MAX_RUNS}")
        return []
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [
        (_slug("_".join(f"{path.rpartition('.')[2]}-{_shown(value)}" for path, value in point.items())), point)
        for point in points
    ]


def _shown(value: Any) -> Any:
    """A value for a label: a function without the folder of its file."""
    return Path(value).name if isinstance(value, str) and REFERENCE.fullmatch(value) else value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:MAX_LABEL_CHARS] or "run"
