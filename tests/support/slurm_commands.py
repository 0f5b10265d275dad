"""NOT SLURM: scripts that stand for its commands, for tests of what reads their output."""

from __future__ import annotations

from pathlib import Path


def squeue_record(*fields: str, place: tuple[str, str, str] = ("proj", "gpu", "normal")) -> str:
    """A record as `squeue -O` prints it with `QUEUE_FORMAT`. The name comes last.

    Args:
        place: account, partition and QOS of the job.
    """
    *others, name = fields
    return "\x1f".join([*others, *place, name]) + "\x1e\n"


HEADER = squeue_record(
    *("ARRAY_JOB_ID", "ARRAY_TASK_ID", "STATE", "REASON", "RESTART_COUNT", "NODELIST", "NAME"),
    place=("ACCOUNT", "PARTITION", "QOS"),
)


class FakeCommands:
    """NOT SLURM: a folder with scripts instead of its commands. They record their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def command(self, name: str, output: str = "", error: str = "", status: int = 0, body: str = "") -> None:
        (self.folder / f"{name}.out").write_text(output)
        (self.folder / f"{name}.err").write_text(error)
        path = self.folder / name
        path.write_text(
            f'#!/bin/sh\nhere="{self.folder}"\n'
            f'printf "%s\\n" "$*" >> "$here/{name}.calls"\nenv > "$here/{name}.env"\n{body}\n'
            f'/bin/cat "$here/{name}.out"\n/bin/cat "$here/{name}.err" >&2\nexit {status}\n'
        )
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        return (self.folder / f"{name}.calls").read_text().splitlines()

    def environment(self, name: str) -> dict[str, str]:
        return dict(
            line.split("=", 1) for line in (self.folder / f"{name}.env").read_text().splitlines() if "=" in line
        )
