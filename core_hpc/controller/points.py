"""Points as events of TensorBoard: the tags of curves, and their groups.

In: values of measures, of one model or the team, at one step; pages of text; hyper-parameters. Out:
events in the files of `event_files.py`, and the same points for the copy in `wandb_copy.py`. What the
points of a run are is decided in `run_tracker.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core_hpc.controller.event_files import EventFiles
from core_hpc.store.paths import TEAM

FINAL = "final"
"""Group of the last evaluation's figures. TensorBoard shows them beside the hyper-parameters."""

GROUPS = {
    "1_evaluation": ("evaluation",),
    "2_learning": ("correct", "loss", "policy", "source", "warmup"),
    "3_rescue": ("rescue",),
    "4_reward": ("reward", "advantage", "explore"),
    "5_health": ("length", "mismatch"),
    "6_time": ("time", "waited_s", "speed", "seconds"),
}
"""Groups of curves, in the order in which a reader needs them. TensorBoard sorts groups by their names."""
_GROUP_OF = {first: group for group, firsts in GROUPS.items() for first in firsts}


def tag_of(measure: str) -> str:
    """The tag of a curve: its measure in its group.

    >>> tag_of("evaluation/pass/k1"), tag_of("loss/kl"), tag_of("seconds_cold/load")
    ('1_evaluation/pass/k1', '2_learning/loss/kl', '6_time/seconds_cold/load')
    """
    first, _, rest = measure.partition("/")
    group = _GROUP_OF.get(first.split("_")[0] if first.startswith("seconds_") else first)
    if group is None:
        return measure
    return f"{group}/{rest}" if group.partition("_")[2] == first else f"{group}/{measure}"


@dataclass(frozen=True)
class Points:
    """What was written as one event: values by tag, of one model or the team, at one step.

    Attributes:
        time_s: when they came about (seconds since 1970); None: now.
    """

    model: str
    step: int
    time_s: float | None
    values: Mapping[str, float]


class PointWriter:
    """Writes the points of one run into its event files. They also wait to be taken, if `keeps` is set."""

    def __init__(self, files: EventFiles, *, keeps: bool) -> None:
        self._files = files
        self._keeps = keeps
        self._kept: list[Points] = []

    def take(self) -> list[Points]:
        """The points that were written since the last call, in their order."""
        taken, self._kept = self._kept, []
        return taken

    def scalar(self, model: str, measure: str, value: float | None, step: int, time_s: float | None) -> None:
        """Write one point, unless its value is unknown."""
        self.scalars(model, {measure: value}, step, time_s)

    def scalars(self, model: str, values: Mapping[str, float | None], step: int, time_s: float | None) -> None:
        """Write the points of one step as one event: ten times cheaper than an event per point."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        known = {
            tag_of(measure): float(value)
            for measure, value in values.items()
            if value is not None and not math.isnan(value)
        }
        if not known:
            return
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in known.items()]
        self._emit(model, Summary(value=points), step, time_s)
        self._keep(Points(model, step, time_s, known))

    def text(self, model: str, tag: str, markdown: str, step: int, time_s: float) -> None:
        """Write a page of text."""
        from tensorboard.plugins.text import summary_v2

        self._emit(model, summary_v2.text_pb(tag, markdown), step, time_s)

    def hyperparameters(self, fields: Mapping[str, Any], figures: Sequence[str], title: str) -> None:
        """Begin the session of hyper-parameters.

        Args:
            fields: scientific fields of the run by name.
            figures: tags of the figures that `end` writes, without their group.
            title: name of the session.
        """
        from tensorboard.plugins.hparams import summary_v2

        values = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in fields.items()}
        metrics = [summary_v2.Metric(f"{FINAL}/{tag}") for tag in figures]
        self._emit(TEAM, summary_v2.hparams_config_pb([summary_v2.HParam(k) for k in values], metrics), 0, None)
        self._emit(TEAM, summary_v2.hparams_pb(values, trial_id=title), 0, None)

    def end(self, final: Mapping[str, float], *, finished: bool) -> None:
        """Write the end of the session of hyper-parameters, with the figures of the last evaluation."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        figures = {f"{FINAL}/{tag}": value for tag, value in final.items()}
        self._keep(Points(TEAM, 0, None, figures))
        status = api_pb2.STATUS_SUCCESS if finished else api_pb2.STATUS_RUNNING
        ended = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        )
        about = metadata.create_summary_metadata(ended)
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        values.append(Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about))
        self._files.end(TEAM, [Event(wall_time=time.time(), step=0, summary=Summary(value=values))])

    def _keep(self, points: Points) -> None:
        if points.values and self._keeps:
            self._kept.append(points)

    def _emit(self, model: str, summary: Any, step: int, time_s: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._files.add(model, Event(wall_time=time_s or time.time(), step=step, summary=summary))
