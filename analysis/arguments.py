"""The arguments of `python -m analysis`: its commands, their options and their help.

The output is parsed arguments. This module reads no file. `__main__.py` runs the commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from analysis.browse.export import DEFAULT_COMPLETIONS
from analysis.exchange.bridges import FIELDS
from analysis.exchange.converters import JSONL, ORIGINS
from analysis.exchange.export import EXPORT_PHASES, FORMS
from analysis.exchange.lines import PER_COMPLETION
from analysis.exchange.logs import WRITERS
from analysis.layout.formats import FORMATS
from analysis.report.plan_command import add_plan_options
from core_hpc.store.schema import COLD, EVALUATE

PROG = "python -m analysis"
STRATA = ("data_set", "subject", "level")
TABLE = FORMATS[0]
"""The format of tables on a terminal."""

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


def _pair(text: str) -> tuple[str, str]:
    """A path and a value, or two fields, around the first `=`."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a pair such as FIELD=VALUE")
    return name, value


def _field_pair(text: str) -> tuple[str, str]:
    """A field of core_hpc, and the path of the field with its value."""
    name, value = _pair(text)
    if name not in FIELDS:
        known = ", ".join(FIELDS)
        raise argparse.ArgumentTypeError(f"{name!r} is not a field of core_hpc; before the = comes one of {known}")
    return name, value


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Tables, figures and reports from the published files of runs, finished or in progress.",
        epilog="`%(prog)s COMMAND --help` lists the options of a command. analysis/README.md explains the tables.",
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
        if name not in _WITHOUT_K:
            _add_set(sub)
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
            is_optional = name == "compare" and side == "b"
            if name == "compare":
                text += "; with --by, any sweep folder" + (" or nothing" if is_optional else "")
            sub.add_argument(side, type=Path, metavar=side.upper(), help=text, nargs="?" if is_optional else None)
        _add_k(sub)
        sub.add_argument(
            "--iteration",
            nargs="+",
            type=int,
            metavar="I",
            help="evaluation after this iteration (0: before the first one); "
            "two numbers: one for A and one for B; default: the latest of each run",
        )
        _add_set(sub)
        _add_lenient(sub)
        _add_format(sub)
        if name == "compare":
            _add_margin(sub)
            _add_by_field(sub)
    sub = command(
        "arms",
        "several configurations and the models before training side by side, mean over seeds: tables and a figure",
    )
    text = "sweep and run folders; runs of a folder that differ in their seeds only are one arm"
    sub.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=text)
    sub.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the tables and the figure")
    _add_k(sub)
    _add_set(sub)
    _add_lenient(sub)
    _add_margin(sub)
    _add_by_field(sub)
    sub = command("rank", "the configurations of a sweep, averaged over their seeds, best first, with what varies")
    _add_folders(sub)
    text = "completions per model; default: the largest of 1, 2 and 4 that the runs have"
    sub.add_argument("--k", type=_positive, metavar="K", help=text)
    sub.add_argument("--model", help="rank by Pass@k of this model; default: the team")
    _add_lenient(sub)
    _add_format(sub)


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
    sub = command("import", "write predictions of other software as a folder that all commands read")
    text = "JSON Lines or Parquet, or a log of Inspect; analysis/README.md describes the forms"
    sub.add_argument("file", type=Path, metavar="FILE", help=text)
    _add_new_folder(sub)
    text = "the software that wrote the file; default: %(default)s, with the fields of core_hpc or a --map"
    sub.add_argument("--from", dest="origin", choices=ORIGINS, default=JSONL, help=text)
    text = "a field of core_hpc, and the field of the file with its value; a.b is the field b of a"
    sub.add_argument(
        "--map", nargs="+", action="extend", default=[], type=_field_pair, metavar="FIELD=FIELD", help=text
    )
    text = "read only the records whose field has this value, for example filter=strict-match"
    sub.add_argument("--where", nargs="+", action="extend", default=[], type=_pair, metavar="FIELD=VALUE", help=text)
    sub.add_argument("--model", metavar="NAME", help="name of the model; needed if the file does not have it")
    sub.add_argument(
        "--lenient", action="store_true", help="leave out problems that are missing for a model, and list them"
    )
    sub = command("export", "write the completions of a run as JSON lines, or as logs of other software")
    sub.add_argument("run", type=Path, metavar="RUN", help="run folder")
    text = "file to write, which is replaced; with --to, the folder to create, which must not exist, or be empty"
    sub.add_argument("--out", type=Path, metavar="PATH", required=True, help=text)
    text = "the software that will read it; default: %(default)s, which the command import reads"
    sub.add_argument("--to", choices=(JSONL, *WRITERS), default=JSONL, help=text)
    text = f"content of a JSON line; default: one {PER_COMPLETION}"
    sub.add_argument("--form", choices=FORMS, help=text)
    sub.add_argument("--phase", choices=EXPORT_PHASES, default=EVALUATE, help="default: %(default)s")
    sub.add_argument("--iteration", type=int, metavar="I", help="default: the latest that all these models have")
    sub.add_argument("--model", nargs="+", default=[], metavar="NAME", help="models of the team; default: all")
    sub = command("tensorboard", "a folder of links for TensorBoard, in which runs have short names without a hash")
    _add_folders(sub)
    _add_new_folder(sub)
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


def _add_set(sub: argparse.ArgumentParser) -> None:
    text = "a further set of the evaluation (evaluation.sets of the sweep); default: problems.evaluation"
    sub.add_argument("--set", metavar="NAME", dest="evaluation_set", help=text)


def _add_margin(sub: argparse.ArgumentParser) -> None:
    text = (
        "arms are equivalent if they differ by less than this, in percentage points (2 is `analysis.margin: 0.02`); "
        "default: analysis.margin of the sweep, else 2"
    )
    sub.add_argument("--margin", type=_points, metavar="POINTS", help=text)


def _add_by_field(sub: argparse.ArgumentParser) -> None:
    text = (
        "fields that vary in a sweep, for example update.loss: each of their values is an arm, and its runs are "
        "its seeds"
    )
    sub.add_argument("--by", nargs="+", metavar="FIELD", help=text)


def _add_lenient(sub: argparse.ArgumentParser) -> None:
    text = "leave out damaged files and problems with invalid rows, and list them, instead of stopping"
    sub.add_argument("--lenient", action="store_true", help=text)


def _add_format(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--format", choices=FORMATS, default=TABLE, help="default: %(default)s")
