"""Outcomes and flags against a loop, details, the folder of the page, and the server's answers."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.browse.content import Block, Content, data_file
from analysis.browse.details import CHANGED, CUT, KEPT, Reader, compared
from analysis.browse.export import choose, export
from analysis.browse.outcomes import BIT, OUTCOMES, outcomes_of
from analysis.browse.server import BrowseServer
from analysis.counts.load import RunData, load_run, problems_of
from analysis.report.evaluation_tables import pass_table
from analysis.report.links import linked
from core_hpc.common.errors import InputError, StoreError
from core_hpc.store.paths import RunPaths
from tests.support.analysis_data import evaluation_rows, make_run, publish_rollouts, rollout, run_with_set
from tests.support.report_data import MARKUP, full_run


def loaded(folder: Path) -> tuple[RunData, pl.DataFrame]:
    data = load_run(folder, answers=False)
    return data, problems_of(data.path, data.config)


def flags_of(data: list[tuple[RunData, pl.DataFrame]], position: int = 0) -> dict[tuple[Any, ...], set[str]]:
    """(split, iteration, model, problem) -> names of the flags."""
    frame = outcomes_of([d for d, _ in data], [p for _, p in data])[position]
    assert frame.schema == OUTCOMES
    return {
        (row["split"], row["iteration"], row["model"], row["problem_id"]): {
            name for name, bit in BIT.items() if row["flags"] & bit
        }
        for row in frame.iter_rows(named=True)
    }


def evaluated(folder: Path, *evaluations: dict[str, list[list[bool]]]) -> tuple[RunData, pl.DataFrame]:
    run = make_run(folder)
    publish_rollouts(run, [row for i, correct in enumerate(evaluations) for row in evaluation_rows(correct, i)])
    return loaded(run)


def test_flags_of_evaluations_follow_the_iterations(tmp_path: Path) -> None:
    before = {"ada": [[True, False], [False, False], [False, False]], "bob": [[False] * 2, [True] * 2, [False] * 2]}
    after = {"ada": [[False, False], [True, True], [False, False]], "bob": [[False] * 2, [True] * 2, [False] * 2]}
    flags = flags_of([evaluated(tmp_path / "run", before, after)])
    assert flags["evaluation", 0, "ada", "p0"] == {"only"}
    assert flags["evaluation", 0, "bob", "p0"] == {"fails"}
    assert flags["evaluation", 1, "ada", "p0"] == {"fails", "all_fail", "lost"}
    assert flags["evaluation", 1, "bob", "p0"] == {"fails", "all_fail"}
    assert flags["evaluation", 1, "ada", "p1"] == {"gained"}
    assert flags["evaluation", 1, "bob", "p1"] == set()
    assert flags["evaluation", 0, "ada", "p2"] == flags["evaluation", 1, "bob", "p2"] == {"fails", "all_fail"}


def test_runs_disagree_where_one_solves_and_another_fails(tmp_path: Path) -> None:
    runs = [
        evaluated(tmp_path / "a", {"ada": [[True], [True]], "bob": [[False], [True]]}),
        evaluated(tmp_path / "b", {"ada": [[False], [True]], "bob": [[False], [True]]}),
    ]
    for position in (0, 1):
        flags = flags_of(runs, position)
        assert {key[2:] for key, names in flags.items() if "runs_differ" in names} == {("ada", "p0")}
    # The same id with another question is another problem.
    renamed = runs[1][1].with_columns(question=pl.lit("Another question?"))
    assert not any("runs_differ" in names for names in flags_of([runs[0], (runs[1][0], renamed)]).values())


def test_further_sets_of_the_evaluation_are_problems_like_others(tmp_path: Path) -> None:
    data, problems = loaded(run_with_set(tmp_path / "run"))
    flags = flags_of([(data, problems)])
    assert {problem: flags["evaluation", 0, "ada", problem] for problem in ("p0", "p1", "long/p0", "long/p1")} == {
        "p0": {"only"},
        "p1": {"fails", "all_fail"},
        "long/p0": {"fails", "all_fail"},
        "long/p1": {"only"},
    }
    content = Content([data], title="run")
    index, block = content.index(live=True), Block(0, "evaluation", 0)
    assert (index["runs"][0]["sets"], index["blocks"][0]["rows"]) == (["long"], 4)
    shown = content.problems(0, "evaluation")["problem_id"]
    assert [shown[position] for position in content.block(block)["problems"]] == ["long/p0", "long/p1", "p0", "p1"]
    # The tables of a report are about the main set, so their rows link to it.
    links = linked(pass_table(data, [1]), data).links.values()
    assert links
    assert all("set=problems.evaluation" in link for link in links)


def training_run(folder: Path) -> Path:
    """Ada fails on t0 and t1 and solves t2; bob solves all. The hint rescues t0, harms t1 and t2."""
    solved = {"ada": "t2", "bob": "t0 t1 t2"}
    rows = [
        rollout(
            model=model,
            problem_id=p,
            sample_index=s,
            correct=p in solved[model].split() and s == 0,
            verdict="correct" if p in solved[model].split() and s == 0 else ("no_answer", "timeout")[p == "t1"],
            finish_reason="length" if p == "t2" and s else "stop",
        )
        for model in ("ada", "bob")
        for p in ("t0", "t1", "t2")
        for s in range(2)
    ]
    with_hint = {"t0": True, "t1": False, "t2": False}
    rows += [
        rollout(
            phase="rescue",
            problem_id=p,
            sample_index=s,
            hint_given=s == 0,
            correct=with_hint[p] if s == 0 else p == "t1",
            cold_failed=p != "t2",
            teacher_model="bob",
            teacher_sample_index=0,
        )
        for p in ("t0", "t1", "t2")
        for s in range(2)
    ]
    run = make_run(folder)
    config = json.loads(RunPaths(run).config.read_text())
    config["protocol"]["even_budget"] = True
    RunPaths(run).config.write_text(json.dumps(config))
    rows += [
        rollout(phase="rescue", model="bob", problem_id=p, sample_index=s, cold_failed=False, correct=True)
        for p in ("t0", "t1", "t2")
        for s in range(2)
    ]
    publish_rollouts(run, rows)
    return run


def test_flags_of_training_problems(tmp_path: Path) -> None:
    flags = flags_of([loaded(training_run(tmp_path / "run"))])
    assert flags["train", 1, "ada", "t0"] == {"fails", "rescued", "no_answer"}
    assert flags["train", 1, "ada", "t1"] == {"fails", "harmed", "timeout"}
    assert flags["train", 1, "ada", "t2"] == {"harmed", "truncated", "no_answer"}
    assert flags["train", 1, "bob", "t0"] == {"only", "no_answer"}


def test_details_have_everything_that_is_stored(tmp_path: Path) -> None:
    data, problems = loaded(full_run(tmp_path / "run"))
    first, second = Reader(data, problems).read("train", 1, ["t1", "t0"])
    assert (first.problem_id, second.problem_id) == ("t1", "t0")
    assert (second.question, second.gold) == ("What?", "2")
    ada, bob = second.models
    assert [c.text for c in ada.completions] == [f"cold ada t0 {s} {MARKUP}" for s in range(2)]
    assert [(c.sample, c.hinted, c.verdict) for c in ada.rescues] == [
        (0, True, "wrong"),
        (1, True, "correct"),
        (2, False, "wrong"),
    ]
    assert (ada.completions[0].reward, ada.completions[0].advantage) == (0.0, 0.0)
    assert set(ada.completions[0].parts) == {"exploit", "explore", "rescue", "trace_accuracy", "cross"}
    assert ada.completions[0].logprobs == (-0.5,)
    assert ada.hint is not None
    assert (ada.hint.teacher, ada.hint.sample, ada.hint.text) == ("bob", 0, f"hint t0 {MARKUP}")
    assert bob.hint is None
    assert bob.rescues == []
    (held_out,) = Reader(data, problems).read("evaluation", 1, ["p0"])
    assert held_out.models[0].completions[0].reward is None
    assert len(held_out.models[0].completions) == 4


def test_a_hint_of_another_problem_is_not_compared(tmp_path: Path) -> None:
    data, problems = loaded(full_run(tmp_path / "run", hint_problem="t1"))
    of_other, of_own = (detail.models[0].hint for detail in Reader(data, problems).read("train", 1, ["t0", "t1"]))
    assert of_other is not None
    assert of_own is not None
    assert (of_other.other_problem, of_other.segments) == ("t1", ())
    assert of_own.other_problem is None
    assert of_own.segments
    ((_, content),) = Content([data], title="run").details(Block(0, "train", 1), ["t0"])
    assert content["models"][0]["hint"]["other_problem"] == "t1"


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("Add them: 3 + 4 = 7. #### 7", "Add them: 3 + 4 = 7."),
        ("<think>no 9</think>First so.\n\nThe answer is 4", "First so."),
        ("same", "same"),
        ("old words", "other text"),
        ("long " * 5000 + "end", "long " * 100),
    ],
)
def test_the_compared_parts_give_both_texts_again(source: str, hint: str) -> None:
    parts = compared(source, hint)
    assert "".join(text for kind, text in parts if kind in (KEPT, CUT)) == source
    assert "".join(text for kind, text in parts if kind in (KEPT, CHANGED)) == hint


def read_data(path: Path) -> Any:
    """The content of a data file, as a JSON parser reads it."""
    text = path.read_text(encoding="ascii")
    name, _, content = text.removeprefix("browse.put(").removesuffix(");\n").partition(",")
    assert json.loads(name) == path.stem
    assert "<" not in text
    return json.loads(content)


def test_the_folder_has_all_outcomes_and_the_chosen_texts(tmp_path: Path) -> None:
    data, problems = loaded(full_run(tmp_path / "run"))
    content = Content([data], title="run")
    out = tmp_path / "page"
    written = export(content, out, title="a <b> title")
    assert (written.num_problems, written.num_with_texts) == (8, 8)  # 2 training problems, 3 held-out ones twice
    assert "a &lt;b&gt; title" in written.page.read_text()
    index = read_data(out / "data" / "index.js")
    assert [(b["split"], b["iteration"], b["rows"]) for b in index["blocks"]] == [
        ("evaluation", 0, 3),
        ("evaluation", 1, 3),
        ("train", 1, 2),
    ]
    known, block = read_data(out / "data" / "p0-train.js"), read_data(out / "data" / "b0-train-1.js")
    assert [known["problem_id"][p] for p in block["problems"]] == ["t0", "t1"]
    rows = outcomes_of([data], [problems])[0].filter(split="train", model="ada").sort("problem_id")
    assert block["hinted_c"][0] == rows["hinted_c"].to_list() == [1, 1]
    assert block["flags"][0] == rows["flags"].to_list()
    texts = read_data(out / "data" / f"d0-train-1-{block['details'][0]}.js")["t0"]
    assert texts["models"][0]["completions"][1]["text"] == f"cold ada t0 1 {MARKUP}"
    # A smaller export replaces the folder and keeps the outcomes of all problems.
    other = out / "data" / "notes.txt"
    other.write_text("mine")
    smaller = export(content, out, title="run", num_completions=1)
    assert smaller.num_with_texts == 1
    assert other.exists()
    assert len(list((out / "data").glob("d*.js"))) == 1
    assert "1 of 8" in read_data(out / "data" / "index.js")["left_out"]


def test_a_limited_export_has_every_flag_and_iteration(tmp_path: Path) -> None:
    correct = [[[s < p % 3 for s in range(2)] for p in range(60)] for _ in range(3)]
    data, _ = evaluated(tmp_path / "run", *({"ada": c, "bob": c[::-1]} for c in correct))
    content = Content([data], title="run")
    chosen = choose({block: content.sizes(block) for block in content.blocks}, 100)
    sizes = [size for block in chosen.values() for size in block.values()]
    assert sum(sizes) == 100
    assert set(chosen) == {Block(0, "evaluation", i) for i in range(3)}
    for block, problems in chosen.items():
        frame = content.sizes(block)
        flags = dict(frame.select("problem_id", "flags").iter_rows())
        for bit in BIT.values():
            if any(value & bit for value in flags.values()):
                assert any(flags[problem] & bit for problem in problems)


def test_a_data_file_cannot_end_a_script() -> None:
    text = data_file("x", {"a": "</script><!--\u2028\u00e9\ud800"}).decode("ascii")
    assert "<" not in text
    assert text.count("\n") == 1


def test_a_port_that_cannot_be_used_is_an_error_with_advice(tmp_path: Path) -> None:
    data, _ = loaded(full_run(tmp_path / "run"))
    content = Content([data], title="run")
    with BrowseServer(content, title="run") as server:
        for port, why in ((server.port, "Address already in use"), (99999, "ports are 0 to 65535")):
            with pytest.raises(InputError, match=f"--port {port}: {why}; choose another"):
                BrowseServer(content, title="run", port=port)


def test_the_server_reads_on_demand_and_answers_nothing_else(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    data, _ = loaded(run)
    with BrowseServer(Content([data], title="run"), title="run") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def get(path: str, base: str = server.address) -> str:
            with urllib.request.urlopen(base + path, timeout=30) as answer:
                return str(answer.read().decode())

        def status(path: str, base: str = server.address) -> int:
            with pytest.raises(urllib.error.HTTPError) as error:
                get(path, base)
            error.value.close()
            return error.value.code

        assert "Content-Security-Policy" in get("")
        index = json.loads(get("data/index.js").removeprefix('browse.put("index",').removesuffix(");\n"))
        assert index["live"]
        assert f"rescue t1 2 {MARKUP}".replace("<", "\\u003c") in get("data/d0-train-1-1.js")
        for path in (
            "data/d0-train-1-2.js",
            "data/b1-train-1.js",
            "data/../run.json",
            "run.json",
            "data/b0-train-9.js",
        ):
            assert status(path) == 404
        assert status("", f"http://127.0.0.1:{server.port}/") == 404
        assert status("data/index.js", f"http://127.0.0.1:{server.port}/guessed/") == 404
        next((run / "cold" / "iteration=0001").glob("ada-p000.*.parquet")).write_bytes(b"no Parquet")
        assert "error" in get("data/d0-train-1-0.js")
        server.shutdown()


def test_without_completions_there_is_no_page(tmp_path: Path) -> None:
    data, _ = loaded(make_run(tmp_path / "run"))
    with pytest.raises(InputError, match="no completions are published yet"):
        Content([data], title="run")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    data, problems = loaded(full_run(tmp_path / "run"))
    shard = next((data.path / "cold" / "iteration=0001").glob("bob-p000.*.parquet"))
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(StoreError, match=shard.name):
        list(Reader(data, problems).read("train", 1, ["t0"]))
