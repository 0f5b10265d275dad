"""The section `tracking` of the configuration: where curves are written beside TensorBoard.

Every field is operational, because nothing here changes a result of a run. The points are written by
`controller/wandb_copy.py`.
"""

from __future__ import annotations

from typing import Literal

from core_hpc.config.base import Section, operational

PROJECT_PATTERN = r"^[A-Za-z0-9_.][A-Za-z0-9_. -]{0,127}$"
"""Names of projects that W&B accepts, without blanks at the beginning."""


class TrackingSection(Section):
    """A copy of TensorBoard's points for an experiment tracker."""

    wandb: str | None = operational(
        None,
        pattern=PROJECT_PATTERN,
        description="project of W&B to which TensorBoard's points are copied (extra wandb); null: no copy",
    )
    wandb_mode: Literal["offline", "online"] = operational(
        "offline",
        description="offline: the copy is a folder RUN/wandb/offline-run-*, which `wandb sync` uploads; online: the "
        "controller also uploads it",
    )
