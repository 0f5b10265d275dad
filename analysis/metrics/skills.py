"""Own, foreign and further problems: what each model keeps, and what it learns from its peers.

The input is the runs of several arms whose sweeps declare `analysis.skills`: the subjects that each
model knows before training. The output is two tidy frames, the levels of each arm and the
differences from the reference arm, per group of problems, and two report tables.

A model's own problems are those of its declared subjects. Foreign problems are those of its peers,
and the rest belongs to nobody, for example composites that need the skills of two models. A group
without a held-out problem is left out. On own
problems the difference from the untrained models is retention, on foreign problems it is transfer.
All figures are those of `metrics/arms.py` and `metrics/contrasts.py`, on the problems of one group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from analysis.counts.load import RunData
from analysis.layout.tables import ReportTable, group_starts, laid_out, percent
from analysis.metrics.arms import ARMS_TABLE, arms_of, arms_table
from analysis.metrics.compare import MEAN, decided, margin_of
from analysis.metrics.compare_table import cells, reading_notes
from analysis.metrics.contrasts import CONTRASTS_TABLE, Arms, contrasts_table
from analysis.metrics.passk import PASS, TEAM, TEAM_PASS
from analysis.stats.intervals import METHOD_NOTE
from core_hpc.common.errors import InputError
from core_hpc.store.schema import EVALUATE

OWN, FOREIGN, REST = "own", "foreign", "rest"

_GROUP = {
    "problems": pl.String(),  # the model whose subjects they have, or REST
    "role": pl.String(),  # of the problems for the model of the row: OWN, FOREIGN or REST; null for the team
}
SKILLS_TABLE = pl.Schema({**_GROUP, **ARMS_TABLE})
SKILL_CONTRASTS_TABLE = pl.Schema({**_GROUP, **CONTRASTS_TABLE})


def declared_skills(arms: Arms) -> dict[str, tuple[str, ...]]:
    """The subjects of each model, as the sweeps of the arms declare them; empty if none does.

    Raises:
        InputError: two runs declare different skills.
    """
    found: tuple[dict[str, tuple[str, ...]], RunData] | None = None
    for data in (data for runs in arms.values() for data in runs):
        own = dict(data.config.analysis.skills) if data.config is not None else {}
        if own and found is not None and own != found[0]:
            raise InputError(
                f"analysis.skills is not the same in {found[1].path} and in {data.path}; give both sweep files the "
                "same `analysis` section, and start them again to record it"
            )
        if own:
            found = own, data
    return found[0] if found else {}


def skills_table(arms: Arms, *, ks: Sequence[int]) -> pl.DataFrame:
    """Compute Pass@k of every model and of the team on each group of problems.

    Args:
        arms: the runs of each arm, by name. The untrained models are added as an arm (`arms_of`).
        ks: completions per model.

    Returns:
        A frame with the schema `SKILLS_TABLE`.

    Raises:
        InputError: no run declares skills.
    """
    groups, frames = _groups(arms), []
    evaluated = arms_of(arms)
    for group, own in groups.items():
        chosen = [arm._replace(runs=[_restricted(data, own) for data in arm.runs]) for arm in evaluated]
        frames.append(_of_group(arms_table(chosen, ks=ks), group))
    return pl.concat(frames).select(SKILLS_TABLE.names())


def skill_contrasts_table(arms: Arms, *, ks: Sequence[int], margin: float | None = None) -> pl.DataFrame:
    """Compute every other arm minus the reference arm on each group of problems.

    The arguments are those of `contrasts_table`. Holm's correction is for all rows together.

    Returns:
        A frame with the schema `SKILL_CONTRASTS_TABLE`.

    Raises:
        InputError: no run declares skills, or two arms cannot be compared.
    """
    margin = margin_of([data for runs in arms.values() for data in runs]) if margin is None else margin
    frames = []
    for group, own in _groups(arms).items():
        chosen = {name: [_restricted(data, own) for data in runs] for name, runs in arms.items()}
        frames.append(_of_group(contrasts_table(chosen, ks=ks, margin=margin), group))
    together = pl.concat(frames).with_columns(primary=pl.lit(False)).select(SKILL_CONTRASTS_TABLE.names())
    return decided(together, margin)


def _groups(arms: Arms) -> dict[str, pl.Expr]:
    """The groups that have held-out problems, by name, as conditions on the subject of a problem."""
    skills = declared_skills(arms)
    if not skills:
        raise InputError("no run declares `analysis.skills`; name the subjects that each model knows before training")
    subject = pl.col("subject")
    everybody = [name for subjects in skills.values() for name in subjects]
    groups = {
        **{model: subject.is_in(list(subjects)) for model, subjects in skills.items()},
        REST: subject.is_in(everybody).not_().fill_null(True),
    }
    counts = [data.counts.filter(phase=EVALUATE) for runs in arms.values() for data in runs]
    return {name: own for name, own in groups.items() if any(rows.filter(own).height for rows in counts)}


def _left_out(frame: pl.DataFrame, skills: Mapping[str, Sequence[str]]) -> list[str]:
    """A note on the groups without a held-out problem."""
    empty = [name for name in (*skills, REST) if name not in frame["problems"]]
    return [f"left out, because it has no held-out problem: {', '.join(empty)}"] if empty else []


def _restricted(data: RunData, condition: pl.Expr) -> RunData:
    return replace(data, counts=data.counts.filter(condition))


def _of_group(frame: pl.DataFrame, group: str) -> pl.DataFrame:
    """Pass@k of the models and the team, with the names of the group."""
    role = pl.lit(REST) if group == REST else pl.when(model=group).then(pl.lit(OWN)).otherwise(pl.lit(FOREIGN))
    return frame.filter(pl.col("measure").is_in([PASS, TEAM_PASS])).with_columns(
        problems=pl.lit(group), role=pl.when(pl.col("model") != TEAM).then(role)
    )


# --- report tables -------------------------------------------------------------------------------


def skills_reports(arms: Arms, *, ks: Sequence[int], margin: float | None = None) -> list[ReportTable]:
    """Format both tables. With one arm, there is no table of differences."""
    skills = declared_skills(arms)
    tables = [_levels(skills_table(arms, ks=ks), skills)]
    if len(arms) > 1:
        margin = margin_of([data for runs in arms.values() for data in runs]) if margin is None else margin
        tables.append(_differences(skill_contrasts_table(arms, ks=ks, margin=margin), skills, margin))
    return tables


def _levels(frame: pl.DataFrame, skills: Mapping[str, Sequence[str]]) -> ReportTable:
    """One row per k and arm, one column per model and group."""
    means = frame.filter(seed=MEAN)
    models = means.filter(measure=PASS)["model"].unique(maintain_order=True).to_list()
    groups = frame["problems"].unique(maintain_order=True).to_list()
    columns = {f"{model}, {_named(group, model)}": (model, group) for model in models for group in groups}
    if len(models) > 1:
        columns |= {f"team, {_named(group, TEAM)}": (TEAM, group) for group in groups}
    found = {
        (row["k"], row["arm"], row["model"], row["problems"]): percent(row["estimate"], row["low"], row["high"])
        for row in means.iter_rows(named=True)
    }
    rows = means.select("k", "arm").unique(maintain_order=True).sort("k", maintain_order=True).rows()
    shown = [[k, arm, *(found[k, arm, *column] for column in columns.values())] for k, arm in rows]
    notes = [
        *(f"problems of {model}: {', '.join(subjects)}" for model, subjects in skills.items()),
        f"{REST}: all other problems",
        *_left_out(frame, skills),
        *(["team: Pass@k of all models together, with k completions of each"] if len(models) > 1 else []),
        METHOD_NOTE,
    ]
    title = "Held-out problems by whose skill they need (percent, Pass@k)"
    table = laid_out(["k", "arm", *columns], shown)
    return ReportTable("skills", title, frame, table, notes, starts=group_starts([row[0] for row in shown]))


def _named(group: str, model: str) -> str:
    return OWN if group == model else group if group == REST else f"of {group}"


def _differences(frame: pl.DataFrame, skills: Mapping[str, Sequence[str]], margin: float) -> ReportTable:
    several = frame["seed"].eq(MEAN).any()
    shared = set.intersection(*(set(note.split("; ")) for note in frame["note"]))
    rows, groups = [], []
    for row in frame.sort("arm_b", maintain_order=True).iter_rows(named=True):
        arms = f"{row['arm_b']} - {row['arm_a']}"
        about = REST if row["problems"] == REST else f"of {row['problems']}"
        rows.append({"arms": arms, "skill": about, **cells(row, shared=shared, several=several)})
        groups.append(arms)
    notes = [
        *_left_out(frame, skills),
        "A: the second arm; B: the first arm",
        *sorted(shared - {""}),
        *reading_notes(frame, several=several, margin=margin),
    ]
    title = "Differences between arms by whose skill the problems need (percent, points)"
    table = laid_out(list(rows[0]), [list(row.values()) for row in rows])
    return ReportTable("skills_contrasts", title, frame, table, [*notes, METHOD_NOTE], starts=group_starts(groups))
