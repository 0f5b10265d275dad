"""The command `core-hpc evaluate`, also `python -m core_hpc.evaluate`: evaluate models that exist.

In: a run, whose adapters of some iterations are evaluated, or base models and PEFT folders; problem
sets and temperatures. Out: a sweep with `iterations: 0`, which is launched like any other one. Its
drivers, shards and tables are those of a run, and the same command continues it. What the sweep file
contains is decided in `runs/evaluation.py`.
"""

# The import of `analysis` is checked before modules that need it are imported (common/packages.py).

from __future__ import annotations

from core_hpc.common.startup import begin_command
from core_hpc.config.yaml_text import dump_yaml

if __name__ == "__main__":
    begin_command()

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.new_file import write_new_file
from core_hpc.common.packages import require_own_analysis
from core_hpc.common.terminal import show_error

require_own_analysis()  # the launcher imports `analysis`

from core_hpc.config.evaluation import EvaluationSection
from core_hpc.launch import add_launch_arguments, launch_with
from core_hpc.runs.evaluation import subject_of, sweep_file
from core_hpc.runs.evaluation_arguments import parse_set, samplings
from core_hpc.runs.sweep import Sweep, resolve_sweep

PROG = "python -m core_hpc.evaluate"
SAMPLING = ("temperature", "top_p", "max_new_tokens")


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Evaluate the adapters of a run, base models, or PEFT folders on problem sets. "
        "If the same evaluation was started before, continue it.",
        epilog="Examples: `%(prog)s outputs/first/run-1a2b3c4d --iteration 0 20 --problems gsm8k:test` and "
        "`%(prog)s Qwen/Qwen3-0.6B --problems math:math-500 aime:2025 --temperature 0 0.7`.",
    )
    parser.add_argument(
        "subjects",
        nargs="+",
        metavar="SUBJECT",
        help="the folder of a run, or of a sweep with one run; or models (as `team[].model`, or merged folders) and "
        "PEFT folders, which form one team",
    )
    parser.add_argument(
        "--iteration",
        nargs="+",
        default=[],
        metavar="I",
        dest="iterations",
        help="iterations of the run, or last; 0: before its first update. Default: the last that all models have",
    )
    parser.add_argument(
        "--problems",
        nargs="+",
        default=[],
        metavar="[NAME=]SET",
        help="gsm8k:test, math:math-500, a .jsonl or .parquet file, or fields as {source: ...}. Default: the held-out "
        "problems of the run",
    )
    parser.add_argument("--count", type=int, metavar="N", help="problems to draw or generate, of every set")
    parser.add_argument("--samples", type=int, metavar="N", help="completions per problem and model")
    parser.add_argument(
        "--temperature", type=float, nargs="+", metavar="T", help="one or several; 0: greedy, with one completion"
    )
    parser.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens per completion")
    parser.add_argument("--base", metavar="MODEL", help="base model of PEFT folders, instead of the one that they name")
    parser.add_argument("--name", help="name of the sweep. Default: evaluate- and the name of the subject")
    parser.add_argument("--write", type=Path, metavar="FILE", help="only write the sweep file, for core_hpc.launch")
    add_launch_arguments(parser)
    return parser


def content(options: argparse.Namespace) -> dict[str, Any]:
    """The content of the sweep file that the arguments ask for.

    Raises:
        InputError: An argument is wrong.
    """
    if options.count is not None and not options.problems:
        raise InputError("--count: needs --problems; without it, the problems are those of the run")
    subject = subject_of(options.subjects, iterations=options.iterations, base=options.base)
    own = subject.run.config.evaluation if subject.run is not None else EvaluationSection()
    given = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    sampling = {**own.sampling.model_dump(mode="json"), **given}
    temperatures = given.get("temperature", [own.sampling.temperature])
    data = sweep_file(
        subject,
        name=options.name,
        sets=[parse_set(text, count=options.count) for text in options.problems],
        ways=samplings(
            temperatures, samples=own.samples if options.samples is None else options.samples, others=sampling
        ),
        changed=set(given),
    )
    if options.cluster is not None:  # the profile replaces the section of the run
        data["cluster"] = {"profile": options.cluster}
    if options.output is not None:
        data["output"] = options.output
    return data


def text_of(data: dict[str, Any], arguments: Sequence[str]) -> str:
    """The sweep file as text."""
    command = f"# Written by: {PROG} {shlex.join(arguments)}\n".replace("\n", " ").strip()
    without_aliases = json.loads(json.dumps(data))
    return f"{command}\n{dump_yaml(without_aliases, sort_keys=False, allow_unicode=True)}"


def main(arguments: Sequence[str], *, prog: str = PROG) -> int:
    """Run the command and return its exit status."""
    options = build_parser(prog).parse_args(arguments)

    def read(overrides: Sequence[str]) -> Sweep:
        data = content(options)
        text, source = text_of(data, arguments), Path("evaluate")
        return resolve_sweep(source, text, data, overrides, profile=options.cluster)

    if options.write is None:
        return launch_with(options, read)
    try:
        taken = "exists already; choose another file, or remove it"
        write_new_file(options.write, read(options.overrides).text, option="--write", taken=taken)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    more = [part for override in options.overrides for part in ("--set", override)]
    more += ["--driver", options.driver] if options.driver else []
    command = shlex.join(["python", "-m", "core_hpc.launch", str(options.write), *more])
    print(f"{options.write}: written. Start it: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
