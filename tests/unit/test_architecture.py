"""Imports go in one direction only, from the commands down to `common`.

Imports inside functions count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

CORE = (
    ("common",),
    ("store",),
    ("config",),
    ("extensions",),
    ("answers",),
    ("problems",),
    ("models",),
    ("protocol",),
    ("engines",),
    ("training",),
    ("runs",),
    ("phases",),
    ("schedule",),
    ("local",),
    ("slurm",),
    ("controller",),
    ("status", "doctor", "launch", "cancel", "export"),
    ("evaluate",),
    ("__main__",),
)
"""Packages of core_hpc from the bottom to the top. Those of one level do not import each other."""
ANALYSIS = (
    ("stats",),
    ("counts", "layout"),
    ("metrics", "timing", "browse"),
    ("exchange", "report"),
    ("arguments",),
    ("__main__",),
)
ANALYSIS_MAY_IMPORT = {"common", "store", "config", "answers", "problems", "runs"}
MAY_IMPORT_ANALYSIS = {"controller", "status", "export"}
EXCEPTIONS = {"core_hpc/slurm/detach.py"}
"""Old names of pickled functions, which the next release removes."""

LEVELS = {f"core_hpc.{name}": level for level, names in enumerate(CORE) for name in names}
LEVELS |= {f"analysis.{name}": level for level, names in enumerate(ANALYSIS) for name in names}


def imports() -> Iterator[tuple[str, str, str, bool]]:
    """Yield every import between packages.

    Each is (place, importing package, imported package, whether it is at module level).
    """
    for path in sorted([*(ROOT / "core_hpc").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")]):
        relative = path.relative_to(ROOT)
        own = package(".".join(relative.with_suffix("").parts))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if str(relative) in EXCEPTIONS or not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for name in imported(node):
                other = package(name)
                if other != own and other in LEVELS:
                    yield f"{relative}:{node.lineno}", own, other, node in tree.body


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the dotted names that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "relative imports are not used here"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def package(module: str) -> str:
    """Return the package of a module: `core_hpc.slurm` for `core_hpc.slurm.submit`."""
    return ".".join(module.split(".")[:2])


def test_every_module_belongs_to_a_known_package() -> None:
    for top, levels in (("core_hpc", CORE), ("analysis", ANALYSIS)):
        found = {
            path.stem for path in (ROOT / top).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert found - {"__init__"} == {name for level in levels for name in level}


def test_imports_go_downwards() -> None:
    wrong = []
    for where, own, other, at_top in imports():
        own_top, own_name = own.split(".")
        other_top, other_name = other.split(".")
        if own_top == other_top:
            allowed = own not in LEVELS or LEVELS[other] < LEVELS[own]
        elif own_top == "analysis":
            allowed = other_name in ANALYSIS_MAY_IMPORT
        else:
            allowed = own_name in MAY_IMPORT_ANALYSIS and at_top
        if not allowed:
            wrong.append(f"{where}: {own} imports {other}")
    assert not wrong, "\n".join(wrong)
