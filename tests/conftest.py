"""Fixtures and options that all tests share.

Tiny models and undisturbed runs are made once per test run, the SLURM cluster once per worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.support.cluster import DevCluster

# On a busy machine a slow example is not a failure. Examples depend on the code only, so that a commit either passes or
# fails; `--hypothesis-profile=explore` draws others.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeatable")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a parameter of bytes after its argument: a test's name must be the same in every worker of pytest-xdist.

    Compressed bytes can hold the time at which a worker made them.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny models with different random weights; the second has a chat template. Tests do not change them."""
    from tests.support.once import made_once

    def make(folder: Path) -> None:
        from tests.support.tiny import make_tiny_model

        make_tiny_model(folder / "m0", seed=0)
        make_tiny_model(folder / "m1", seed=1, chat=True)

    folder = made_once(tmp_path_factory, "tiny-models", make)
    return [folder / "m0", folder / "m1"]


@pytest.fixture(scope="session")
def undisturbed_sweep(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A function that returns the file of a finished `tiny_sweep` with a number of iterations.

    The driver `local` has run it once for all workers. What it printed is in `printed.txt` beside the
    file. Tests compare with it and do not change it.
    """
    from tests.support.harness import launch
    from tests.support.once import made_once
    from tests.support.tiny import tiny_sweep

    def sweep(iterations: int) -> Path:
        def run(folder: Path) -> None:
            done = launch(tiny_sweep(folder / "tiny.yaml", tiny_models, folder / "out", iterations=iterations))
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "printed.txt").write_text(done.stdout)

        return made_once(tmp_path_factory, f"undisturbed-{iterations}", run) / "tiny.yaml"

    return sweep


@pytest.fixture(scope="session")
def undisturbed_run(undisturbed_sweep: Callable[[int], Path]) -> Callable[[int], Path]:
    """A function that returns the run of the finished `tiny_sweep` with a number of iterations."""
    from tests.support.harness import the_run

    return lambda iterations: the_run(undisturbed_sweep(iterations).parent / "out" / "tiny")


@pytest.fixture(scope="session")
def shared_runs(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The finished runs of `tests/support/shared_runs.py` by label, of one sweep. Tests do not change them."""
    from tests.support.once import made_once
    from tests.support.shared_runs import make_shared_runs, runs_by_label

    folder = made_once(tmp_path_factory, "shared-runs", lambda folder: make_shared_runs(folder, tiny_models))
    return runs_by_label(folder)


@pytest.fixture(scope="session")
def updates_on_ranks(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Path:
    """The folder of `tests.support.ranks.launch_updates`: real ranks have trained adapters and all weights."""
    from tests.support.once import made_once
    from tests.support.ranks import launch_updates

    return made_once(tmp_path_factory, "updates-on-ranks", lambda folder: launch_updates(folder, full=full))


@pytest.fixture(scope="session")
def one_rank(tiny_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tests.support.ranks.run_on_one_rank`: what some test files found as the only rank of an update."""
    from tests.support.once import made_once
    from tests.support.ranks import run_on_one_rank

    return made_once(tmp_path_factory, "one-rank", lambda folder: run_on_one_rank(tiny_models[0], folder))


@pytest.fixture(scope="session")
def cluster() -> Iterator[DevCluster]:
    """Start a real SLURM cluster of four nodes on this machine (`tests/support/cluster.py`).

    The test is skipped if SLURM cannot be installed.
    """
    from tests.support.cluster import running_cluster

    with running_cluster(nodes=4) as running:
        yield running


@pytest.fixture
def project() -> Iterator[Path]:
    """Make a project folder in which a whole group writes (`tests/support/second_user.py`)."""
    from tests.support.second_user import project_folder

    with project_folder() as folder:
        yield folder


@pytest.fixture
def loose_umask() -> Iterator[None]:
    """Set the umask of many clusters, with which the group may change every new file."""
    from tests.support.second_user import under_umask

    with under_umask(0o002):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="also the long forms and variants (tests/README.md, Two tiers)"
    )
    parser.addoption("--record", action="store_true", help="test_recorded_run.py: record the run instead of comparing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests with the mark `full` unless the option asks for them.

    The reason of each mark is shown, so that no test is left out silently.
    """
    if config.getoption("--full"):
        return
    for item in items:
        marks = list(item.iter_markers("full"))
        if marks:
            item.add_marker(pytest.mark.skip(reason=f"only with --full: {marks[0].kwargs['reason']}"))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the full tier (`--full`), in which some tests are longer."""
    return bool(request.config.getoption("--full"))
