"""Start the launcher as a user would, kill it, and compare what two runs published."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from core_hpc.runs.folder import list_runs
from core_hpc.store import manifests as store
from core_hpc.store import shards
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import HINTS, ROLLOUTS, SCORES, STEPS, UPDATE

ROOT = Path(__file__).parents[2]


def launch(
    sweep: Path, *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the launcher to its end."""
    return subprocess.run(
        [sys.executable, "-m", "core_hpc.launch", str(sweep), *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def launch_and_kill(
    sweep: Path, when: Callable[[], bool], log: Path, *, env: dict[str, str] | None = None, timeout_s: float = 300
) -> bool:
    """Start the launcher and SIGKILL it as soon as `when()`; False if it ended before by itself."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "core_hpc.launch", str(sweep)],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=out,
            stderr=out,
        )
    deadline = time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            if when():
                process.send_signal(signal.SIGKILL)
                return True
            assert time.monotonic() < deadline, f"{when} never came true; see {log}"
            time.sleep(0.02)
        return False
    finally:
        process.kill()
        process.wait()


def wait_for(ready: Callable[[], object], what: str, timeout_s: float = 180) -> None:
    """Until `ready()`; `what` is said when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def launched_and_held(sweep: Path, step: str, hold: Path, *, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The launcher, once a task of its is held at a step (core_hpc.common.faults; it goes on when {hold}.go is there). Killed in the end."""
    environment = {**os.environ, **env, "CORE_HPC_FAULT": f"hold {step}:{hold}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "core_hpc.launch", str(sweep)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(hold.exists, f"a task held at {step}")
        yield process
    finally:
        process.kill()
        process.wait()


def the_run(sweep_folder: Path) -> Path:
    """The only run of a sweep."""
    (run,) = list_runs(sweep_folder)
    return run


def published_content(run: Path) -> dict[str, pl.DataFrame | bytes]:
    """Everything scientific that a run published: rows by task and table, adapter and optimizer bytes by task."""
    content: dict[str, pl.DataFrame | bytes] = {}
    for key in shards.published_keys(run):
        manifest = store.read_manifest(RunPaths(run).task_manifest(key))
        store.check_files(manifest, checksum=True)
        for table in (ROLLOUTS, HINTS, SCORES, STEPS):
            if any(f.table == table.name for f in manifest.files):
                content[f"{key} {table.name}"] = shards.read_manifest_table(manifest, table, checksum=True)
        if key.phase == UPDATE:
            for suffix in ("adapter_model.safetensors", "optimizer.safetensors"):
                content[f"{key} {suffix}"] = manifest.file(suffix).read_bytes()
    return content


def differences(a: Path, b: Path) -> list[str]:
    """Names of what two runs published differently."""
    left, right = published_content(a), published_content(b)
    return [name for name in sorted({*left, *right}) if not _equal(left.get(name), right.get(name))]


def _equal(x: pl.DataFrame | bytes | None, y: pl.DataFrame | bytes | None) -> bool:
    if isinstance(x, pl.DataFrame) and isinstance(y, pl.DataFrame):
        return x.equals(y)
    return type(x) is type(y) and x == y


def leftovers(run: Path, phases: Sequence[str]) -> list[Path]:
    """Files below a run's phase folders which no manifest accounts for, be it one that was set aside for inspection."""
    found = []
    for phase in phases:
        for folder in (run / phase).glob("iteration=*"):
            manifests = [p for p in folder.iterdir() if ".manifest.json" in p.name and not p.name.startswith(".")]
            named = {e.name.split("/")[0] for p in manifests for e in store.read_manifest(p).files}
            found += [p for p in folder.iterdir() if p.name not in named and p not in manifests]
    return found
