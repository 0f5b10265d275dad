"""Command line: `python -m analysis report|passk|rescue|overlap RUN_OR_SWEEP_DIR...`. Thin: parses, calls, prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
from rich.console import Console

from analysis.data import RunData, load_runs
from analysis.overlap import overlap_table
from analysis.passk import pass_at_k_table
from analysis.report import DEFAULT_KS, render, report_tables, rows_table, warnings_of, write_report
from analysis.rescue import rescue_table
from analysis.tables import FORMATS, rich_table, text_frame, to_format
from core_hpc.errors import CoreHpcError
from core_hpc.schema import COLD, EVALUATE


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "positive whole number"  # argparse shows it


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m analysis", description="Tables from published shards, of a run in progress too.")
    commands = top.add_subparsers(dest="command", required=True)
    texts = {
        "report": "the main tables: Pass@k before and after, collaboration gain, rescue, error overlap",
        "passk": "Pass@k of models and team for every iteration",
        "rescue": "rescue rates with their denominators, and the uplift over the un-hinted control",
        "overlap": "overlap of errors between models for every iteration",
    }
    subs = {}
    for name, text in texts.items():
        subs[name] = sub = commands.add_parser(name, help=text, description=f"Prints {text}.")
        sub.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP", help="run folder, or sweep folder (all its runs)")
        if name != "rescue":
            sub.add_argument("--k", nargs="+", type=_positive, metavar="K", help="completions per model")
        if name == "report":
            sub.add_argument("--out", type=Path, metavar="DIR", help="also write every table as CSV and Markdown, and report.md")
        else:
            sub.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    for name in ("passk", "overlap"):
        subs[name].add_argument("--phase", choices=(EVALUATE, COLD), default=EVALUATE, help="default: %(default)s")
    return top


def _console() -> Console:
    # A pipe or a log has no width of its own; rich would fold tables at 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=180)


def _report(args: argparse.Namespace) -> None:
    console, runs = _console(), load_runs(args.folders)
    names = [data.name for data in runs]
    for data in runs:
        console.rule(data.name, align="left")
        tables = report_tables(data, args.k)
        render(tables if data.counts.height else [rows_table(data)], console)
        for warning in warnings_of(data):
            console.print(f"warning: {warning}", markup=False, highlight=False)
        if args.out:
            # Runs of two sweeps may share a name; their sweep's name keeps them apart.
            folder = data.name if names.count(data.name) == 1 else f"{data.path.parent.name}-{data.name}"
            out = args.out if len(runs) == 1 else args.out / folder
            write_report(data, out, args.k)
            console.print(f"written: {out / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def _tidy(args: argparse.Namespace) -> None:
    tables: dict[str, Callable[[RunData], pl.DataFrame]] = {
        "passk": lambda d: pass_at_k_table(d.counts, ks=args.k or DEFAULT_KS, models=d.models, phase=args.phase),
        "overlap": lambda d: overlap_table(d.counts, ks=args.k or [1], models=d.models, phase=args.phase),
        "rescue": lambda d: rescue_table(d.counts),
    }
    frames = [tables[args.command](data).select(pl.lit(data.name).alias("run"), pl.all()) for data in load_runs(args.folders)]
    frame = pl.concat(frames)
    if not frame.height:
        print("no figures: nothing that this table needs is published yet", file=sys.stderr)
    if args.format == "table":
        _console().print(rich_table(text_frame(frame)))
    else:
        sys.stdout.write(to_format(frame, args.format))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        (_report if args.command == "report" else _tidy)(args)
        sys.stdout.flush()
    except CoreHpcError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter's own flush at exit quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
