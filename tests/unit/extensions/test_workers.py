"""Functions of the user in worker processes: results, errors with lines, time limits, ended processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from core_hpc.common.errors import CoreHpcError, ExtensionError, RepeatingError
from core_hpc.extensions import child, sources
from core_hpc.extensions.sources import Source
from core_hpc.extensions.values import Completion, Problem
from core_hpc.extensions.workers import FunctionWorkers

PROBLEM = Problem(id="p", question="What is 1 + 1?", gold="2", answer_kind="number")


def completion(text: str, **more: Any) -> Completion:
    values = {"problem_id": "p", "model": "a", "phase": "cold", "sample_index": 0, "answer": None, "num_tokens": 1}
    return Completion(**{**values, "correct": False, "hint_given": False, "text": text, **more})


@pytest.fixture(scope="module")
def workers() -> Iterator[FunctionWorkers]:
    made = FunctionWorkers(num_workers=2)
    yield made
    made.close()


def call(
    workers: FunctionWorkers,
    body: str,
    *calls: Sequence[Completion],
    limit_s: float = 20,
    head: str = "",
    **options: Any,
) -> list[Any]:
    """Call a reward part with this body."""
    source = Source("/home/u/my_rewards.py", f"{head}\ndef part(problem, completions, **options):\n{body}")
    sources.remember([source])
    arguments = [(PROBLEM, list(group)) for group in calls or [[completion("one")]]]
    reference = source.reference("part")
    return workers.call_many(reference, "reward_part", arguments, options, limit_s=limit_s)


def test_results_come_in_the_order_of_the_calls(workers: FunctionWorkers) -> None:
    groups = [[completion("w " * n), completion("")] for n in range(20)]
    body = "    return [options['factor'] * len(c.text.split()) for c in completions]"
    assert call(workers, body, *groups, factor=0.5) == [[0.5 * n, 0.0] for n in range(20)]


def test_numbers_of_numpy_and_torch_become_plain_numbers(workers: FunctionWorkers) -> None:
    body = "    import numpy as np\n    return np.array([c.correct for c in completions], dtype=np.float32)"
    assert call(workers, body, [completion("a", correct=True), completion("b")]) == [[1.0, 0.0]]


def test_an_error_names_the_line_of_the_user(workers: FunctionWorkers) -> None:
    with pytest.raises(ExtensionError) as error:
        call(workers, "    return [ratio(c) for c in completions]", head="def ratio(c):\n    return 1 / 0\n")
    where = "/home/u/my_rewards.py, line 2, in ratio"
    assert str(error.value) == f"{where}: ZeroDivisionError: division by zero\n    return 1 / 0\n" + (
        "    called with problem = 'p', completions = ['one']"
    )
    assert isinstance(error.value, RepeatingError), "another attempt would fail in the same way"


def test_an_error_inside_a_library_names_the_line_that_calls_it(workers: FunctionWorkers) -> None:
    with pytest.raises(ExtensionError, match=r"my_rewards\.py, line 4, in part: JSONDecodeError: .*\n    json\.loads"):
        call(workers, "    import json\n    json.loads('{')\n    return []")


def test_an_error_while_the_file_is_loaded_names_its_line(workers: FunctionWorkers) -> None:
    with pytest.raises(
        ExtensionError, match=r"my_rewards\.py, line 1: ModuleNotFoundError: No module named 'absent_x'"
    ):
        call(workers, "    return [0]", head="import absent_x")


def test_modules_of_the_working_directory_are_not_found_as_in_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_here.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as `python -m` does
    workers = FunctionWorkers(num_workers=1)
    try:
        for head, body in [("import mine_here", ""), ("", "    import mine_here\n")]:
            with pytest.raises(ExtensionError, match="ModuleNotFoundError: No module named 'mine_here'"):
                call(workers, f"{body}    return [0]", head=head)
    finally:
        workers.close()
    source = Source("mine.py", "import mine_here")
    with pytest.raises(ModuleNotFoundError):
        child.load(source)
    assert sys.path[0] == str(tmp_path), "the path of this process is as before"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert child.load(source).mine_here.x == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    return [0, 0]", r"line 2: part returned 2 numbers for 1 completions"),
        ("    return None", r"part returned NoneType None, not a list of numbers"),
        ("    return [float('nan')]", "part returned nan for completion 0, which is not a finite number"),
        ("    return {0: 0.9, 1: 0.1, 2: 0.5}", r"part returned dict .*, not a list of numbers in the order"),
        ("    return '012'", r"part returned str '012', not a list of numbers in the order"),
        ("    return ['x']", r"part returned list \['x'\], not a list of numbers"),
    ],
)
def test_a_wrong_result_is_an_error(workers: FunctionWorkers, body: str, expected: str) -> None:
    with pytest.raises(ExtensionError, match=expected):
        call(workers, body)


def test_a_function_that_hangs_is_stopped_at_its_line(workers: FunctionWorkers) -> None:
    body = "    import time\n    while True:\n        try:\n            time.sleep(1)\n        except Exception: pass"
    started = time.monotonic()
    with pytest.raises(CoreHpcError, match=r"my_rewards\.py, line \d, in part: did not return within 1 s") as error:
        call(workers, body, limit_s=1)
    assert time.monotonic() - started < 15
    assert not isinstance(error.value, RepeatingError), "on a busy machine another attempt may be faster"
    assert call(workers, "    return [1]") == [[1.0]], "the workers are still usable"


def test_a_function_that_cannot_be_interrupted_is_killed(workers: FunctionWorkers, tmp_path: Path) -> None:
    body = (
        f"    import os, signal, time\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n    time.sleep(600)"
    )
    with pytest.raises(CoreHpcError, match=r"my_rewards\.py: part did not return within 1 s and was killed"):
        call(workers, body, limit_s=1)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_function_that_ends_its_process_is_an_error(workers: FunctionWorkers) -> None:
    with pytest.raises(ExtensionError, match=r"part ended its process \(exit status"):
        call(workers, "    import os\n    os._exit(3)")
    with pytest.raises(ExtensionError, match="line 4, in part: SystemExit: 3"):
        call(workers, "    import sys\n    sys.exit(3)")


def test_results_do_not_depend_on_earlier_calls(workers: FunctionWorkers) -> None:
    body = "    import random\n    return [random.random() for _ in completions]"
    first, second = call(workers, body, [completion("a")], [completion("b")])
    assert first == second


def test_what_could_not_be_read_may_be_attempted_again(workers: FunctionWorkers) -> None:
    with pytest.raises(CoreHpcError, match="FileNotFoundError") as error:
        call(workers, "    open('/nowhere/x')")
    assert not isinstance(error.value, RepeatingError)
