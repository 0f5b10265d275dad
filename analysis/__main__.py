"""The command line `python -m analysis COMMAND ...`.

This module parses arguments, calls the other modules and prints their tables. The tables of the
commands passk, gain, votes, rescue, overlap and curves are tidy: one estimate per row.
"""

from __future__ import annotations

from core_hpc.common.startup import begin_command

if __name__ == "__main__":
    begin_command()

import argparse
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from analysis.browse.content import Content
from analysis.browse.export import DEFAULT_COMPLETIONS, export
from analysis.browse.server import HOST, BrowseServer
from analysis.browse.terminal import show
from analysis.counts.load import RunData, load_hints, load_runs
from analysis.exchange.folder import EXPORT_PHASES, FORMS, export_predictions, import_predictions, one_run
from analysis.exchange.lines import PER_COMPLETION
from analysis.exchange.rescore import rescore, rescore_report
from analysis.layout.formats import FORMATS, table_text
from analysis.layout.tables import ReportTable, render, tidy_table
from analysis.metrics.arms import BASE, arms_of, arms_report, arms_table
from analysis.metrics.compare_table import compare_report
from analysis.metrics.contrasts import contrasts_report
from analysis.metrics.curves import curves_table
from analysis.metrics.hints import teaching_table
from analysis.metrics.overlap import overlap_table
from analysis.metrics.overlap_change import overlap_change_table
from analysis.metrics.passk import default_ks, gain_table, pass_at_k_table
from analysis.metrics.rescue import GROUPS, rescue_table
from analysis.metrics.strata import stratified
from analysis.metrics.variance import variance_report
from analysis.metrics.votes import vote_table
from analysis.report.figures import arms_figure, write
from analysis.report.further_tables import hints_of_run, selectors_of_run
from analysis.report.paper import paper_tables
from analysis.report.plan_command import add_plan_options, learning, plan
from analysis.report.report import report_tables, warnings_of, write_reports, write_table
from analysis.report.training_tables import rows_table
from analysis.timing.account import times_of
from analysis.timing.tables import time_report
from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.terminal import PlainConsole, printable
from core_hpc.runs.folder import list_runs
from core_hpc.store.schema import COLD, EVALUATE

PROG = "python -m analysis"
STRATA = ("data_set", "subject", "level")
TABLE, LATEX = FORMATS[0], "latex"

TABLES: dict[str, tuple[str, str]] = {
    "passk": (
        "Pass@k",
        "Pass@k of models, sub-teams and team for every iteration, with pass^k, first-k and matched budgets",
    ),
    "gain": (
        "Collaboration gain",
        "gain of the team over its best model and over each model, at equal k and at matched budget",
    ),
    "votes": ("Votes", "majority votes of models and team, and the vote of the team where its models agree"),
    "rescue": ("Rescue", "rescue rates with their denominators, and the uplift over the control without a hint"),
    "overlap": (
        "Error overlap",
        "overlap of errors between models for every iteration, and of each model with itself",
    ),
    "curves": ("Training curves", "rewards, advantages, lengths and losses for every iteration and model"),
    "selectors": (
        "Selectors",
        "accuracy and tokens of ways to choose one answer without the gold answer, with the oracle",
    ),
    "hints": ("Effects of hints", "uplift, leak share and reliance of hints, by how they show the gold answer"),
    "teaching": ("Who teaches whom", "uplift and rescues of every teacher and student"),
    "overlap-change": ("Change of the error overlap", "error overlap before and after training, and its change"),
}
"""Commands that print one tidy table: the title of the table, and the help text."""
_WITHOUT_K = ("rescue", "curves", "hints", "teaching")
_WITHOUT_PHASE = (*_WITHOUT_K, "overlap-change")
WITH_ANSWERS = ("votes", "overlap", "overlap-change")
"""Commands that need the answers of completions, which take twice the time to read."""


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "positive whole number"  # shown by argparse


def _points(text: str) -> float:
    """A margin in percentage points as a fraction."""
    value = float(text) / 100
    if not 0 < value < 1:
        raise ValueError
    return value


_points.__name__ = "number of points between 0 and 100"  # shown by argparse


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    top = argparse.ArgumentParser(
        prog=prog, description="Tables, figures and reports from the published files of runs, finished or in progress."
    )
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    sub = command("report", "print the main tables of a run; with --out, write all tables and figures as a report")
    _add_runs(sub)
    sub.add_argument("--out", type=Path, metavar="DIR", help="folder for report.html, report.md, tables and figures")
    for name, (_, text) in TABLES.items():
        sub = command(name, text)
        _add_runs(sub, with_k=name not in _WITHOUT_K)
        _add_format(sub)
        if name not in _WITHOUT_PHASE:
            sub.add_argument("--phase", choices=(EVALUATE, COLD), default=EVALUATE, help="default: %(default)s")
        if name != "curves":
            sub.add_argument("--by", choices=STRATA, help="one table per value of this attribute of the problems")
    _add_comparisons(command)
    _add_designs(command)
    _add_reading(command)
    sub = command("time", "the time of each iteration by what it was spent on, with a lower bound")
    _add_folders(sub)
    _add_interchange(command)
    return top


def _add_comparisons(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    texts = {
        "compare": "B minus A, paired by problem; several runs of one side are the seeds of one configuration",
        "variance": "where the uncertainty of B minus A comes from: problems, samples or seeds, and what to buy",
    }
    for name, help_text in texts.items():
        sub = command(name, help_text)
        for side in ("a", "b"):
            text = "run folder, or sweep folder whose runs differ in their seeds only"
            sub.add_argument(side, type=Path, metavar=side.upper(), help=text)
        _add_k(sub)
        sub.add_argument(
            "--iteration",
            nargs="+",
            type=int,
            metavar="I",
            help="evaluation after this iteration (0: the untrained models); "
            "two numbers: one for A and one for B; default: the latest of each run",
        )
        _add_lenient(sub)
        _add_format(sub)
        if name == "compare":
            _add_margin(sub)
    sub = command(
        "arms", "several configurations and the untrained models side by side, mean over seeds: tables and a figure"
    )
    text = "one per arm: sweep folder whose runs differ in their seeds only, or run folder"
    sub.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=text)
    sub.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the tables and the figure")
    _add_k(sub)
    _add_lenient(sub)
    _add_margin(sub)


def _add_designs(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    sub = command(
        "learning", "learning curves on held-out problems, with the area under each, over iterations and seeds"
    )
    text = "one per configuration: sweep folder whose runs differ in their seeds only, or run folder"
    sub.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=text)
    _add_k(sub)
    _add_lenient(sub)
    _add_format(sub)
    sub = command("plan", "what difference a comparison can find, and the cheapest design for a wanted one")
    add_plan_options(sub)
    _add_lenient(sub)
    _add_format(sub)


def _add_reading(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    sub = command("browse", "a local web page to filter problems and to read what the models wrote")
    _add_folders(sub)
    text = "write the page to this folder, to open it from disk; default: serve it from this machine until Ctrl-C"
    sub.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "with --out: about how many completions get their texts; default: %(default)s"
    sub.add_argument("--completions", type=_positive, default=DEFAULT_COMPLETIONS, metavar="N", help=text)
    sub.add_argument("--port", type=int, default=0, help="without --out: port of the page; default: a free one")
    _add_lenient(sub)
    sub = command("show", "print what is stored about one problem: question, completions, hint, rewards")
    sub.add_argument("run", type=Path, metavar="RUN", help="run folder")
    sub.add_argument("--problem", required=True, metavar="ID", help="id of the problem, or a part of it that is unique")
    text = "default: the latest that has the problem"
    sub.add_argument("--iteration", type=int, metavar="I", help=text)
    sub.add_argument("--colour", action="store_true", help="colour tokens by log-probability")
    _add_lenient(sub)


def _add_interchange(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    sub = command("import", "write predictions of other software (JSON lines) as a folder that all commands read")
    sub.add_argument("file", type=Path, metavar="FILE", help="JSON lines; analysis/README.md describes the two forms")
    _add_new_folder(sub)
    sub.add_argument(
        "--lenient", action="store_true", help="leave out problems that are missing for a model, and list them"
    )
    sub = command("export", "write the completions of a run as JSON lines that the command import reads")
    sub.add_argument("run", type=Path, metavar="RUN", help="run folder")
    sub.add_argument("--out", type=Path, metavar="FILE", required=True, help="file to write; it is replaced")
    sub.add_argument(
        "--form", choices=FORMS, default=PER_COMPLETION, help="content of one line; default: one %(default)s"
    )
    sub.add_argument("--phase", choices=EXPORT_PHASES, default=EVALUATE, help="default: %(default)s")
    sub.add_argument("--iteration", type=int, metavar="I", help="default: the latest that all models have")
    sub = command("rescore", "verify the stored completions of a run again, and write them to a new folder")
    sub.add_argument("run", type=Path, metavar="RUN", help="run folder; it does not change")
    _add_new_folder(sub)


def _add_folders(sub: argparse.ArgumentParser) -> None:
    text = "run folder, or sweep folder (all its runs)"
    sub.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP", help=text)


def _add_new_folder(sub: argparse.ArgumentParser) -> None:
    text = "folder to create; it must not exist, or be empty"
    sub.add_argument("--out", type=Path, metavar="DIR", required=True, help=text)


def _add_runs(sub: argparse.ArgumentParser, *, with_k: bool = True) -> None:
    _add_folders(sub)
    if with_k:
        _add_k(sub)
    _add_lenient(sub)


def _add_k(sub: argparse.ArgumentParser) -> None:
    text = "completions per model; default: 1, 2 and 4, as far as the run has that many"
    sub.add_argument("--k", nargs="+", type=_positive, metavar="K", help=text)


def _add_margin(sub: argparse.ArgumentParser) -> None:
    text = "arms are equivalent if they differ by less than this; default: analysis.margin of the sweep, else 2"
    sub.add_argument("--margin", type=_points, metavar="POINTS", help=text)


def _add_lenient(sub: argparse.ArgumentParser) -> None:
    text = "leave out damaged files and problems with invalid rows, and list them, instead of stopping"
    sub.add_argument("--lenient", action="store_true", help=text)


def _add_format(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--format", choices=FORMATS, default=TABLE, help="default: %(default)s")


def _console() -> PlainConsole:
    # A pipe or a log file has no width; rich would then fold tables at 80 columns.
    return PlainConsole() if sys.stdout.isatty() else PlainConsole(width=180)


def _warn(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _load(paths: Sequence[Path], *, answers: bool, lenient: bool) -> list[RunData]:
    runs = load_runs(paths, answers=answers, lenient=lenient)
    for data in runs:
        for line in data.left_out:
            _warn(f"left out: {line}")
    return runs


def _loader(args: argparse.Namespace) -> Callable[[Sequence[Path]], list[RunData]]:
    """A function that loads runs without their answers, as the options of the command ask for."""
    return partial(_load, answers=False, lenient=args.lenient)


def _report(args: argparse.Namespace) -> None:
    console = _console()
    runs = _load(args.folders, answers=True, lenient=args.lenient)
    # The files are written first, because the reader of the output (head, less) may stop early.
    pages = write_reports(runs, args.out, args.k) if args.out else []
    for data in runs:
        console.rule(data.name, align="left")
        render(report_tables(data, args.k) if data.counts.height else [rows_table(data)], console)
        for warning in warnings_of(data):
            console.print(f"warning: {warning}", markup=False, highlight=False)
    for path in pages:
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def _tidy(args: argparse.Namespace) -> None:
    if args.format == LATEX and not getattr(args, "by", None) and getattr(args, "phase", EVALUATE) == EVALUATE:
        runs_of = _load(args.folders, answers=args.command in WITH_ANSWERS, lenient=args.lenient)
        for table in paper_tables(args.command, runs_of, getattr(args, "k", None)):
            sys.stdout.write(table_text(table, LATEX))
        return
    if args.command == "curves":
        runs = [run for path in args.folders for run in list_runs(path)]
        frames = [(run.resolve().name, curves_table(run)) for run in dict.fromkeys(runs)]
    else:
        loaded = _load(args.folders, answers=args.command in WITH_ANSWERS, lenient=args.lenient)
        frames = [(data.name, _frame(args, data)) for data in loaded]
    frame = pl.concat(frame.select(pl.lit(name).alias("run"), pl.all()) for name, frame in frames)
    if not frame.height:
        by = getattr(args, "by", None)
        reason = f", or no problem has the attribute {by}" if by else ""
        _warn(f"the table is empty: the data that it needs are not published yet{reason}")
    _print(args, tidy_table(frame, name=args.command, title=TABLES[args.command][0]))


def _frame(args: argparse.Namespace, data: RunData) -> pl.DataFrame:
    """The command's table of one run; with --by, the tables of all values one below the other."""
    source = data.answers if args.command == "votes" else data.counts
    return stratified(lambda part: _table(args, data, part), source, args.by) if args.by else _table(args, data, source)


def _table(args: argparse.Namespace, data: RunData, rows: pl.DataFrame) -> pl.DataFrame:
    """The command's table of a run.

    Args:
        args: the parsed arguments.
        data: the run.
        rows: its counts or, for the command votes, its answers; with --by, those of one value.
    """
    if args.command == "rescue":
        return rescue_table(rows, groups=list(GROUPS), hints=load_hints(data.path))
    if args.command == "hints":
        return hints_of_run(data, rows)
    if args.command == "teaching":
        return teaching_table(rows, models=data.models)
    ks = args.k or default_ks(data.num_samples)
    if args.command == "selectors":
        return selectors_of_run(data, ks=ks, phase=args.phase, counts=rows)
    answers = data.answers.join(rows.select("phase", "problem_id").unique(), on=["phase", "problem_id"], how="semi")
    if args.command == "overlap-change":
        return overlap_change_table(rows, ks=ks, models=data.models, answers=answers)
    if args.command == "overlap":
        return overlap_table(rows, ks=ks, models=data.models, phase=args.phase, answers=answers)
    table = {"passk": pass_at_k_table, "gain": gain_table, "votes": vote_table}[args.command]
    return table(rows, ks=ks, models=data.models, phase=args.phase)


def _print(args: argparse.Namespace, table: ReportTable) -> None:
    if args.format == TABLE:
        render([table], _console())
    else:
        sys.stdout.write(printable(table_text(table, args.format)))


def _browse(args: argparse.Namespace) -> None:
    runs = _load(args.folders, answers=False, lenient=args.lenient)
    title = " and ".join(dict.fromkeys(path.resolve().name for path in args.folders))
    content = Content(runs, title=title)
    if args.out is not None:
        written = export(content, args.out, title=title, num_completions=args.completions)
        print(f"written: {written.page}: {written.num_with_texts} of {written.num_problems} entries with their texts")
        return
    with BrowseServer(content, title=title, port=args.port) as server:
        tunnel = f"ssh -N -L {server.port}:{HOST}:{server.port} {socket.gethostname()}"
        print(f"open {server.address}\nfrom another machine, first: {tunnel}\nCtrl-C ends the server", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _show(args: argparse.Namespace) -> None:
    (data,) = _load([one_run(args.run)], answers=False, lenient=args.lenient)
    show(data, args.problem, _console(), iteration=args.iteration, colour=args.colour)


def _compare(args: argparse.Namespace) -> None:
    a, b, ks, iterations = _two_sides(args)
    _print(args, compare_report(a, b, ks=ks, iterations=iterations, margin=args.margin))


def _variance(args: argparse.Namespace) -> None:
    a, b, ks, iterations = _two_sides(args)
    _print(args, variance_report(a, b, ks=ks, iterations=iterations))


def _two_sides(
    args: argparse.Namespace,
) -> tuple[list[RunData], list[RunData], list[int], tuple[int, int] | None]:
    """The runs of A and of B, the completions per model, and the evaluations that are compared."""
    if args.iteration and len(args.iteration) > 2:
        raise InputError(f"--iteration: {len(args.iteration)} numbers; give one, or two (one for A and one for B)")
    a, b = (_load([path], answers=False, lenient=args.lenient) for path in (args.a, args.b))
    ks = args.k or default_ks(min(data.num_samples for data in (*a, *b)))
    return a, b, ks, (args.iteration[0], args.iteration[-1]) if args.iteration else None


def _arms(args: argparse.Namespace) -> None:

    folders = [path.resolve() for path in args.folders]
    taken = [BASE, *(path.name for path in folders)]
    names = [path.name if taken.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in folders]
    named = {
        name: _load([path], answers=False, lenient=args.lenient) for name, path in zip(names, folders, strict=True)
    }
    ks = args.k or default_ks(min(data.num_samples for runs in named.values() for data in runs))
    arms = arms_of(named)
    frame = arms_table(arms, ks=ks)
    tables = arms_report(arms, frame)
    if len(named) > 1:
        tables.insert(0, contrasts_report(named, ks=ks, margin=args.margin))
    for table in tables:
        write_table(table, args.out / "tables")
    write(arms_figure(frame), args.out / "figures")
    render(tables, _console())
    print(f"written: {args.out / 'tables'} and {args.out / 'figures'}")


def _time(args: argparse.Namespace) -> None:

    console = _console()
    for run in dict.fromkeys(run.resolve() for path in args.folders for run in list_runs(path)):
        console.rule(run.name, align="left")
        render(time_report(times_of(run)), console)


def _import(args: argparse.Namespace) -> None:
    imported = import_predictions(args.file, args.out, lenient=args.lenient)
    for line in imported.left_out:
        _warn(f"left out: {line}")
    for note in imported.notes:
        _warn(note)
    print(f"written: {imported.path}: {imported.num_problems} problems; {_per_model(imported.num_completions)}")


def _export(args: argparse.Namespace) -> None:
    exported = export_predictions(args.run, args.out, args.form, phase=args.phase, iteration=args.iteration)
    for note in exported.notes:
        _warn(note)
    models = _per_model(exported.num_completions)
    print(f"written: {exported.path}: phase {args.phase} of iteration {exported.iteration}; {models}")


def _per_model(num_completions: Mapping[str, int]) -> str:
    return ", ".join(f"{model} ({n} completions)" for model, n in num_completions.items())


def _rescore(args: argparse.Namespace) -> None:
    render(rescore_report(rescore(args.run, args.out)), _console())


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    **dict.fromkeys(TABLES, _tidy),
    "report": _report,
    "browse": _browse,
    "show": _show,
    "compare": _compare,
    "variance": _variance,
    "arms": _arms,
    "learning": lambda args: _print(args, learning(args, _loader(args))),
    "plan": lambda args: _print(args, plan(args, _loader(args))),
    "time": _time,
    "import": _import,
    "export": _export,
    "rescore": _rescore,
}


def main(argv: Sequence[str] | None = None, *, prog: str = PROG) -> int:
    """Run one command and return the exit code."""
    args = build_parser(prog).parse_args(argv)
    try:
        _COMMANDS[args.command](args)
        sys.stdout.flush()
    except CoreHpcError as e:
        _warn(str(e))
        return e.exit_code
    except BrokenPipeError:
        # The reader (head, less) closed the pipe; the flush at exit must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
