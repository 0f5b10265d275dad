"""The console command `core-hpc`, also `python -m core_hpc`.

It passes the arguments after the name of a subcommand to the module of that subcommand, and imports
no other. Each of these modules offers `build_parser(prog)` and `main(arguments, prog=prog)`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import core_hpc
from core_hpc.common.startup import begin_command

PROG = "core-hpc"
COMMANDS = {
    "launch": ("core_hpc.launch", "start a sweep, or continue it"),
    "evaluate": ("core_hpc.evaluate", "evaluate models, or the adapters of a run, on any problems"),
    "status": ("core_hpc.status.__main__", "show how far sweeps are"),
    "cancel": ("core_hpc.cancel", "end the controller and the SLURM jobs of a sweep"),
    "export": ("core_hpc.export", "take a trained model out of a run"),
    "doctor": ("core_hpc.doctor.__main__", "look for what would stop a sweep on this machine or cluster"),
    "analysis": ("analysis.__main__", "tables, figures and reports from published results"),
}
"""Name of a subcommand -> its module, and what it does."""
SHELLS = ("bash", "zsh")


def build_parser(*, complete: bool = False) -> argparse.ArgumentParser:
    """The parser of the console command.

    Args:
        complete: include the arguments of every subcommand, for shell completion. This imports all their modules.
    """
    parser = argparse.ArgumentParser(
        prog=PROG, description=core_hpc.__doc__, epilog=f"Help for one command: {PROG} COMMAND --help"
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {core_hpc.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        own = [import_module(module).build_parser(f"{PROG} {name}")] if complete else []
        commands.add_parser(name, help=text, parents=own, add_help=False)
    completion = commands.add_parser("completion", help="print the script of a shell that completes this command")
    completion.add_argument("shell", choices=SHELLS)
    return parser


def completion_script(shell: str) -> str:
    """The script that completes the console command in a shell."""
    import shtab

    parser = build_parser(complete=True)
    _complete_paths(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _complete_paths(parser: argparse.ArgumentParser, completer: object) -> None:
    """Mark every argument that is a path, so that the shell offers file names for it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete_paths(child, completer)
        elif action.type is Path:
            action.complete = completer  # type: ignore[attr-defined]  # the attribute that shtab reads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    begin_command()
    from core_hpc.common.packages import require_own_analysis  # loads more, so it comes after `begin_command`

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        require_own_analysis()
        module = import_module(COMMANDS[given[0]][0])
        return int(module.main(given[1:], prog=f"{PROG} {given[0]}"))
    options = build_parser().parse_args(given)
    require_own_analysis()
    print(completion_script(options.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
