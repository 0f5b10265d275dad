"""report.html: one file without network and scripts, escaped texts, correct numbers."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl

import polars as pl
import pytest

from analysis.browse.outcomes import BIT
from analysis.counts.load import load_run
from analysis.layout.tables import ReportTable, laid_out
from analysis.report.links import LINKED
from analysis.report.page import Section, page
from analysis.report.report import write_report
from analysis.report.samples import NUM_RESCUES, RESCUES, sample_rescues
from tests.support.analysis_data import make_run, publish_rollouts, rollout
from tests.support.parsing import Page
from tests.support.report_data import MARKUP, full_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run."""
    folder = tmp_path_factory.mktemp("report")
    write_report(load_run(full_run(folder / "run")), folder / "out")
    return folder / "out"


def test_the_page_needs_no_other_file(out: Path) -> None:
    text = (out / "report.html").read_text()
    parsed = Page(text)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in parsed.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "action", "style"):
            value = attributes.get(name) or "#"
            allowed = ("#", "browse/index.html#") if tag == "a" else ("data:image/svg+xml;base64,", "#")
            assert value.startswith(allowed), f"{tag} {name}"
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    (policy,) = [
        a["content"] for tag, a in parsed.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert sum(tag == "img" for tag, _ in parsed.tags) == 7  # the run has no recorded times
    anchors = {a["id"] for _, a in parsed.tags if "id" in a}
    links = {a["href"] or "" for tag, a in parsed.tags if tag == "a"}
    assert (
        {link[1:] for link in links if link.startswith("#")}
        == anchors
        == {"summary", "passk", "votes", "selectors", "rescue", "overlap", "training", "time", "run"}
    )


def test_every_row_about_problems_links_to_them(out: Path) -> None:
    text = (out / "report.html").read_text()
    views = [
        dict(parse_qsl((a["href"] or "").partition("#")[2]))
        for tag, a in Page(text).tags
        if tag == "a" and (a["href"] or "").startswith("browse/")
    ]
    assert (out / "browse" / "index.html").is_file()
    # Every row of these tables has a link; the others belong to the list of rescues and to the whole page.
    written = [path.read_text() for path in (out / "tables").glob("*.md") if path.stem in LINKED]
    num_rows = sum(max(0, sum(line.startswith("|") for line in text.splitlines()) - 2) for text in written)
    assert len(views) >= num_rows > 30
    for view in views:
        assert view.keys() <= {"split", "iteration", "filter", "problem"}
        assert view.get("split", "train") in ("train", "evaluation")
        for chosen in filter(None, view.get("filter", "").split(",")):
            name, _, model = chosen.partition(":")
            assert name in BIT
            assert model in ("", "ada", "bob")
        if "iteration" in view:
            assert (out / "browse" / "data" / f"b0-{view['split']}-{view['iteration']}.js").is_file()
    shown = [view for view in views if view]
    assert {"split": "evaluation", "filter": "fails:ada"} in shown
    assert {"split": "evaluation", "filter": "all_fail"} in shown
    assert {"split": "evaluation", "filter": "only:bob"} in shown
    assert {"split": "train", "filter": "rescued:ada"} in shown
    assert {"split": "train", "iteration": "1", "problem": "t0"} in shown


def test_completions_are_shown_as_text(out: Path) -> None:
    text = (out / "report.html").read_text()
    shown = Page(text).text
    for problem in ("t0", "t1"):
        for part in (f"cold ada {problem} 0", f"hint {problem}", f"rescue {problem} 1"):
            assert f"{part} {MARKUP}" in shown
    assert "<script>" not in text
    assert "cold bob" not in shown  # the peer's completion appears as the hint only


def test_numbers_on_the_page_are_those_of_the_csv(out: Path) -> None:
    tables = Page((out / "report.html").read_text()).tables
    (shown,) = [
        t
        for t in tables
        if t and t[0][:3] == ["candidates", "model", "measure"] and "difference" in t[0] and "coverage" in t[-1]
    ]
    levels = pl.read_csv(out / "tables" / "pass.csv")
    compared = 0
    for cells in shown[1:]:
        row = dict(zip(shown[0], cells, strict=True))
        found = levels.filter(model=row["model"], candidates=int(row["candidates"]))
        found = found.filter((pl.col("measure") == "coverage") == (row["measure"] == "coverage"))
        for when in ("before", "after", "difference"):
            estimates = found.filter(when=when)["estimate"].unique()
            if row[when] == "–":
                assert estimates.to_list() == [None]
            else:
                numbers = [float(x) / 100 for x in re.findall(r"[+-]?\d+\.\d", row[when])]
                assert numbers[0] == pytest.approx(estimates.item(), abs=6e-4)
                compared += 1
    assert compared > 15


def test_links_and_names_are_escaped() -> None:
    name = 'a"><b>&'
    table = ReportTable("t", name, pl.DataFrame(), laid_out([name], [[name]]), [name])
    figures, links = [(name, name, "<svg/>")], [(name, name)]
    section = Section(name="x", title=name, figures=figures, tables=[table], folded=[table], links=links)
    parsed = Page(page(name, name, [name], [section]))
    assert "b" not in {tag for tag, _ in parsed.tags}
    # 7: title (twice), lead, warning, section, link and caption of the figure.
    # 2 x 4: caption, head, cell and note of both tables. 1: summary of the collapsed table.
    assert parsed.text.count(name) == 7 + 2 * 4 + 1
    assert [a["href"] for tag, a in parsed.tags if tag == "a"] == [name]
    assert [a["alt"] for tag, a in parsed.tags if tag == "img"] == [name]


# --- the sample of rescues -----------------------------------------------------------------------


def test_sample_has_the_first_failure_and_the_first_rescue(tmp_path: Path) -> None:
    frame, num = sample_rescues(load_run(full_run(tmp_path / "run")))
    assert frame.schema == RESCUES
    assert num == 2
    assert frame.select("model", "problem_id", "teacher_model", "gold", "cold_text", "hint", "rescued_text").rows() == [
        ("ada", t, "bob", "2", f"cold ada {t} 0 {MARKUP}", f"hint {t} {MARKUP}", f"rescue {t} 1 {MARKUP}")
        for t in ("t0", "t1")
    ]


def test_sample_is_small_and_reproducible(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    problems = [f"t{i:02d}" for i in range(30)]
    cold = [
        rollout(model=m, problem_id=t, correct=m == "bob", text=f"cold {m} {t}")
        for t in problems
        for m in ("ada", "bob")
    ]
    rescues = [
        rollout(
            phase="rescue",
            model="ada",
            problem_id=t,
            hint_given=i % 3 > 0,
            correct=i % 2 == 0,
            cold_failed=True,
            teacher_model="bob",
            teacher_sample_index=0,
            text=f"again {t}",
        )
        for i, t in enumerate(problems)
    ]
    publish_rollouts(run, [*cold, *rescues])
    rescued = [t for i, t in enumerate(problems) if i % 3 > 0 and i % 2 == 0]
    frame, num = sample_rescues(load_run(run))
    assert num == len(rescued) == 10
    assert frame.height == NUM_RESCUES
    assert set(frame["problem_id"]) < set(rescued)
    assert frame["cold_text"].to_list() == [f"cold ada {t}" for t in frame["problem_id"]]
    assert frame["rescued_text"].to_list() == [f"again {t}" for t in frame["problem_id"]]
    assert frame["hint"].null_count() == NUM_RESCUES  # no hint is published here
    assert sample_rescues(load_run(run))[0].equals(frame)


def test_sample_of_a_run_without_rescues(tmp_path: Path) -> None:
    frame, num = sample_rescues(load_run(make_run(tmp_path / "run")))
    assert (frame.height, frame.schema, num) == (0, RESCUES, 0)
