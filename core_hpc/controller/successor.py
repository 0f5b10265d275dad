"""The successor of a detached controller, attempted until SLURM takes it.

In: a function that submits it. Out: its job. A limit or a maintenance of slurmctld may last for
hours, so the controller works meanwhile, and calls `ensure` in its loop. How a controller is
submitted is in `controller/detach.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from core_hpc.common.errors import StoreError
from core_hpc.slurm.commands import SlurmUnavailableError
from core_hpc.slurm.notices import Notices
from core_hpc.slurm.sbatch import RefusedError

RETRY_S = 180.0


class Successor:
    """The next controller of a chain.

    Attributes:
        job: its job; None while there is none.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.job: int | None = None
        self._submit: Callable[[], int | None] | None = None
        self._next = 0.0
        self._report = report
        self._notices = Notices(report)

    def allow(self, submit: Callable[[], int | None]) -> None:
        """Make the first attempt, and allow further ones.

        Args:
            submit: returns the job, that of an earlier attempt if it still waits or runs; None while it is not
                known whether SLURM has taken an earlier attempt.
        """
        self._submit = submit
        self.ensure(now=True)

    def ensure(self, *, now: bool = False) -> None:
        """Submit it, if it is allowed, missing, and the next attempt is due.

        Args:
            now: in any case; a job that was submitted earlier may have been cancelled, and is replaced then.
        """
        if self._submit is None or (not now and (self.job is not None or time.monotonic() < self._next)):
            return
        self._next = time.monotonic() + RETRY_S
        why = "it is not known whether SLURM has taken it"
        try:
            self.job = self._submit()
        except RefusedError as e:
            self.job = None  # otherwise nothing would have been submitted
            if not e.passing:
                self._submit = None
                self._report(f"no successor: {e}; {e.correction}")
                return
            why = str(e)
        except (SlurmUnavailableError, StoreError, OSError) as e:
            why = str(e)
        if self.job is None:
            self._notices.show("successor", f"no successor yet: {why}; an attempt follows every {RETRY_S / 60:.0f} min")
        else:
            self._notices.clear("successor", f"the successor is job {self.job}")
