"""A folder for TensorBoard, in which runs have short names.

In: run folders. Out: a folder of symbolic links to the curves of the runs. TensorBoard takes the path
below its `--logdir` as the name of a run, and run folders have a hash in theirs. Nothing is written
into a run. The curves of a run in progress grow, because a link leads to its folder.

The controller makes no such links in the sweep folder: TensorBoard would find every run twice below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.exchange.folder import new_folder, require_free
from core_hpc.common.errors import InputError
from core_hpc.runs.folder import list_runs
from core_hpc.runs.names import ONLY_RUN, short_names
from core_hpc.store.paths import RunPaths


@dataclass(frozen=True)
class Linked:
    """The result of `link_curves`."""

    path: Path
    runs: dict[str, Path]  # name in TensorBoard -> run folder
    notes: list[str]


def link_curves(paths: Sequence[Path], out: Path) -> Linked:
    """Make a folder with a link to the curves of each run.

    Args:
        paths: run folders, and sweep folders (all their runs).
        out: the new folder; it must not exist, or be empty.

    Raises:
        InputError: no run has curves, two sweeps have the same name, or `out` cannot be created.
    """
    out = Path(out).resolve()
    require_free(out)
    found = list(dict.fromkeys(run.resolve() for path in paths for run in list_runs(Path(path))))
    runs = [run for run in found if RunPaths(run).tensorboard.is_dir()]
    if not runs:
        raise InputError(f"{', '.join(map(str, paths))}: no run has curves for TensorBoard (imported predictions?)")
    named = _names(runs)
    with new_folder(out) as folder:
        for name, run in named.items():
            link = folder / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(RunPaths(run).tensorboard, target_is_directory=True)
    notes = [f"{run}: has no curves for TensorBoard" for run in found if run not in runs]
    return Linked(out, named, notes)


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """The runs by their names: what varies in the sweep, after the name of the sweep if there are several."""
    sweeps = list(dict.fromkeys(run.parent for run in runs))
    named: dict[str, Path] = {}
    for sweep in sweeps:
        if twins := [str(other) for other in sweeps if other.name == sweep.name and other != sweep]:
            raise InputError(f"{sweep} and {twins[0]} have the same name; give one of them at a time")
        of_sweep = [run for run in runs if run.parent == sweep]
        for run_id, label in short_names([run.name for run in of_sweep]).items():
            if label == ONLY_RUN and len(of_sweep) == 1:
                name = sweep.name
            else:
                name = label if len(sweeps) == 1 else f"{sweep.name}/{label}"
            named[name] = sweep / run_id
    return named
