"""A real second user in the group of this process, for tests of who may change what.

The user is a child process with another user id, and the same group. This needs root. Elsewhere
the test is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.harness import ROOT

COLLEAGUE_UID = 64_123
"""A user id that no system has by default."""
BECOME_COLLEAGUE = f"""
import os, pathlib, shutil, sys
group = os.getegid()
os.setgroups([group])
os.setgid(group)
os.setuid({COLLEAGUE_UID})
os.umask(0o002)
"""


def require_root() -> None:
    """Skip the test if this process cannot become another user."""
    if os.geteuid() != 0:
        pytest.skip("a second user needs root: run the tests as root, as in the CI's container")


@contextlib.contextmanager
def under_umask(mode: int) -> Iterator[None]:
    """Set the umask of this process, which its children inherit, in the block."""
    before = os.umask(mode)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def project_folder() -> Iterator[Path]:
    """A project folder as on many clusters: the whole group writes, new files belong to it.

    It does not lie in the folders of pytest, which every test session makes private again.
    """
    with tempfile.TemporaryDirectory(prefix="core-hpc-project-", dir="/tmp") as above:
        Path(above).chmod(0o711)
        folder = Path(above, "project")
        folder.mkdir()
        folder.chmod(0o2775)
        yield folder


def as_colleague(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python code as the second user, with the umask 002. `sys.argv[1:]` are the arguments.

    The process imports what the code needs first, because the interpreter may lie in a folder that
    only root can read.
    """
    require_root()
    return subprocess.run(
        [sys.executable, "-c", BECOME_COLLEAGUE + code, *map(str, arguments)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def as_colleague_after(
    imports: str, code: str, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python code as the second user, with modules of core_hpc that are imported before, as root."""
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{imports}\nos.setuid({COLLEAGUE_UID})\n{code}", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
