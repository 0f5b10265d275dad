"""What a reader of the tables needs to know: an unfinished run, missing data, few problems, useless completions.

The input is `RunData`. The output is sentences, which the terminal and the report show before the
tables.
"""

from __future__ import annotations

from analysis.counts.load import RunData
from analysis.metrics.useless import MUCH_USELESS
from analysis.report import evaluation_tables
from analysis.stats.intervals import FEW_PROBLEMS
from core_hpc.store.schema import EVALUATE, PHASES, RESCUE, UPDATE
from core_hpc.store.shards import published_keys


def warnings_of(data: RunData) -> list[str]:
    """Messages that a reader of the tables needs to know."""
    found = [*_unfinished(data), *evaluation_tables.missing(data)]
    columns = ("n", "num_timeout", "num_truncated", "num_no_answer")
    total, timeouts, truncated, unanswered = (int(data.counts[c].sum()) for c in columns)
    if timeouts:
        found.append(
            f"verification of {timeouts} of {total} completions timed out; "
            "they count as not correct in every denominator"
        )
    if truncated > MUCH_USELESS * total:
        found.append(f"{truncated} of {total} completions were cut at the token limit")
    if unanswered > MUCH_USELESS * total:
        found.append(f"no answer was found in {unanswered} of {total} completions")
    found += _evaluation_warnings(data)
    found += [f"set {name}: {w}" for name, own in data.sets.items() for w in _evaluation_warnings(own)]
    if data.config is not None and data.config.protocol.rescue_samples and data.config.protocol.hint_probability == 1:
        found.append(
            f"protocol.hint_probability is 1: phase {RESCUE} has no control, so the uplift of hints is unknown"
        )
    return [f"{text[0].upper()}{text[1:]}." for text in [*found, *(f"left out: {line}" for line in data.left_out)]]


def _evaluation_warnings(data: RunData) -> list[str]:
    """Messages about problems that are left out, and about few problems, of one set of the evaluation."""
    panels = evaluation_tables.panels(data)
    found = evaluation_tables.left_out(panels)
    for iteration, p in panels.items():
        if p.num_problems < FEW_PROBLEMS:
            found.append(
                f"evaluation {iteration}: {p.num_problems} problems, fewer than {FEW_PROBLEMS}; "
                "small differences are not reliable"
            )
    return found


def _unfinished(data: RunData) -> list[str]:
    """A message about the progress of a run; empty when the run is finished."""
    if data.config is None:
        return []
    keys = published_keys(data.path)
    updated = [k.iteration for k in keys if k.phase == UPDATE]
    done = sum(updated.count(i) == len(data.models) for i in set(updated))
    if done >= data.config.iterations:
        return []
    next_phases = {k.phase for k in keys if k.iteration == done + 1 and k.phase != EVALUATE}
    names = ", ".join(phase for phase in PHASES if phase in next_phases)
    phases = f"; iteration {done + 1} has results of the phases {names}" if names else ""
    return [f"not finished: {done} of {data.config.iterations} iterations are done{phases}"]
