"""The page report.html: one file with its style and figures inside, without scripts.

The input is the sections of a report. The output is HTML text. All text from a run (names,
questions, completions) is escaped, and the page forbids scripts and network access, so the output
of a model remains text. This module computes nothing.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from analysis.layout.formats import to_html
from analysis.layout.tables import ReportTable
from analysis.report.links import address
from core_hpc.problems.splits import TRAIN

_STYLE = """
:root {
  color-scheme: light dark;
  --back: #fff; --text: #1a1a1a; --quiet: #555; --line: #ccc; --rule: #333; --link: #0b5394; --panel: #f6f6f6;
  --warn: #fff4e0; --edge: #d98200;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --back: #14181d; --text: #e4e8ec; --quiet: #a3adb8; --line: #3a434d; --rule: #8b96a1; --link: #79b8ff;
    --panel: #1d232a; --warn: #3a2d10; --edge: #f0a020;
  }
}
body {
  font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 68rem; margin: 0 auto; padding: 1.5rem;
}
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
nav a { margin-right: 1rem; } a { color: var(--link); }
.wide { overflow-x: auto; margin: .8rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; white-space: nowrap; }
th, td { padding: .15rem .7rem .15rem 0; text-align: left; white-space: nowrap; vertical-align: baseline; }
thead th { border-top: 1.5px solid var(--rule); border-bottom: 1px solid var(--rule); }
tbody tr:last-child td { border-bottom: 1.5px solid var(--rule); }
tr.start td { border-top: 1px solid var(--line); } .number { text-align: right; } td small { color: var(--quiet); }
.wide ul { color: var(--quiet); font-size: .8rem; margin: .4rem 0 0; padding-left: 1.1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 32rem)); gap: 0 2rem; }
.figures { align-items: start; } figure { margin: 1rem 0; min-width: 0; }
figure img { width: 100%; background: #fff; } figcaption { font-size: .85rem; color: var(--quiet); }
.warnings { background: var(--warn); border-left: 4px solid var(--edge); padding: .5rem 1rem; margin: 1rem 0; }
.warnings ul { margin: .2rem 0; padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--quiet); } dd { margin: 0; }
.keys { display: flex; flex-wrap: wrap; gap: .5rem; margin: .8rem 0; }
.keys div { background: var(--panel); border-radius: 5px; padding: .3rem .7rem; }
.keys dd { font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
dd, pre { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; font-size: .8rem; background: var(--panel); padding: .5rem; margin: .2rem 0; }
pre { max-height: 16rem; overflow: auto; }
.rescue { border: 1px solid var(--line); padding: .6rem .8rem; margin: .8rem 0; }
.rescue .texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: .8rem; }
.rescue h4 { margin: 0 0 .2rem; font-size: .85rem; } details { margin: .8rem 0; } summary { cursor: pointer; }
@media (max-width: 720px) {
  body { padding: .8rem; }
  caption, th, td { white-space: normal; } table { font-size: .78rem; } th, td { padding-right: .4rem; }
  td small { display: block; white-space: nowrap; font-size: .68rem; }
}
@media screen and (min-width: 1400px) {
  body { max-width: 82rem; } .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  figure:only-child { display: contents; } figure:only-child > * { margin: 1rem 0; }
}
@media print {
  body { max-width: none; } .wide, pre { overflow: visible; max-height: none; } details > * { display: block; }
}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of a report."""

    name: str  # HTML anchor
    title: str
    figures: list[tuple[str, str, str]] = field(default_factory=list)  # name, caption, SVG
    tables: list[ReportTable] = field(default_factory=list)
    folded: list[ReportTable] = field(default_factory=list)  # further tables, collapsed at first
    links: list[tuple[str, str]] = field(default_factory=list)  # to other pages: name, address
    further: str = ""  # HTML of all other content, shown last


def page(
    title: str,
    lead: str,
    warnings: Sequence[str],
    sections: Sequence[Section],
    *,
    keys: Sequence[tuple[str, str]] = (),
) -> str:
    """The whole page. Title, lead, warnings and `keys` are plain text; the page escapes them.

    `keys` are the most important numbers, (name, value), which come first.
    """
    found = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    links = "".join(f'<a href="#{section.name}">{html.escape(section.title)}</a>' for section in sections)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(lead)}</p>",
        _keys(keys) if keys else "",
        f'<div class="warnings"><strong>Warnings</strong><ul>{found}</ul></div>' if found else "",
        f"<nav>{links}</nav>" if len(sections) > 1 else "",
        *map(_section, sections),
    ]
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        *head,
        "</head>",
        "<body>",
        *filter(None, body),
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(lines)


def _keys(keys: Sequence[tuple[str, str]]) -> str:
    tiles = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in keys)
    return f'<dl class="keys">{"".join(tiles)}</dl>'


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}">', f"<h2>{html.escape(section.title)}</h2>"]
    if section.links:
        links = "".join(
            f'<li><a href="{html.escape(address)}">{html.escape(name)}</a></li>' for name, address in section.links
        )
        parts.append(f"<ul>{links}</ul>")
    if section.figures:
        parts.append(f'<div class="figures">{"".join(_figure(*figure) for figure in section.figures)}</div>')
    parts += [_table(table) for table in section.tables]
    parts += [
        f"<details><summary>{html.escape(table.title)}</summary>{_table(table)}</details>" for table in section.folded
    ]
    return "\n".join([*parts, section.further, "</section>"])


def _table(table: ReportTable) -> str:
    return f'<div class="wide">{to_html(table)}</div>'


def _figure(name: str, caption: str, svg: str) -> str:
    # As a separate image, an SVG cannot run a script or clash with the names of another one.
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """A list of names and values. Both are plain text."""
    return f"<dl>{''.join(f'<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>' for name, value in facts)}</dl>"


def folded_html(title: str, text: str) -> str:
    """Plain text in a part of the page that is collapsed at first."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"


def rescues_html(rescues: pl.DataFrame, num_cases: int, seed: int) -> str:
    """The sample of rescues (`samples.RESCUES`), each with question, failure, hint and success."""
    cards = []
    for row in rescues.iter_rows(named=True):
        text = {name: html.escape("–" if value is None else str(value)) for name, value in row.items()}
        columns = (
            ("failed without the hint", text["cold_text"], text["cold_answer"]),
            (f"hint from {text['teacher_model']}", text["hint"], None),
            ("with the hint", text["rescued_text"], text["rescued_answer"]),
        )
        texts = "".join(
            f"<div><h4>{name}{'' if answer is None else f': {answer}'}</h4><pre>{content}</pre></div>"
            for name, content, answer in columns
        )
        view = address(split=TRAIN, iteration=row["iteration"], problem=row["problem_id"])
        link = f'<a href="{html.escape(view)}">{text["problem_id"]}</a>'
        case = (
            f"<strong>{text['model']}</strong>, iteration {text['iteration']}, problem {link}; "
            f"gold answer: {text['gold']}"
        )
        cards.append(
            f'<div class="rescue"><p>{case}</p><pre>{text["question"]}</pre><div class="texts">{texts}</div></div>'
        )
    if not cards:
        return "<p>No examples of rescues: no model that failed without help has succeeded with a hint yet.</p>"
    lead = (
        f"{len(cards)} of {num_cases} rescued cases, drawn with seed {seed}. "
        "Each shows the first failed and the first rescued completion."
    )
    return f"<h3>Examples of rescues</h3><p>{lead}</p>{''.join(cards)}"
