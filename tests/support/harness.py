"""Start the launcher as a user would, kill or hold it, and compare what two runs published."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import polars as pl
import pytest

from core_hpc.runs.folder import list_runs
from core_hpc.store import manifests, shards
from core_hpc.store.paths import OPTIMIZER_STATE, RunPaths
from core_hpc.store.schema import HINTS, ROLLOUTS, SCORES, STEPS, UPDATE

ROOT = Path(__file__).parents[2]


def launch(
    sweep: Path, *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the launcher until it ends."""
    return command("launch", sweep, *arguments, env=env, timeout_s=timeout_s)


def evaluate(
    *arguments: str | Path, env: dict[str, str] | None = None, timeout_s: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run `core_hpc.evaluate` until it ends."""
    return command("evaluate", *arguments, env=env, timeout_s=timeout_s)


def refused(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of core_hpc that must end before its first task, in this process.

    This saves the imports of a new process. The umask and the signal handlers are restored.

    Args:
        command: name of the module, for example `launch`.
    """
    main: Callable[[list[str]], int] = importlib.import_module(f"core_hpc.{command}").main
    texts = [str(argument) for argument in arguments]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    umask = os.umask(0o022)
    os.umask(umask)
    output, errors = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        ):
            status = main(texts)
    except SystemExit as end:  # argparse
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os.umask(umask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess([command, *texts], status, output.getvalue(), errors.getvalue())


def command(
    name: str, *arguments: str | Path, env: dict[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command of core_hpc, for example `cancel`, until it ends."""
    return subprocess.run(
        [sys.executable, "-m", f"core_hpc.{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def start_launcher(sweep: Path, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the launcher with this environment. Its output is appended to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "core_hpc.launch", str(sweep)], cwd=ROOT, env=env, stdout=out, stderr=out
        )


def launch_and_kill(
    sweep: Path, when: Callable[[], bool], log: Path, *, env: dict[str, str] | None = None, timeout_s: float = 300
) -> bool:
    """Start the launcher and send it SIGKILL as soon as `when()` is true.

    Args:
        log: file to which the output of the launcher is appended.

    Returns:
        False if the launcher ended by itself before.
    """
    process = start_launcher(sweep, log, {**os.environ, **(env or {})})
    deadline = time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            if when():
                process.send_signal(signal.SIGKILL)
                return True
            assert time.monotonic() < deadline, f"the condition {when} did not become true; see {log}"
            time.sleep(0.02)
        return False
    finally:
        process.kill()
        process.wait()


def wait_for(ready: Callable[[], object], what: str, timeout_s: float = 180) -> None:
    """Wait until `ready()` is true; fail with a message that names `what` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"still waiting for {what} after {timeout_s:g} s"
        time.sleep(0.1)


@contextlib.contextmanager
def launched_and_held(
    sweep: Path,
    step: str,
    hold: Path,
    *,
    env: dict[str, str],
    arguments: Sequence[str] = (),
    later: Mapping[str, Path] = MappingProxyType({}),
) -> Iterator[subprocess.Popen[str]]:
    """Start the launcher and yield it as soon as one of its tasks is held at a fault point.

    The task continues when the file `{hold}.go` exists. The launcher is killed at the end.

    Args:
        step: the fault point and its detail, as in `core_hpc/common/faults.py`.
        hold: file in which the held process writes its identity.
        arguments: further arguments of the launcher.
        later: the file of each further fault point at which a task is held.
    """
    faults = ";".join(f"hold {place}:{file}" for place, file in ((step, hold), *later.items()))
    environment = {**os.environ, **env, "CORE_HPC_FAULT": faults, "COLUMNS": "200"}
    command = [sys.executable, "-m", "core_hpc.launch", str(sweep), *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(hold.exists, f"a task to be held at {step}")
            yield process
        finally:
            process.kill()


def the_run(sweep_folder: Path) -> Path:
    """Return the folder of the only run of a sweep."""
    (run,) = list_runs(sweep_folder)
    return run


def published_content(run: Path) -> dict[str, pl.DataFrame | bytes]:
    """Return all published results of a run: rows by task and table, and weight files by task."""
    content: dict[str, pl.DataFrame | bytes] = {}
    for key in shards.published_keys(run):
        manifest = manifests.read_manifest(RunPaths(run).task_manifest(key))
        manifests.check_files(manifest, checksum=True)
        for table in (ROLLOUTS, HINTS, SCORES, STEPS):
            if any(f.table == table.name for f in manifest.files):
                content[f"{key} {table.name}"] = shards.read_manifest_table(manifest, table, checksum=True)
        if key.phase == UPDATE:
            content[f"{key} adapter_model.safetensors"] = manifest.file("adapter_model.safetensors").read_bytes()
            content[f"{key} optimizer.safetensors"] = manifest.file(OPTIMIZER_STATE).read_bytes()
    return content


def differences(a: Path, b: Path) -> list[str]:
    """Return the names of the results that differ between two runs."""
    left, right = published_content(a), published_content(b)
    return [name for name in sorted({*left, *right}) if not equal_content(left.get(name), right.get(name))]


def equal_content(x: pl.DataFrame | bytes | None, y: pl.DataFrame | bytes | None) -> bool:
    """Whether two values of `published_content` are equal; None: the run has no such result."""
    if isinstance(x, pl.DataFrame) and isinstance(y, pl.DataFrame):
        return x.equals(y)
    if isinstance(x, bytes) and isinstance(y, bytes):
        return x == y
    return False


def leftovers(run: Path, phases: Sequence[str]) -> list[Path]:
    """Return the files in the phase folders that no manifest names.

    Manifests that were set aside count as well.
    """
    found = []
    for phase in phases:
        for folder in (run / phase).glob("iteration=*"):
            paths = [p for p in folder.iterdir() if ".manifest.json" in p.name and not p.name.startswith(".")]
            named = {e.name.split("/")[0] for p in paths for e in manifests.read_manifest(p).files}
            found += [p for p in folder.iterdir() if p.name not in named and p not in paths]
    return found


def flip_a_byte(path: Path) -> None:
    """Damage the byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


_link = os.link


def link_with_lost_reply(source: Path, target: Path) -> None:
    """NOT NFS: make the link, lose the reply, and report what the repeated request finds."""
    with contextlib.suppress(FileExistsError):
        _link(source, target)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source), None, str(target))


def replace_sleep(monkeypatch: pytest.MonkeyPatch, module: ModuleType, sleep: Callable[[float], object]) -> None:
    """Replace `time.sleep` for one module. The other threads of this process sleep as before."""
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))


def hide_from_lookups(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """NOT NFS: a file of this name was looked for before it existed, so that only listings of its folder find it."""
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != name and exists(path))


def fail_below(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The file system reports errors for this folder, and tests of its files hide them, as those of Python 3.14 do."""

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *arguments: Any, **named: Any) -> Any:
            if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(folder):
                raise OSError(errno.EIO, "Input/output error", str(path))
            return function(path, *arguments, **named)

        return call

    for name in ("stat", "listdir", "scandir", "open"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    monkeypatch.setattr(io, "open", failing(io.open))
    for method, test in (("exists", os.path.exists), ("is_dir", os.path.isdir), ("is_file", os.path.isfile)):
        monkeypatch.setattr(Path, method, lambda path, test=test: test(path))
