"""Checks that `import analysis` loads this project's package `analysis`, which lies beside `core_hpc`.

`python -m core_hpc.launch` puts the working directory first on Python's path. A user's own folder or
file with the name `analysis` in the working directory then hides the package. The command lines call
`require_own_analysis` before they import a module that imports `analysis`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from core_hpc.common.terminal import show_error

OWN = Path(__file__).parents[2] / "analysis"
EXIT_STATUS = 2


def hiding_analysis(path: Sequence[str]) -> Path | None:
    """The folder or file that `import analysis` would load from `path` instead of this project's package."""
    spec = PathFinder.find_spec("analysis", path)
    if spec is None:  # not on the path: an editable installation finds it in its own way
        return None
    found = Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations or ())))
    if found.name == "__init__.py":
        found = found.parent
    return None if found.resolve() == OWN.resolve() else found


def require_own_analysis() -> None:
    """End the process with a message if `import analysis` would load something else."""
    found = hiding_analysis(sys.path)
    if found is not None:
        show_error(hidden_message(found))
        raise SystemExit(EXIT_STATUS)


def hidden_message(found: Path) -> str:
    """What is wrong and what the user can do about it."""
    return (
        f"{found} hides the package `analysis` of core_hpc, because Python looks in the working directory first. "
        "Use the command `core-hpc` instead of `python -m core_hpc`, start from another folder, or rename it"
    )
