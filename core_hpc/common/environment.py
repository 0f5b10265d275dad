"""Numbers in environment variables, such as those that SLURM sets for a job."""

from __future__ import annotations

import os
import re

from core_hpc.common.errors import InputError


def number_in(name: str) -> int | None:
    """The number in an environment variable; None if the variable is not set, or empty.

    Raises:
        InputError: the value is not a whole number.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise InputError(
            f"the environment variable {name} is {text[:40]!r}, which is not a number. SLURM sets it inside a job. "
            f"Outside of a job, run `unset {name}` first"
        )
    return int(text)
