"""References to functions of the user: the identity of a run, checks without running, copies in run folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from core_hpc.common.errors import ConfigError, RunConflictError, StoreError
from core_hpc.common.ownership import OwnershipError
from core_hpc.extensions import sources
from core_hpc.runs import conflicts, creation
from core_hpc.runs import folder as runs
from core_hpc.runs.sweep import load_sweep
from core_hpc.store.paths import RunPaths
from tests.support.created_run import PART, create_run, sweep_with


def mistake(sweep: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_sweep(sweep, overrides)
    (message,) = error.value.mistakes
    return message


@pytest.fixture(autouse=True)
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins like a new process, which knows no source."""
    monkeypatch.setattr(sources, "_KNOWN", {})
    monkeypatch.setattr(sources, "_REFUSED", {})


# --- identity ------------------------------------------------------------------------------------


def test_the_identity_depends_on_the_source_and_not_on_its_folder(tmp_path: Path) -> None:
    (first,) = load_sweep(sweep_with(tmp_path / "a")).runs
    (elsewhere,) = load_sweep(sweep_with(tmp_path / "b")).runs
    (other,) = load_sweep(sweep_with(tmp_path / "c", PART.replace("0.0", "0.5"))).runs
    assert elsewhere.run_id == first.run_id
    assert other.run_id != first.run_id
    assert str(tmp_path) not in json.dumps(first.config.reward.model_dump())


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = sweep_with(tmp_path / "base")
    other = tmp_path / "other"
    other.mkdir()
    (other / "t.yaml").write_text("base: ../base/s.yaml\n")
    assert load_sweep(other / "t.yaml").runs[0].run_id == load_sweep(base).runs[0].run_id
    (other / "my_rewards.py").write_text(PART.replace("50", "70"))
    monkeypatch.chdir(other)
    (plan,) = load_sweep(base, ["reward.parts.brevity.function=my_rewards.py:brevity"]).runs
    assert [source.text for source in plan.sources.values()] == [PART.replace("50", "70")]


def test_all_runs_of_a_sweep_have_what_was_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is changed while the sweep file is resolved does not give its runs two versions."""
    sweep = sweep_with(tmp_path)
    data = json.loads(sweep.read_text())
    sweep.write_text(json.dumps({**data, "grid": {"seed": [1, 2, 3]}}))
    read = sources.read_source

    def read_and_change(path: Path) -> sources.Source:
        found = read(path)
        path.write_text(PART.replace("0.0", "0.5"))
        return found

    monkeypatch.setattr(sources, "read_source", read_and_change)
    plans = load_sweep(sweep).runs
    assert len({plan.config.reward.parts["brevity"].function for plan in plans}) == 1


def test_a_grid_over_functions_has_labels_without_folders(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path, PART + PART.replace("brevity", "short"))
    data = json.loads(sweep.read_text())
    data["grid"] = {"reward.parts.brevity.function": ["my_rewards.py:brevity", "my_rewards.py:short"]}
    sweep.write_text(json.dumps(data))
    assert [run.label for run in load_sweep(sweep).runs] == [
        "function-my-rewards.py-brevity",
        "function-my-rewards.py-short",
    ]


# --- checks before anything is submitted ---------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, r"cannot be read \(.*No such file"),
        ("def brevity(problem, completions)\n", r"my_rewards\.py, line 1: expected ':'"),
        ("x = 1\n\ndef other(a, b): pass\n", r"has no function brevity at its top level \(it has other\)"),
        (
            "\ndef brevity(texts): pass\n",
            r"my_rewards\.py, line 2: brevity takes 1 positional argument\(s\), but gets 2",
        ),
        ("def brevity(a, b, c): pass\n", "takes 3 positional argument.*a reward part is `def NAME"),
        ("async def brevity(a, b): pass\n", "brevity is async"),
        ("def brevity(a, b, *, size): pass\n", r"needs the option size; write options: \{size: \.\.\.\}"),
        (f"import helper\n{PART}", r"line 1: imports helper\.py, which lies beside it"),
        (f"from helpers.texts import x\n{PART}", r"line 1: imports helpers/, which lies beside it: only this file"),
        (f"import plain.texts\n{PART}", r"line 1: imports plain/, which lies beside it"),
        (f"from .x import y\n{PART}", "line 1: a relative import"),
    ],
)
def test_a_mistake_names_the_field_the_line_and_what_to_write(
    tmp_path: Path, source: str | None, expected: str
) -> None:
    (tmp_path / "helper.py").write_text("")
    for file in ("helpers/__init__.py", "helpers/texts.py", "plain/texts.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x = 1")
    found = mistake(sweep_with(tmp_path, source))
    assert found.startswith("reward.parts.brevity.function: ")
    assert re.search(expected, found), found


def test_a_folder_that_no_import_finds_beside_the_file_is_no_mistake(tmp_path: Path) -> None:
    """Folders may have the name of an installed package, and the file may lie in the folder of core_hpc itself."""
    sweep = sweep_with(tmp_path, f"import numpy\nimport core_hpc.answers\n{PART}")
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "convert.py").write_text("")
    (tmp_path / "core_hpc").symlink_to(Path(sources.__file__).parents[1])
    load_sweep(sweep)


def test_a_byte_order_mark_is_accepted_and_another_encoding_is_named(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path)
    file = tmp_path / "my_rewards.py"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    load_sweep(sweep)
    file.write_bytes("# größe\n".encode("latin-1"))
    assert mistake(sweep).endswith("my_rewards.py is not UTF-8 (line 1, byte 5); save it as UTF-8")


def test_a_file_is_not_run_when_the_sweep_is_read(tmp_path: Path) -> None:
    load_sweep(sweep_with(tmp_path, f"raise SystemExit\n{PART}"))


def test_options_are_checked_against_the_function(tmp_path: Path) -> None:
    load_sweep(sweep_with(tmp_path, options={"max_words": 5}))
    found = mistake(sweep_with(tmp_path, options={"max_word": 5}))
    assert "line 1: brevity has no option max_word; it has max_words" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("brevity", "must be FILE.py:FUNCTION, for example my_rewards.py:brevity"),
        ("my_rewards:brevity", "must be FILE.py:FUNCTION"),
        ("my_rewards.py:brevity@0123456789abcdef", "the digest is added by core_hpc; write my_rewards.py:brevity"),
    ],
)
def test_other_forms_of_a_reference_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    found = mistake(sweep_with(tmp_path), f"reward.parts.brevity.function={text}")
    assert found.startswith(f"reward.parts.brevity.function: {expected}")


def test_a_wrong_key_of_a_part_gets_advice(tmp_path: Path) -> None:
    expected = "reward.parts.brevity.wieght: unknown key; did you mean `weight`?"
    assert mistake(sweep_with(tmp_path, wieght=1)) == expected


def test_a_wrong_key_of_a_problem_source_gets_advice(tmp_path: Path) -> None:
    source = "{source: function, function: my_rewards.py:brevity, count: 5, sed: 1}"
    with pytest.raises(ConfigError) as error:
        load_sweep(sweep_with(tmp_path), [f"problems.train={source}"])
    assert "problems.train.sed: unknown key; did you mean `seed`?" in error.value.mistakes


def test_a_part_cannot_have_the_name_of_another_field(tmp_path: Path) -> None:
    function = f"{{function: {tmp_path}/my_rewards.py:brevity}}"
    found = mistake(sweep_with(tmp_path), f"reward.parts.explore={function}")
    assert "explore is the name of another field" in found


# --- copies in the run folder --------------------------------------------------------------------


def test_a_task_uses_the_copy_although_the_file_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = load_sweep(sweep_with(tmp_path))
    run = create_run(sweep)
    (tmp_path / "my_rewards.py").write_text("raise ValueError('changed')")
    monkeypatch.setattr(sources, "_KNOWN", {})
    opened = runs.open_run(run.root, own=True)
    source = sources.source_of(opened.config.reward.parts["brevity"].function)
    assert source.text == PART
    assert source.path == "my_rewards.py", "messages name the file that the user edits"
    (copy,) = RunPaths(run.root).extensions.iterdir()
    assert copy.read_text() == PART
    (tmp_path / "my_rewards.py").unlink()
    assert runs.open_run(run.root).run_id == run.run_id


def test_a_started_run_refuses_another_source(tmp_path: Path) -> None:
    sweep = sweep_with(tmp_path)
    create_run(load_sweep(sweep))
    (tmp_path / "my_rewards.py").write_text(PART.replace("0.0", "1.0"))
    with pytest.raises(RunConflictError, match=r"reward\.parts\.brevity\.function: 'my_rewards\.py:brevity@"):
        conflicts.check_conflicts(load_sweep(sweep))


def test_an_altered_copy_is_not_run_and_the_next_start_writes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = load_sweep(sweep_with(tmp_path))
    run = create_run(sweep)
    (copy,) = RunPaths(run.root).extensions.iterdir()
    copy.write_text(PART + "# altered\n")
    monkeypatch.setattr(sources, "_KNOWN", {})
    with pytest.raises(StoreError, match="was altered after the run was started; nothing of it was run"):
        runs.open_run(run.root)
    copy.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        runs.open_run(run.root)
    creation.start(sweep.runs[0], sweep.folder)
    assert copy.read_text() == PART


def test_a_copy_that_others_may_write_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(load_sweep(sweep_with(tmp_path)))
    (copy,) = RunPaths(run.root).extensions.iterdir()
    assert copy.stat().st_mode & 0o022 == 0
    copy.chmod(0o664)
    monkeypatch.setattr(sources, "_KNOWN", {})
    with pytest.raises(OwnershipError, match="the group may change it"):
        runs.open_run(run.root, own=True)
    opened = runs.open_run(run.root)  # a colleague reads the results, and runs nothing of it
    with pytest.raises(OwnershipError, match="the group may change it"):
        sources.source_of(opened.config.reward.parts["brevity"].function)


def test_a_moved_run_folder_is_complete_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(load_sweep(sweep_with(tmp_path / "a")))
    shutil.copytree(run.root, tmp_path / "moved")
    shutil.rmtree(tmp_path / "a")
    monkeypatch.setattr(sources, "_KNOWN", {})
    runs.open_run(tmp_path / "moved")
    assert [source.text for source in sources._KNOWN.values()] == [PART]
