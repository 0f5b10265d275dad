"""Publishing: complete or not at all; the first writer wins; damage is found."""

import errno
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from core_hpc.common.errors import InputError, StoreError
from core_hpc.runs.folder import list_runs, locate, runs_in
from core_hpc.slurm.records import OPEN, SubmissionFolder
from core_hpc.store import claims, leftovers, manifests, output_folder, parquet, shards
from core_hpc.store.paths import RunPaths, TaskKey
from core_hpc.store.schema import HINTS, PROBLEMS, TABLES, Table, check_frame
from tests.support.harness import fail_below, flip_a_byte, link_with_lost_reply, replace_sleep


def problems(count: int = 3) -> pl.DataFrame:
    rows = [(f"p{i}", f"What is {i}?", str(i), "number", "{}") for i in range(count)]
    return pl.DataFrame(rows, schema=PROBLEMS.schema, orient="row")


def publish(folder: Path, frame: pl.DataFrame | None = None) -> manifests.Manifest:
    return shards.publish_frame(folder, "train", problems() if frame is None else frame, PROBLEMS)


def test_what_is_published_is_read_back(tmp_path: Path) -> None:
    manifest = publish(tmp_path)
    assert shards.read_manifest_table(manifest, PROBLEMS, checksum=True).equals(problems())
    assert shards.read_manifest_table(manifest, PROBLEMS, columns=["gold"]).columns == ["gold"]
    assert manifest.files[0].rows == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([manifest.files[0].name, "train.manifest.json"])


def test_every_table_can_be_empty_and_has_documented_columns(tmp_path: Path) -> None:
    for table in TABLES.values():
        frame = pl.DataFrame(schema=table.schema)
        manifest = shards.publish_frame(tmp_path, table.name, frame, table)
        assert shards.read_manifest_table(manifest, table).schema == table.schema
        assert all(meaning for _, meaning in table.columns.values())


def test_the_first_of_two_writers_wins_and_the_other_leaves_no_files(tmp_path: Path) -> None:
    first, second = publish(tmp_path), publish(tmp_path, problems(2))
    assert second.files == first.files
    assert len(list(tmp_path.iterdir())) == 2


def test_many_writers_at_once_leave_one_complete_publication(tmp_path: Path) -> None:
    threads = [threading.Thread(target=publish, args=(tmp_path, problems(i + 1))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest = manifests.read_manifest(tmp_path / "train.manifest.json")
    assert shards.read_manifest_table(manifest, PROBLEMS, checksum=True).height == manifest.files[0].rows
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failing_writer_leaves_no_files(tmp_path: Path) -> None:
    def full_disk(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "half").write_bytes(b"x" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        manifests.publish(tmp_path, "train", full_disk, as_folder=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_manifest_that_does_not_fit_on_the_disk_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_folder: bool
) -> None:
    def full_disk(fd: int) -> None:
        if f"manifest.json.{uid}" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")

    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "a.bin").write_bytes(b"abc")
        return {}

    uid = "0123456789ab"
    monkeypatch.setattr(manifests.uuid, "uuid4", lambda: SimpleNamespace(hex=uid))
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        manifests.publish(tmp_path, "train", fill, as_folder=as_folder)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_second_writer_is_removed(tmp_path: Path) -> None:
    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "a.bin").write_bytes(b"abc")
        return {}

    first, second = (manifests.publish(tmp_path, "m", fill, as_folder=True) for _ in range(2))
    assert second.folder == first.folder
    assert sorted(tmp_path.iterdir()) == sorted([first.folder, first.path])


def test_a_link_that_fails_for_another_reason_replaces_no_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a file system without hard links has no other way."""
    first = publish(tmp_path)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(OSError, match="Input/output error"):
        publish(tmp_path, problems(2))
    assert manifests.read_manifest(first.path) == first
    assert not list(tmp_path.glob(".*"))


def test_a_new_file_replaces_no_other_and_follows_no_link(tmp_path: Path) -> None:
    """Somebody else may have put it there."""
    (tmp_path / "there").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            manifests.write_synced(tmp_path / name, b"new")
    assert (tmp_path / "there").read_bytes() == b"mine"
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_cannot_be_replaced_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    manifests.write_json(path, {"n": 1})
    manifests.write_json(path, {"n": 2})
    assert manifests.read_json(path) == {"n": 2}
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        manifests.write_json(tmp_path / "folder", {"n": 3})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "status.json"]


def test_without_hard_links_the_publication_is_still_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    publish(tmp_path)
    manifest = publish(tmp_path, problems(2))
    assert shards.read_manifest_table(manifest, PROBLEMS, checksum=True).height == 2


def test_a_manifest_whose_reply_was_lost_is_the_own_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", link_with_lost_reply)
    manifest = publish(tmp_path)
    assert shards.read_manifest_table(manifest, PROBLEMS, checksum=True).equals(problems())
    assert publish(tmp_path, problems(2)).files == manifest.files  # the first writer still wins
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_can_be_published(tmp_path: Path) -> None:
    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "a.bin").write_bytes(b"abc")
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_bytes(b"b")
        return {"t.parquet": shards.write_frame(folder / "t.parquet", problems(), PROBLEMS)}

    manifest = manifests.publish(tmp_path, "m", fill, as_folder=True, stats=lambda: {"x": 1})
    assert manifest.file("a.bin").read_bytes() == b"abc"
    assert manifest.file(".txt") == manifest.folder / "inner" / "b.txt"
    manifests.check_files(manifest, checksum=True)
    assert manifest.stats == {"x": 1}
    assert shards.read_manifest_table(manifest, PROBLEMS).height == 3


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "manifest"])
def test_damage_is_found_and_set_aside(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "VISIBILITY_DELAYS_S", (0.01,))
    manifest = publish(tmp_path)
    data = tmp_path / manifest.files[0].name
    if damage == "truncate":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "alter":
        flip_a_byte(data)
    elif damage == "remove":
        data.unlink()
    else:
        manifest.path.write_bytes(manifest.path.read_bytes()[:-20])
    with pytest.raises(manifests.DamagedError) as caught:
        manifests.check_files(manifests.read_manifest(manifest.path), checksum=True)
    assert caught.value.manifest_path == manifest.path
    manifests.set_aside(manifest.path)
    assert manifests.list_manifests(tmp_path) == []
    assert shards.read_manifest_table(publish(tmp_path), PROBLEMS, checksum=True).equals(problems())


def test_a_file_that_becomes_visible_late_is_waited_for(tmp_path: Path) -> None:
    manifest = publish(tmp_path)
    data = tmp_path / manifest.files[0].name
    hidden = data.rename(tmp_path / "hidden")
    timer = threading.Timer(0.5, hidden.rename, [data])
    timer.start()
    manifests.check_files(manifest, checksum=True)
    timer.join()


def test_a_file_that_is_missing_long_after_its_publication_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("it waits")

    replace_sleep(monkeypatch, manifests, sleep)
    published_s = manifests.time.time() - 2 * manifests.VISIBILITY_WINDOW_S
    assert not manifests.is_visible(tmp_path / "absent", published_s=published_s)
    with pytest.raises(AssertionError, match="it waits"):
        manifests.is_visible(tmp_path / "absent", published_s=manifests.time.time())


@pytest.mark.parametrize("altered", ["weights.bin", "t.parquet"])
def test_checksums_are_compared_for_all_files_only_for_tables_or_not_at_all(tmp_path: Path, altered: str) -> None:
    def fill(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "weights.bin").write_bytes(bytes(100))
        return {"t.parquet": shards.write_frame(folder / "t.parquet", problems(), PROBLEMS)}

    manifest = manifests.publish(tmp_path, "m", fill, as_folder=True)
    flip_a_byte(manifest.file(altered))
    manifests.check_files(manifest, checksum=False)
    with pytest.raises(manifests.DamagedError, match=f"{altered}: checksum differs"):
        manifests.check_files(manifest, checksum=True)
    if altered == "t.parquet":
        with pytest.raises(manifests.DamagedError, match="checksum differs"):
            manifests.check_files(manifest, checksum=True, tables_only=True)
    else:
        manifests.check_files(manifest, checksum=True, tables_only=True)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    manifest = publish(tmp_path)
    body = json.loads(manifest.path.read_text())
    manifest.path.write_text(json.dumps({**body, "schema_version": 999}))
    with pytest.raises(StoreError, match="schema version 999"):
        manifests.read_manifest(manifest.path)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (problems().drop("gold"), "missing \\['gold'\\]"),
        (problems().with_columns(x=1), "unknown \\['x'\\]"),
        (problems().with_columns(gold=pl.lit(None, pl.String)), "row 0: null in \\['gold'\\]"),
        (problems().with_columns(problem_id=pl.lit("p")), "occurs twice"),
        (problems().with_columns(gold=pl.lit(1)), "gold is Int32"),
    ],
)
def test_frames_are_checked_when_written(tmp_path: Path, frame: pl.DataFrame, expected: str) -> None:
    with pytest.raises(StoreError, match=expected):
        publish(tmp_path, frame)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "columns", "expected"),
    [
        ({"problem_id": pl.lit("p")}, ["gold", "problem_id"], "row 0: {'problem_id': 'p'} occurs twice"),
        ({"gold": pl.lit(None, pl.String)}, ["gold"], r"row 0: null in \['gold'\]"),
        ({"gold": pl.lit(1, pl.Int32)}, ["gold", "question"], "gold is Int32, not String"),
        ({"problem_id": pl.lit("p")}, ["gold"], None),
        ({"gold": pl.lit(None, pl.String)}, ["problem_id"], None),
    ],
)
def test_columns_that_are_read_are_checked(
    tmp_path: Path, change: dict[str, pl.Expr], columns: list[str], expected: str | None
) -> None:
    """The manifest agrees with the file. The key is checked if all its columns are read."""
    frame = problems().with_columns(**change)

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        frame.write_parquet(temporary / "shard.parquet")
        return {"shard.parquet": (frame.height, PROBLEMS.name)}

    manifest = manifests.publish(tmp_path, "train", fill, as_folder=False)
    if expected is None:
        assert shards.read_manifest_table(manifest, PROBLEMS, columns=columns).equals(frame.select(columns))
        return
    with pytest.raises(StoreError, match=expected):
        shards.read_manifest_table(manifest, PROBLEMS, columns=columns)


def test_nullable_columns_may_be_null() -> None:
    row = {
        "run_id": "r",
        "iteration": 1,
        "model": "m",
        "problem_id": "p",
        "cold_failed": True,
        "num_hint_tokens": 0,
        "reason": "no_teacher",
        "hint_draws": [],
    }
    check_frame(pl.DataFrame([row], schema=HINTS.schema), HINTS, source="test")


HINT_ROW = {
    "run_id": "r",
    "iteration": 1,
    "model": "m",
    "problem_id": "p",
    "cold_failed": True,
    "hint": "Add.",
    "num_hint_tokens": 1,
    "reason": "rescue",
    "hint_draws": [True],
    "leak": "none",
}


def publish_as_before(folder: Path, frame: pl.DataFrame) -> manifests.Manifest:
    """Publish hints as an earlier version wrote them, without a check of the columns."""

    def fill(temporary: Path) -> dict[str, tuple[int, str]]:
        frame.write_parquet(temporary / "shard.parquet")
        return {"shard.parquet": (frame.height, HINTS.name)}

    return manifests.publish(folder, "team-p000", fill, as_folder=False)


def test_a_column_that_was_added_later_is_null_in_earlier_files(tmp_path: Path) -> None:
    new = pl.DataFrame([HINT_ROW], schema=HINTS.schema)
    manifest = publish_as_before(tmp_path, new.drop("leak"))
    read = shards.read_manifest_table(manifest, HINTS)
    assert read.schema == HINTS.schema
    assert read["leak"].to_list() == [None]
    assert read.drop("leak").equals(new.drop("leak"))
    some = shards.read_manifest_table(manifest, HINTS, columns=["leak", "model"])
    assert some.rows() == [(None, "m")]
    assert some.columns == ["leak", "model"]
    assert shards.read_manifest_table(manifest, HINTS, columns=["model"]).rows() == [("m",)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f.drop("leak", "reason"), "missing \\['reason'\\]"),
        (lambda f: f.drop("leak").with_columns(x=1), "unknown \\['x'\\]"),
    ],
)
def test_other_differences_of_earlier_files_are_still_refused(
    tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], expected: str
) -> None:
    manifest = publish_as_before(tmp_path, change(pl.DataFrame([HINT_ROW], schema=HINTS.schema)))
    with pytest.raises(StoreError, match=expected):
        shards.read_manifest_table(manifest, HINTS)


def test_a_column_that_was_added_later_must_be_written(tmp_path: Path) -> None:
    frame = pl.DataFrame([HINT_ROW], schema=HINTS.schema).drop("leak")
    with pytest.raises(StoreError, match="missing \\['leak'\\]"):
        shards.publish_frame(tmp_path, "team-p000", frame, HINTS)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_columns_that_were_added_later_may_be_null(table: Table) -> None:
    assert table.added <= table.nullable <= set(table.schema)


def test_leftovers_are_removed_and_publications_kept(tmp_path: Path) -> None:
    manifest = publish(tmp_path)
    aside = manifests.set_aside(manifest.path)
    kept = {aside.name, manifest.files[0].name, *(f.name for f in publish(tmp_path).files), "train.manifest.json"}
    (tmp_path / "train.0123456789ab.parquet").touch()
    (tmp_path / ".train.0123456789ab.tmp").mkdir()
    (tmp_path / ".train.manifest.json.0123456789ab.tmp").touch()
    assert leftovers.remove_leftovers(tmp_path) == 3
    assert {p.name for p in tmp_path.iterdir()} == kept


def test_leftovers_that_were_written_lately_are_kept_where_their_writer_may_be_alive(tmp_path: Path) -> None:
    for uid, written in (("0" * 12, 10.0), ("1" * 12, 30.0)):
        folder = tmp_path / f".model.{uid}.tmp"
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "state").touch()
        for path in (folder / "inner" / "state", folder / "inner", folder):
            os.utime(path, (written, 20.0 if path.is_dir() and written > 20.0 else written))
    assert leftovers.remove_leftovers(tmp_path, unchanged_since=25.0) == 1
    assert [path.name for path in tmp_path.iterdir()] == [f".model.{'1' * 12}.tmp"]


def test_an_output_folder_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_folder.require_writable(tmp_path / "new" / "deeper", min_free_gb=0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        output_folder.require_writable(tmp_path / "file" / "x", min_free_gb=0)
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    with pytest.raises(
        InputError, match=r"link: is a link to .*/scratch, which does not exist; make it, or set `output`"
    ):
        output_folder.require_writable(tmp_path / "link" / "x", min_free_gb=0)
    with pytest.raises(InputError, match="GB free"):
        output_folder.require_writable(tmp_path, min_free_gb=1e9)
    # Tests may run as root, which may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="no permission"):
        output_folder.require_writable(tmp_path, min_free_gb=0)


# --- names and manifests that core_hpc does not write --------------------------------------------


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?b", "[ab]", "iteration=7", "{x}", "a b"])
def test_paths_are_names_and_never_patterns(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    manifest = publish(folder)
    assert shards.read_manifest_table(manifest, PROBLEMS, checksum=True).equals(problems())
    earlier = publish_as_before(folder, pl.DataFrame([HINT_ROW], schema=HINTS.schema).drop("leak"))
    assert shards.read_manifest_table(earlier, HINTS)["leak"].to_list() == [None]
    assert parquet.scan([folder / manifest.files[0].name]).collect().equals(problems())


def test_a_panic_of_polars_is_an_error_like_other_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception is no `Exception`, so it would end a controller. Altered files cause it (test_fuzz_problems)."""

    def panic(*arguments: object, **named: object) -> None:
        raise pl.exceptions.PanicException("assertion failed: offset + length <= self.length")

    monkeypatch.setattr(pl, "read_parquet", panic)
    monkeypatch.setattr(pl.LazyFrame, "collect", panic)
    for read in (lambda: parquet.read(tmp_path), lambda: parquet.collect(pl.LazyFrame())):
        with pytest.raises(pl.exceptions.ComputeError, match="Polars failed inside the file: assertion failed"):
            read()


def test_only_one_module_opens_parquet_files() -> None:
    """So that no reader takes a path for a pattern."""
    root = Path(parquet.__file__).parents[2]
    sources = [p for package in ("core_hpc", "analysis") for p in (root / package).rglob("*.py")]
    readers = re.compile(r"\b(read|scan)_parquet\w*\(|ParquetFile\(|parquet\.read_table\(")
    assert [p.name for p in sources if readers.search(p.read_text(encoding="utf-8"))] == ["parquet.py"]


FOREIGN = (
    "cold/iteration=0001/notes.manifest.json",
    "cold/iteration=0001/m0-p000 (copy).manifest.json",
    "cold/iteration=0001/m0-p0.manifest.json",
    "cold/iteration=0001/README.txt",
    "cold/iteration=0001/m0-p000.0123456789ab.parquet.bak",
    "cold/iteration=0001.bak/m0-p000.manifest.json",
    "cold/iteration=1/m0-p000.manifest.json",
    "cold/notes.md",
)
"""Files that a user may put into a run folder."""


def test_a_link_to_a_run_is_not_another_run(tmp_path: Path) -> None:
    for name in ("a-00000000", "b-00000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
    (tmp_path / "latest").symlink_to("b-00000000")
    assert [path.name for path in runs_in(tmp_path)] == ["a-00000000", "b-00000000"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b-00000000").rename(tmp_path / "elsewhere" / "b")
    (tmp_path / "latest").unlink()
    (tmp_path / "b-00000000").symlink_to("elsewhere/b")  # a run that was moved to another disk
    assert [path.name for path in runs_in(tmp_path)] == ["a-00000000", "b-00000000"]


def test_names_of_a_user_are_ignored_listed_and_kept(tmp_path: Path) -> None:
    key = TaskKey(1, "cold", "m0")
    folder = RunPaths(tmp_path).task_folder(key)
    shards.publish_frame(folder, RunPaths(tmp_path).task_name(key), problems(), PROBLEMS)
    for name in FOREIGN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    links = [folder / "link", folder / "m0-p001.0123456789ab"]
    for link in links:
        link.symlink_to(tmp_path / "elsewhere")
    assert shards.published_keys(tmp_path) == [key]
    listed = {str(path.relative_to(tmp_path)) for path in leftovers.foreign_names(tmp_path)}
    in_folders = {name if "iteration=0001/" in name else str(Path(*Path(name).parts[:2])) for name in FOREIGN}
    assert listed == in_folders | {"cold/iteration=0001/link"}
    assert leftovers.remove_leftovers(folder) == 0
    assert all((tmp_path / name).read_text() == "mine" for name in FOREIGN)
    assert (tmp_path / "elsewhere" / "precious").exists()
    assert all(link.is_symlink() for link in links)


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda body: {k: v for k, v in body.items() if k != name}


def with_file(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda body: {**body, "files": [{**body["files"][0], **changes}]}


@pytest.mark.parametrize(
    "change",
    [
        *(without(name) for name in ("files", "stats", "writer", "schema_version")),
        *(lambda body, v=value: {**body, "files": v} for value in ([], {}, None, [None], [[]], ["x"], [{}])),
        *(lambda body, v=value: {**body, "writer": v} for value in ({}, None, [], {"time": None}, {"time": "now"})),
        *(lambda body, v=value: {**body, "stats": v} for value in (None, [], 3)),
        *(with_file(rows=v) for v in (None, -1, "3", 3.5, True)),
        *(with_file(bytes=v) for v in (None, -1, "3")),
        *(with_file(name=v) for v in ("/etc/passwd", "../train.x", "other.0123456789ab.parquet", 3)),
        lambda body: {**body, "writer": {"time": float("nan")}},
        lambda body: [body],
        lambda body: None,
        lambda body: "text",
    ],
)
def test_a_manifest_of_a_wrong_shape_is_damage(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = publish(tmp_path)
    manifest.path.write_text(json.dumps(change(json.loads(manifest.path.read_text()))))
    with pytest.raises(manifests.DamagedError, match="torn or altered") as caught:
        manifests.read_manifest(manifest.path)
    assert caught.value.manifest_path == manifest.path
    manifests.set_aside(manifest.path)
    assert shards.read_manifest_table(publish(tmp_path), PROBLEMS, checksum=True).equals(problems())


@pytest.mark.parametrize(
    "look",
    [
        lambda root: manifests.list_names(root),
        lambda root: manifests.list_manifests(root),
        lambda root: manifests.is_visible(root / "train.manifest.json", published_s=0.0),
        lambda root: shards.published_keys(root),
        lambda root: leftovers.remove_leftovers(root),
        lambda root: leftovers.foreign_names(root),
        lambda root: SubmissionFolder(root).names(OPEN),
        lambda root: claims.read_holder(root / "claim.json"),
        lambda root: list_runs(root),
        lambda root: locate(root),
    ],
)
def test_what_a_file_system_that_fails_does_not_show_is_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object]
) -> None:
    fail_below(monkeypatch, tmp_path)
    with pytest.raises((OSError, StoreError), match="Input/output error"):
        look(tmp_path)


def test_a_file_system_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = publish(tmp_path)

    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(StoreError, match="Input/output error") as caught:
        manifests.read_manifest(manifest.path)
    assert not isinstance(caught.value, manifests.DamagedError)
