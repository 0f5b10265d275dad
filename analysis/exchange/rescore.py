"""Extracts and verifies the stored completions of a run again, with the present verifier.

The input is a run folder (or imported predictions). The output is a new run folder with the same
problems and completions but new answers and verdicts, and a summary of what changed. The original
folder is only read. Rewards, updates and adapters depend on the original verdicts, so the new
folder does not contain them: it can be analysed, but the run cannot continue from it. With
`protocol.choose: pass_rate`, the scores decide which training problems an iteration has, so the new
folder has the choice itself (`RunPaths.chosen`).

The column `cold_failed` of rescue rows is recomputed from the new verdicts of the cold completions:

- The comparison of hinted and other completions stays valid. Whether a completion saw the hint was
  drawn independently of the verdicts, and cold completions are older than the draw. Therefore any
  selection of cases by cold verdicts leaves the two kinds comparable.
- An old value could contradict its definition (the model has no correct cold completion), and a
  case with an error of the first verifier would be a failure in some rates and not in others.

The values at the time of the draw stay in the hint shards, which are copied unchanged. A case that
is a cold failure now but was never sampled again counts only in the denominator of all cold-failed
cases (recovery).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from analysis.counts.counts import COUNTS, count_rows, panel
from analysis.counts.load import configuration, described, of_main_set, problems_of
from analysis.exchange.folder import new_folder, one_run, require_free, verifier_version
from analysis.layout.tables import UNDEFINED, ReportTable, laid_out, percent
from analysis.metrics.passk import AFTER, BEFORE, DIFFERENCE
from analysis.stats.estimators import pass_at_k
from analysis.stats.intervals import ESTIMATE_COLUMNS, METHOD_NOTE, share
from analysis.stats.uncertainty import difference
from core_hpc.answers.extract import extract_answer, verify_many
from core_hpc.answers.kinds import KINDS
from core_hpc.common.errors import InputError, StoreError
from core_hpc.problems.splits import TRAIN, split_of
from core_hpc.runs.choice import Choice
from core_hpc.runs.folder import read_identity
from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths
from core_hpc.store.schema import COLD, CORRECT, EVALUATE, HINT, HINTS, NO_ANSWER, PROBLEMS, RESCUE, ROLLOUTS
from core_hpc.store.shards import publish_frame, published_keys, read_manifest_table

_ORDER = (COLD, HINT, RESCUE, EVALUATE)  # cold is first, because rescue rows need its verdicts

_SOLVED = pl.Schema({"iteration": pl.Int32(), "model": pl.String(), "problem_id": pl.String(), "solved": pl.Boolean()})

CHANGE_TABLE = pl.Schema(
    {"phase": pl.String(), "model": pl.String(), "before": pl.String(), "after": pl.String(), "n": pl.Int64()}
)
PASS_CHANGE_TABLE = pl.Schema(
    {"phase": pl.String(), "iteration": pl.Int32(), "model": pl.String(), "when": pl.String(), **ESTIMATE_COLUMNS}
)


@dataclass(frozen=True)
class Rescored:
    """The result of verifying a run again."""

    path: Path
    changes: pl.DataFrame  # CHANGE_TABLE, unchanged verdicts included
    passes: pl.DataFrame  # PASS_CHANGE_TABLE; differences are paired by problem
    notes: list[str]


def rescore(run: Path, out: Path) -> Rescored:
    """Write a copy of a run's problems and completions with new answers and verdicts.

    A completion keeps its verdict when its text is not stored (it was imported as an answer only),
    or when the answers of its problem cannot be verified. The notes give the number of those.

    Args:
        run: a run folder. The run may be in progress; published completions are used.
        out: the new folder; it must not exist, or be empty.

    Raises:
        InputError: `run` is not a run, or `out` cannot be created.
        StoreError: a published file is damaged, or has a completion of an unknown problem. The
            message names the file. Nothing is written.
    """
    run, out = one_run(run), Path(out).resolve()
    if out.is_relative_to(run):
        raise InputError(f"{out}: is inside the run folder, which must not change; give another folder as --out")
    require_free(out)
    identity, verifier = read_identity(run), verifier_version()
    config, _ = configuration(run)
    with new_folder(out) as folder:
        work = _Rescoring(run, folder, _copy_problems(run, folder))
        keys = [key for key in published_keys(run) if key.phase in _ORDER]
        for key in sorted(keys, key=lambda key: (key.iteration, _ORDER.index(key.phase), key)):
            work.take(manifests.read_manifest(RunPaths(run).task_manifest(key)), key.phase)
        if config is not None:
            if config.protocol.choose == "pass_rate":
                choice, problem_ids = Choice(run, config), pl.Series(list(work.kinds.get(TRAIN, {})), dtype=pl.String)
                iterations = sorted({key.iteration for key in keys if split_of(key.phase) == TRAIN})
                chosen = {i: choice.problems(i, problem_ids) for i in iterations}
                manifests.write_json(RunPaths(folder).chosen, chosen)
            manifests.write_json(RunPaths(folder).config, manifests.read_json(RunPaths(run).config))
        rescored = {"original": str(run), "verifier": verifier, "verifier_before": _verifier_before(identity)}
        manifests.write_json(RunPaths(folder).identity, {**identity, "rescored": rescored})
        before, after = (_joined(f, COUNTS).filter(of_main_set(config)) for f in (work.before, work.after))
        passes = _pass_changes(before, after, problems_of(folder, config))
    changes = _joined(work.changes, CHANGE_TABLE).group_by("phase", "model", "before", "after").agg(pl.col("n").sum())
    return Rescored(out, changes.select(list(CHANGE_TABLE)).sort(pl.all()), passes, work.notes())


def _joined(frames: list[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=schema), *frames])


def _verifier_before(identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The verifier that gave the stored verdicts, as far as the run recorded it."""
    for made in ("rescored", "imported"):
        if made in identity:
            return dict(identity[made]["verifier"])
    known = identity.get("provenance", {})
    return {name: known[name] for name in ("core_hpc", "git_commit", "git_modified") if name in known} or None


def _copy_problems(run: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Publish the problems in the new folder. Returns split -> problem -> kind of answer."""
    kinds = {}
    for path in manifests.list_manifests(RunPaths(run).problems):
        frame = read_manifest_table(manifests.read_manifest(path), PROBLEMS, checksum=True)
        split = path.name.removesuffix(MANIFEST_SUFFIX)
        publish_frame(RunPaths(folder).problems, split, frame, PROBLEMS)
        kinds[split] = dict(frame.select("problem_id", "answer_kind").iter_rows())
    return kinds


@dataclass
class _Rescoring:
    """One pass over the shards of a run, with the results collected so far."""

    run: Path
    folder: Path
    kinds: dict[str, dict[str, str]]
    _: KW_ONLY
    before: list[pl.DataFrame] = field(default_factory=list)  # COUNTS of each shard
    after: list[pl.DataFrame] = field(default_factory=list)
    changes: list[pl.DataFrame] = field(default_factory=list)
    solved: list[pl.DataFrame] = field(default_factory=list)  # _SOLVED, by the new verdicts
    num_kept: int = 0
    num_solved: int = 0  # cases sampled again that are no cold failures with the new verdicts
    num_failed: int = 0  # cases sampled again that are cold failures with the new verdicts only

    def take(self, manifest: Manifest, phase: str) -> None:
        """Publish one shard with its new verdicts."""
        place = self.folder / manifest.path.parent.relative_to(self.run)
        name = manifest.path.name.removesuffix(MANIFEST_SUFFIX)
        if phase == HINT:
            hints = read_manifest_table(manifest, HINTS, checksum=True)
            publish_frame(place, name, hints, HINTS, stats=lambda: manifest.stats)
            return
        old = read_manifest_table(manifest, ROLLOUTS, checksum=True)
        new = self._verified(old, self.kinds.get(split_of(phase), {}), str(manifest.file(".parquet")))
        if phase == COLD:
            self.solved.append(new.group_by("iteration", "model", "problem_id").agg(solved=pl.col("correct").any()))
        if phase == RESCUE:
            new = self._with_cold_failed(new)
        publish_frame(place, name, new, ROLLOUTS, stats=lambda: manifest.stats)
        self.before.append(count_rows(old, source=str(manifest.path)))
        self.after.append(count_rows(new, source=str(manifest.path)))
        both = old.select("phase", "model", before="verdict").with_columns(after=new["verdict"])
        counted = both.group_by(pl.all()).agg(n=pl.len())
        self.changes.append(counted.select(pl.col(c).cast(dtype) for c, dtype in CHANGE_TABLE.items()))

    def _verified(self, old: pl.DataFrame, kinds: Mapping[str, str], source: str) -> pl.DataFrame:
        unknown = set(old["problem_id"]) - kinds.keys()
        if unknown:
            raise StoreError(
                f"{source}: problem {min(unknown)!r} is not among the run's problems; the folder is incomplete"
            )
        answers, verdicts = list(old["answer"]), list(old["verdict"])
        claims: dict[int, tuple[str | None, str, str]] = {}  # by row: answer, gold, kind
        for i, (problem, text, gold) in enumerate(old.select("problem_id", "text", "gold").iter_rows()):
            if kinds[problem] in KINDS and (text != "" or verdicts[i] == NO_ANSWER):
                answers[i] = extract_answer(text, kinds[problem])
                claims[i] = answers[i], gold, kinds[problem]
        self.num_kept += old.height - len(claims)
        for i, verdict in zip(claims, verify_many(list(claims.values())), strict=True):
            verdicts[i] = verdict
        new = [pl.Series("answer", answers, pl.String), pl.Series("verdict", verdicts, pl.String)]
        return old.with_columns(new).with_columns(correct=pl.col("verdict") == CORRECT)

    def _with_cold_failed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rescue rows with `cold_failed` by the new verdicts, if the cold rows are published."""
        key = ["iteration", "model", "problem_id"]
        found = rows.join(_joined(self.solved, _SOLVED), on=key, how="left", maintain_order="left")
        failed = pl.coalesce(~pl.col("solved"), "cold_failed")
        cases = found.select(*key, old="cold_failed", new=failed).unique()
        self.num_solved += cases.filter(pl.col("old") & ~pl.col("new")).height
        self.num_failed += cases.filter(~pl.col("old") & pl.col("new")).height
        return found.with_columns(cold_failed=failed).drop("solved")

    def notes(self) -> list[str]:
        """Messages about completions and cases that need an explanation."""
        notes = []
        if self.num_kept:
            notes.append(
                f"{self.num_kept} completions kept their verdicts: their texts are not stored, "
                "or their answers cannot be verified"
            )
        if self.num_solved or self.num_failed:
            notes.append(
                f"cold failures among the cases that were sampled again: {self.num_solved} fewer and "
                f"{self.num_failed} more by the new verdicts"
            )
        return notes


def _pass_changes(before: pl.DataFrame, after: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """Pass@1 with both verifiers, for every phase without hints, iteration and model."""
    rows = []
    before, after = described(before, problems), described(after, problems)
    sampled = before.filter(pl.col("phase") != RESCUE).select("phase", "iteration", "model").unique().sort(pl.all())
    for phase, iteration, model in sampled.iter_rows():
        a, b = (panel(counts, models=[model], phase=phase, iteration=iteration) for counts in (before, after))
        values = {when: pass_at_k(p.n[0], p.c[0], 1) for when, p in ((BEFORE, a), (AFTER, b))}
        estimates = {when: share(v, groups=a.groups, samples_per_unit=float(a.n.mean())) for when, v in values.items()}
        estimates[DIFFERENCE] = difference(values[AFTER] - values[BEFORE], groups=a.groups)
        labels = {"phase": phase, "iteration": iteration, "model": model}
        rows += [{**labels, "when": when, **estimate.row()} for when, estimate in estimates.items()]
    return pl.DataFrame(rows, schema=PASS_CHANGE_TABLE)


def rescore_report(rescored: Rescored) -> list[ReportTable]:
    """Two tables: verdicts that changed, and Pass@1 before and after."""
    total = int(rescored.changes["n"].sum())
    changed = rescored.changes.filter(pl.col("before") != pl.col("after"))
    notes = [f"{int(changed['n'].sum())} of {total} verdicts changed", *rescored.notes, f"written: {rescored.path}"]
    shown = []
    for part in rescored.passes.partition_by("phase", "iteration", "model", maintain_order=True):
        cells = {
            row["when"]: percent(row["estimate"], row["low"], row["high"], signed=row["when"] == DIFFERENCE)
            for row in part.iter_rows(named=True)
        }
        last = part.row(-1, named=True)
        values = (cells.get(when, UNDEFINED) for when in (BEFORE, AFTER, DIFFERENCE))
        shown.append([last["phase"], last["iteration"], last["model"], *values, last["num_problems"], last["note"]])
    columns = ["phase", "iteration", "model", BEFORE, AFTER, DIFFERENCE, "problems", "note"]
    verdicts = laid_out(changed.columns, changed.rows())
    title = "Pass@1 before and after verifying again (percent)"
    return [
        ReportTable("verdicts", "Verdicts that changed", rescored.changes, verdicts, notes),
        ReportTable("rescored", title, rescored.passes, laid_out(columns, shown), [METHOD_NOTE]),
    ]
