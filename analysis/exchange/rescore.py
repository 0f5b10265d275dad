"""Extract and verify a run's stored completions again, with the verifier of this version.

In: a run folder (or imported predictions). Out: a new run folder with the same problems and completions, other answers
and verdicts, and what changed. The original is read, never touched. Rewards, updates and adapters belong to the original
verdicts and are not in the new folder: it is there to be analysed, not to be continued.

`cold_failed` of rescue rows is found anew, from the new verdicts of the cold completions. Hints were drawn under the
original verdicts, and one might keep those; but whether a completion saw the hint was drawn independently of its
problem's verdicts, and cold completions come before it, so hinted and un-hinted completions stay comparable among any
cases that cold verdicts choose. Kept, the column would contradict its meaning (no correct cold completion), and a case
in which the first verifier erred would be a failure for some rates and not for others. What the draw knew stays in the
hint shards, which are copied as they are. A new cold failure that was never sampled again counts where all cold-failed
cases are the denominator (recovery), and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from analysis.counts.counts import COUNTS, count_rows, panel
from analysis.counts.load import configuration, described, problems_of
from analysis.exchange.folder import new_folder, one_run, require_free, verifier_version
from analysis.layout.tables import UNDEFINED, ReportTable, laid_out, percent
from analysis.metrics.passk import AFTER, BEFORE, DIFFERENCE
from analysis.stats.estimators import pass_at_k
from analysis.stats.intervals import ESTIMATE_COLUMNS, METHOD_NOTE, from_draws, resampled_means, share
from core_hpc.answers.extract import extract_answer, verify_many
from core_hpc.answers.kinds import KINDS
from core_hpc.common.errors import InputError, StoreError
from core_hpc.problems.splits import split_of
from core_hpc.runs.folder import read_identity
from core_hpc.store import manifests
from core_hpc.store.manifests import Manifest
from core_hpc.store.paths import MANIFEST_SUFFIX, RunPaths
from core_hpc.store.schema import COLD, CORRECT, EVALUATE, HINT, HINTS, NO_ANSWER, PROBLEMS, RESCUE, ROLLOUTS
from core_hpc.store.shards import publish_frame, published_keys, read_manifest_table

_ORDER = (COLD, HINT, RESCUE, EVALUATE)  # cold first: rescue rows say what became of it

_SOLVED = pl.Schema({"iteration": pl.Int32(), "model": pl.String(), "problem_id": pl.String(), "solved": pl.Boolean()})

CHANGE_TABLE = pl.Schema(
    {"phase": pl.String(), "model": pl.String(), "before": pl.String(), "after": pl.String(), "n": pl.Int64()}
)
PASS_CHANGE_TABLE = pl.Schema(
    {"phase": pl.String(), "iteration": pl.Int32(), "model": pl.String(), "when": pl.String(), **ESTIMATE_COLUMNS}
)


@dataclass(frozen=True)
class Rescored:
    """What became of a run's verdicts."""

    path: Path
    changes: pl.DataFrame  # CHANGE_TABLE: completions by verdict before and after, those that stayed included
    passes: pl.DataFrame  # PASS_CHANGE_TABLE: Pass@1 before, after, and the difference paired by problem
    notes: list[str]


def rescore(run: Path, out: Path) -> Rescored:
    """Write a copy of a run's problems and completions with new answers and verdicts.

    A completion without a stored text (imported as an answer alone), or of a problem whose answers are not verified here,
    keeps its verdict; the notes say how many.

    Args:
        run: a run folder, finished or in progress: what is published counts.
        out: the folder to make; must not exist, or be empty.

    Raises:
        InputError: `run` is no run, or `out` cannot be made.
        StoreError: a published file is damaged, or has a completion of an unknown problem; the message names it.
            Nothing was written.
    """
    run, out = one_run(run), Path(out).resolve()
    if out.is_relative_to(run):
        raise InputError(f"{out}: lies in the run folder, which is never written into; give another folder as --out")
    require_free(out)
    identity, verifier = read_identity(run), verifier_version()
    config, _ = configuration(run)
    with new_folder(out) as folder:
        work = _Rescoring(run, folder, _copy_problems(run, folder))
        keys = [key for key in published_keys(run) if key.phase in _ORDER]
        for key in sorted(keys, key=lambda key: (key.iteration, _ORDER.index(key.phase), key)):
            work.take(manifests.read_manifest(RunPaths(run).task_manifest(key)), key.phase)
        if config is not None:
            manifests.write_json(RunPaths(folder).config, manifests.read_json(RunPaths(run).config))
        rescored = {"original": str(run), "verifier": verifier, "verifier_before": _verifier_before(identity)}
        manifests.write_json(RunPaths(folder).identity, {**identity, "rescored": rescored})
        passes = _pass_changes(_joined(work.before, COUNTS), _joined(work.after, COUNTS), problems_of(folder, config))
    changes = _joined(work.changes, CHANGE_TABLE).group_by("phase", "model", "before", "after").agg(pl.col("n").sum())
    return Rescored(out, changes.select(list(CHANGE_TABLE)).sort(pl.all()), passes, work.notes())


def _joined(frames: list[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=schema), *frames])


def _verifier_before(identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The verifier that the stored verdicts are of, as far as the run knows it."""
    for made in ("rescored", "imported"):
        if made in identity:
            return dict(identity[made]["verifier"])
    known = identity.get("provenance", {})
    return {name: known[name] for name in ("core_hpc", "git_commit", "git_modified") if name in known} or None


def _copy_problems(run: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Publish the frozen problems in the new folder. Returns split -> problem -> kind of answer."""
    kinds = {}
    for path in manifests.list_manifests(RunPaths(run).problems):
        frame = read_manifest_table(manifests.read_manifest(path), PROBLEMS, checksum=True)
        split = path.name.removesuffix(MANIFEST_SUFFIX)
        publish_frame(RunPaths(folder).problems, split, frame, PROBLEMS)
        kinds[split] = dict(frame.select("problem_id", "answer_kind").iter_rows())
    return kinds


@dataclass
class _Rescoring:
    """One pass over the shards of a run, and what was seen on the way."""

    run: Path
    folder: Path
    kinds: dict[str, dict[str, str]]
    before: list[pl.DataFrame] = field(default_factory=list)  # COUNTS of each shard
    after: list[pl.DataFrame] = field(default_factory=list)
    changes: list[pl.DataFrame] = field(default_factory=list)
    solved: list[pl.DataFrame] = field(default_factory=list)  # of cold problems: has the model a correct completion now
    num_kept: int = 0
    num_solved: int = 0  # rescued cases that count as cold failures no more
    num_failed: int = 0  # ... that do now

    def take(self, manifest: Manifest, phase: str) -> None:
        """Publish one shard anew."""
        place, name = (
            self.folder / manifest.path.parent.relative_to(self.run),
            manifest.path.name.removesuffix(MANIFEST_SUFFIX),
        )
        if phase == HINT:
            publish_frame(
                place, name, read_manifest_table(manifest, HINTS, checksum=True), HINTS, stats=lambda: manifest.stats
            )
            return
        old = read_manifest_table(manifest, ROLLOUTS, checksum=True)
        new = self._verified(old, self.kinds.get(split_of(phase), {}), str(manifest.file(".parquet")))
        if phase == COLD:
            self.solved.append(new.group_by("iteration", "model", "problem_id").agg(solved=pl.col("correct").any()))
        if phase == RESCUE:
            new = self._cases_again(new)
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
                f"{source}: problem {min(unknown)!r} is not among the run's problems; the folder is not complete"
            )
        rows = list(old.select("problem_id", "text", "gold", "answer", "verdict").iter_rows())
        checked = [
            kinds[problem] in KINDS and (text != "" or verdict == NO_ANSWER) for problem, text, _, _, verdict in rows
        ]
        self.num_kept += checked.count(False)
        answers = [
            extract_answer(row[1], kinds[row[0]]) if fresh else row[3] for row, fresh in zip(rows, checked, strict=True)
        ]
        claims = [
            (answer, row[2], kinds[row[0]]) for answer, row, fresh in zip(answers, rows, checked, strict=True) if fresh
        ]
        found = iter(verify_many(claims))
        verdicts = [next(found) if fresh else row[4] for row, fresh in zip(rows, checked, strict=True)]
        new = [pl.Series("answer", answers, pl.String), pl.Series("verdict", verdicts, pl.String)]
        return old.with_columns(new).with_columns(correct=pl.col("verdict") == CORRECT)

    def _cases_again(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rescue rows with cold_failed by the new verdicts; as recorded where no cold completion is published."""
        key = ["iteration", "model", "problem_id"]
        found = rows.join(_joined(self.solved, _SOLVED), on=key, how="left", maintain_order="left")
        failed = pl.coalesce(~pl.col("solved"), "cold_failed")
        cases = found.select(*key, was="cold_failed", now=failed).unique()
        self.num_solved += cases.filter(pl.col("was") & ~pl.col("now")).height
        self.num_failed += cases.filter(~pl.col("was") & pl.col("now")).height
        return found.with_columns(cold_failed=failed).drop("solved")

    def notes(self) -> list[str]:
        kept = f"{self.num_kept} completions kept their verdicts: no text is stored, or their answers are not verified here"
        cases = f"of the cases that were sampled again, {self.num_solved} are cold failures no more, and {self.num_failed} are now"
        return [kept] * bool(self.num_kept) + [cases] * bool(self.num_solved or self.num_failed)


def _pass_changes(before: pl.DataFrame, after: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """Pass@1 of every un-hinted phase, iteration and model under both verifiers."""
    rows = []
    before, after = described(before, problems), described(after, problems)
    sampled = before.filter(pl.col("phase") != RESCUE).select("phase", "iteration", "model").unique().sort(pl.all())
    for phase, iteration, model in sampled.iter_rows():
        a, b = (panel(counts, models=[model], phase=phase, iteration=iteration) for counts in (before, after))
        values = {when: pass_at_k(p.n[0], p.c[0], 1) for when, p in ((BEFORE, a), (AFTER, b))}
        estimates = {when: share(v, groups=a.groups, samples_per_unit=float(a.n.mean())) for when, v in values.items()}
        change = values[AFTER] - values[BEFORE]
        draws = resampled_means(change[:, None], a.groups)[:, 0]
        estimates[DIFFERENCE] = from_draws(float(change.mean()), draws, num_problems=a.num_problems, groups=a.groups)
        labels = {"phase": phase, "iteration": iteration, "model": model}
        rows += [{**labels, "when": when, **estimate.row()} for when, estimate in estimates.items()]
    return pl.DataFrame(rows, schema=PASS_CHANGE_TABLE)


def rescore_report(rescored: Rescored) -> list[ReportTable]:
    """What changed, for reading: verdicts from what to what, and Pass@1."""
    total = int(rescored.changes["n"].sum())
    changed = rescored.changes.filter(pl.col("before") != pl.col("after"))
    said = [f"{int(changed['n'].sum())} of {total} verdicts changed", *rescored.notes, f"written: {rescored.path}"]
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
    title = "Pass@1 before and after verifying again (percent)"
    return [
        ReportTable(
            "verdicts", "Verdicts that changed", rescored.changes, laid_out(changed.columns, changed.rows()), said
        ),
        ReportTable("rescored", title, rescored.passes, laid_out(columns, shown), [METHOD_NOTE]),
    ]
