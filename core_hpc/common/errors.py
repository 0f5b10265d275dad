"""Errors whose messages are written for the user.

Each message states what is wrong, where (YAML path, file, row) and what to do next. The command
lines catch `CoreHpcError`, print its message without a traceback, and exit with its `exit_code`.
Every other exception is a bug in this software and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a used-up quota, which do not pass by themselves."""


class CoreHpcError(Exception):
    """Base class of every error whose message is written for the user."""

    exit_code = 1


class InputError(CoreHpcError, ValueError):
    """A file, a value or a folder that the user gave is wrong. Nothing has been changed."""

    exit_code = 2


class ConfigError(InputError):
    """A sweep file has one or more mistakes. The message lists all of them.

    Args:
        source: The sweep file.
        mistakes: One line per mistake.
    """

    def __init__(self, source: str, mistakes: Sequence[str]) -> None:
        self.source = source
        self.mistakes = list(mistakes)
        count = len(self.mistakes)
        head = f"{source}: {count} mistake{'s' if count != 1 else ''}; nothing was created"
        super().__init__("\n".join([head, *(f"  - {mistake}" for mistake in self.mistakes)]))


class RunConflictError(InputError):
    """A run folder was made with another configuration."""


class ClaimError(CoreHpcError):
    """Another controller holds the claim on this sweep."""

    exit_code = 3


class ClaimLostError(ClaimError):
    """This controller held the claim on its sweep, and another one holds it now."""


class StoreError(CoreHpcError):
    """A published file is missing, torn, altered, or of another schema version."""


class RepeatingError(CoreHpcError):
    """Every further attempt of the task would fail in the same way, so the run stops."""


class ExtensionError(RepeatingError):
    """A function of the user failed. The message names its file and line, so a traceback adds nothing."""


class ExtensionAttemptError(CoreHpcError):
    """A function of the user failed, and another attempt may succeed: a time limit, a file, the network."""


class NonFiniteError(RepeatingError):
    """The loss or the gradients became NaN or infinite. The last good adapter is kept."""


class MismatchError(RepeatingError):
    """The engine samples with another model than the trainer trains. The last good adapter is kept."""


class StoppedError(CoreHpcError):
    """A task stopped early because it was asked to stop. The next attempt uses what it saved."""


def full_disk_message(error: OSError, where: object) -> str:
    """What to do about one of the errors of `FULL_DISK`; `where` is named if the error names no file."""
    what = f"{error.filename or where}: {error.strerror}"
    return f"{what}; published files are kept. Free space (or raise the quota) and start again"
