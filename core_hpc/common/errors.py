"""Errors that a user is meant to read.

Each message says what is wrong, where (YAML path, file, row) and what to do next. Command lines catch
`CoreHpcError`, print the message without a traceback and exit with `exit_code`. Anything else is a bug of
ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class CoreHpcError(Exception):
    """Base of every error whose message is written for the user."""

    exit_code = 1


class InputError(CoreHpcError, ValueError):
    """Something that the user gave is wrong: a file, a value, a folder. Nothing has been changed."""

    exit_code = 2


class ConfigError(InputError):
    """One or more mistakes in a sweep file, all reported at once."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{source}: {count} mistake{'s' if count != 1 else ''}; nothing was created"
        super().__init__("\n".join([head, *(f"  - {p}" for p in self.problems)]))


class RunConflictError(InputError):
    """A run folder was made by another configuration."""


class ClaimError(CoreHpcError):
    """Another controller holds this sweep."""

    exit_code = 3


class StoreError(CoreHpcError):
    """A published file is missing, torn, altered or of another schema version."""


class NonFiniteError(CoreHpcError):
    """Loss or gradients became NaN or infinite; the last good adapter is kept."""


class StoppedError(CoreHpcError):
    """A task stopped early because it was told to; what it saved is used by its next attempt."""
