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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import polars as pl

from analysis.arguments import PROG, TABLE, TABLES, build_parser
from analysis.browse.content import Content
from analysis.browse.export import export
from analysis.browse.server import HOST, BrowseServer
from analysis.browse.terminal import show
from analysis.counts.answers import with_answers
from analysis.counts.load import RunData, load_hints, load_runs
from analysis.exchange.converters import JSONL, Origin
from analysis.exchange.curve_links import link_curves
from analysis.exchange.export import export_predictions
from analysis.exchange.folder import import_predictions, one_run
from analysis.exchange.lines import PER_COMPLETION
from analysis.exchange.logs import export_logs
from analysis.exchange.rescore import rescore, rescore_report
from analysis.layout.formats import table_text
from analysis.layout.tables import ReportTable, render, tidy_table
from analysis.metrics.arms import BASE, arms_of, arms_report, arms_table
from analysis.metrics.compare_table import compare_report
from analysis.metrics.contrasts import arms_among, contrasts_report
from analysis.metrics.curves import curves_table
from analysis.metrics.fields import grouped
from analysis.metrics.hints import teaching_table
from analysis.metrics.overlap import overlap_table
from analysis.metrics.overlap_change import overlap_change_table
from analysis.metrics.passk import default_ks, gain_table, pass_at_k_table
from analysis.metrics.ranking import ranking_report
from analysis.metrics.rescue import GROUPS, rescue_table
from analysis.metrics.skills import declared_skills, skills_reports
from analysis.metrics.strata import stratified
from analysis.metrics.variance import variance_report
from analysis.metrics.votes import vote_table
from analysis.report.empty_tables import why_empty
from analysis.report.evaluation_tables import evaluations
from analysis.report.figures import arms_figure, write
from analysis.report.further_tables import hints_of_run, selectors_of_run
from analysis.report.main_tables import report_tables
from analysis.report.paper import paper_tables
from analysis.report.plan_command import learning, plan
from analysis.report.reader_warnings import warnings_of
from analysis.report.report import write_reports, write_table
from analysis.report.training_tables import rows_table
from analysis.timing.recorded import times_of
from analysis.timing.tables import time_report
from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.terminal import PlainConsole, printable
from core_hpc.runs.folder import list_runs
from core_hpc.runs.names import folder_names
from core_hpc.store import output_folder
from core_hpc.store.schema import EVALUATE

LATEX = "latex"
WITH_ANSWERS = ("votes", "overlap", "overlap-change")
"""Commands that need the answers of completions, which take twice the time to read."""


def _console() -> PlainConsole:
    # A pipe or a log file has no width; rich would then fold tables at 80 columns.
    return PlainConsole() if sys.stdout.isatty() else PlainConsole(width=180)


def _warn(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _load(paths: Sequence[Path], *, answers: bool, lenient: bool, evaluation_set: str | None) -> list[RunData]:
    runs = load_runs(paths, answers=answers, lenient=lenient, evaluation_set=evaluation_set)
    for data in runs:
        for line in data.left_out:
            _warn(f"left out: {line}")
    return runs


def _loader(args: argparse.Namespace) -> Callable[[Sequence[Path]], list[RunData]]:
    """A function that loads runs as the options of the command ask for, with the answers if it needs them."""
    wanted = getattr(args, "evaluation_set", None)
    return partial(_load, answers=args.command in WITH_ANSWERS, lenient=args.lenient, evaluation_set=wanted)


def _ks(args: argparse.Namespace, runs: Iterable[RunData]) -> list[int]:
    """The completions per model that the command asks for, or else those that all runs have."""
    return args.k or default_ks(min(data.num_samples for data in runs))


def _report(args: argparse.Namespace) -> None:
    console = _console()
    if args.out:
        output_folder.require_writable(args.out, min_free_gb=0, advice=output_folder.ANOTHER_OUT)
    runs = [with_answers(data, list(evaluations(data))) for data in _loader(args)(args.folders)]
    # The files are written first, because the reader of the output (head, less) may stop early.
    pages = write_reports(runs, args.out, args.k) if args.out else []
    for data in runs:
        console.rule(data.title, align="left")
        render(report_tables(data, args.k) if data.counts.height else [rows_table(data)], console)
        for warning in warnings_of(data):
            console.print(f"warning: {warning}", markup=False, highlight=False)
    for path in pages:
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def _tidy(args: argparse.Namespace) -> None:
    if args.format == LATEX and not getattr(args, "by", None) and getattr(args, "phase", EVALUATE) == EVALUATE:
        for table in paper_tables(args.command, _loader(args)(args.folders), getattr(args, "k", None)):
            sys.stdout.write(table_text(table, LATEX))
        return
    if args.command == "curves":
        runs = [run for path in args.folders for run in list_runs(path)]
        frames = [(run.resolve().name, curves_table(run)) for run in dict.fromkeys(runs)]
    else:
        frames = [(data.name, _frame(args, data)) for data in _loader(args)(args.folders)]
    frame = pl.concat(frame.select(pl.lit(name).alias("run"), pl.all()) for name, frame in frames)
    if not frame.height:
        by = getattr(args, "by", None)
        reason = f", or no problem has the attribute {by}" if by else ""
        why = why_empty(args.command, _loader(args)(args.folders), phase=getattr(args, "phase", EVALUATE))
        _warn(f"the table is empty: {why}{reason}")
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
    ks = _ks(args, [data])
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
    runs = _loader(args)(args.folders)
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
    (data,) = _loader(args)([one_run(args.run)])
    show(data, args.problem, _console(), iteration=args.iteration, colour=args.colour)


def _compare(args: argparse.Namespace) -> None:
    if args.by:
        if args.iteration:
            raise InputError("compare: --by compares the latest evaluations; leave --iteration out")
        arms = grouped(_loader(args)([path for path in (args.a, args.b) if path is not None]), args.by)
        _print(args, contrasts_report(arms, ks=_ks(args, chain(*arms.values())), margin=args.margin))
        return
    if args.b is None:
        raise InputError(f"compare: give a second folder B, or --by FIELD to compare runs of {args.a}")
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
    load = _loader(args)
    a, b = (load([path]) for path in (args.a, args.b))
    return a, b, _ks(args, (*a, *b)), (args.iteration[0], args.iteration[-1]) if args.iteration else None


def _arms(args: argparse.Namespace) -> None:
    output_folder.require_writable(args.out, min_free_gb=0, advice=output_folder.ANOTHER_OUT)
    named = grouped(_loader(args)(args.folders), args.by) if args.by else _arms_of_folders(args)
    ks = _ks(args, chain(*named.values()))
    arms = arms_of(named)
    frame = arms_table(arms, ks=ks)
    tables = arms_report(arms, frame)
    if len(named) > 1:
        tables.insert(0, contrasts_report(named, ks=ks, margin=args.margin))
    if declared_skills(named):
        tables += skills_reports(named, ks=ks, margin=args.margin)
    for table in tables:
        write_table(table, args.out / "tables")
    write(arms_figure(frame), args.out / "figures")
    render(tables, _console())
    print(f"written: {args.out / 'tables'} and {args.out / 'figures'}")


def _arms_of_folders(args: argparse.Namespace) -> dict[str, list[RunData]]:
    """The arms of each folder. One arm is named by its folder, several by their labels."""
    load, named = _loader(args), {}
    for folder, path in folder_names(args.folders, [BASE]).items():
        runs = load([path])
        arms = arms_among(runs)
        if len(arms) == 1:
            named[folder] = runs
        else:
            with_folder = len(args.folders) > 1 or BASE in arms
            named |= {f"{folder}/{label}" if with_folder else label: own for label, own in arms.items()}
    return named


def _rank(args: argparse.Namespace) -> None:
    _print(args, ranking_report(_loader(args)(args.folders), k=args.k, model=args.model))


def _time(args: argparse.Namespace) -> None:
    console = _console()
    for run in dict.fromkeys(run.resolve() for path in args.folders for run in list_runs(path)):
        console.rule(run.name, align="left")
        render(time_report(times_of(run)), console)


def _import(args: argparse.Namespace) -> None:
    origin = Origin(args.origin, fields=dict(args.map), where=dict(args.where), model=args.model)
    imported = import_predictions(args.file, args.out, origin=origin, lenient=args.lenient)
    for line in imported.left_out:
        _warn(f"left out: {line}")
    for note in imported.notes:
        _warn(note)
    print(f"written: {imported.path}: {imported.num_problems} problems; {_per_model(imported.num_completions)}")


def _export(args: argparse.Namespace) -> None:
    chosen = {"phase": args.phase, "iteration": args.iteration, "models": args.model}
    if args.to == JSONL:
        exported = export_predictions(args.run, args.out, args.form or PER_COMPLETION, **chosen)
    elif args.form:
        raise InputError(f"export: --form {args.form} is for JSON lines; leave --form or --to {args.to} out")
    else:
        exported = export_logs(args.run, args.out, args.to, **chosen)
    for note in exported.notes:
        _warn(note)
    models = _per_model(exported.num_completions)
    print(f"written: {exported.path}: phase {args.phase} of iteration {exported.iteration}; {models}")


def _tensorboard(args: argparse.Namespace) -> None:
    linked = link_curves(args.folders, args.out)
    for note in linked.notes:
        _warn(note)
    print(f"written: {linked.path}: {', '.join(linked.runs)}\nopen with: tensorboard --logdir {linked.path}")


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
    "rank": _rank,
    "learning": lambda args: _print(args, learning(args, _loader(args))),
    "plan": lambda args: _print(args, plan(args, _loader(args))),
    "time": _time,
    "import": _import,
    "export": _export,
    "tensorboard": _tensorboard,
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
