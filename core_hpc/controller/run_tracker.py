"""The points of one run: which ones a published task completes, and what they are.

In: manifests, scores, hints, steps and evaluation rollouts that are published. Out: points and sample
texts, which `points.py` writes as events. The tags of measures and their groups are there, too. When a
run begins its files anew is decided in `tracking.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import polars as pl

from analysis.counts.counts import ROW_COLUMNS, count_rows
from analysis.metrics.curves import STEP_MEASURES, score_points
from analysis.metrics.passk import FIRST, PASS_HAT, pass_at_k_table
from analysis.metrics.rescue import leak_points
from analysis.timing.account import iteration_table, waited_table
from analysis.timing.critical_path import TaskTime
from analysis.timing.recorded import RunTimes, task_time, with_submissions
from core_hpc import __version__
from core_hpc.config.identity import flatten, scientific_fields
from core_hpc.controller import samples
from core_hpc.controller.event_files import EventFiles, read_content
from core_hpc.controller.points import Points, PointWriter
from core_hpc.problems.sets import by_set
from core_hpc.runs.folder import Run
from core_hpc.runs.names import title_of
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TEAM, TaskKey
from core_hpc.store.schema import (
    EVALUATE,
    GENERATION_PHASES,
    HINT,
    HINTS,
    ROLLOUTS,
    SCORE,
    SCORES,
    STEPS,
    UPDATE,
    WARMUP,
)

_OF_WARMUP = ("loss", "grad_norm", "learning_rate")
"""Columns of the steps of a warm-up with a curve. The other ones are of reinforcement learning."""


def has_all_points(run: Run, published: set[TaskKey]) -> bool:
    """Whether the event files have the points of all publications, and the end of a start. This changes nothing.

    Files that another version of core_hpc has completed are complete.
    """
    content = read_content(run.paths.tensorboard, _names(run))
    return (
        content is not None
        and content.is_ended
        and content.written == {str(key) for key in published}
        and content.made_from.get("set_aside") == shards.set_aside_names(run.root)
    )


def _names(run: Run) -> tuple[str, ...]:
    """The folders of the event files."""
    return (*(m.name for m in run.config.team), TEAM)


class RunTracker:
    """Writes the event files of one run.

    If the run has another tracker (`tracking.wandb`), the points are also kept until they are taken.
    """

    def __init__(self, run: Run, *, anew: bool = False) -> None:
        """Open the event files. `anew`: remove what earlier starts wrote."""
        self._run = run
        self._graph = run.graph()
        self._published: set[TaskKey] = set()
        made_from = {"version": __version__, "set_aside": shards.set_aside_names(run.root)}
        self._files = EventFiles(run.paths.tensorboard, _names(run), made_from=made_from, anew=anew)
        self._points = PointWriter(self._files, keeps=run.config.tracking.wandb is not None)
        self._final: dict[str, float] = dict(self._files.final)
        self._samples = samples.SamplePages(run)
        self._times: list[TaskTime] = []
        if self._files.is_new:
            self._write_hyperparameters()

    @property
    def written(self) -> set[str]:
        """Tasks whose points are in the event files."""
        return self._files.written

    def catch_up(self, published: set[TaskKey]) -> None:
        """Write the points of all published tasks that are not in the files."""
        missing = sorted(key for key in published if str(key) not in self.written)
        unwritten = {*missing, *(set(self._graph.tasks()) - published)}
        # The time of an iteration is computed from its tasks and those of the iteration before.
        first = min((key.iteration for key in unwritten), default=0) - 1
        for key in sorted(published - set(missing)):
            if unwritten and key.iteration >= first:
                self._times.append(task_time(key, manifests.read_manifest(self._run.paths.task_manifest(key))))
        for key in missing:
            self.task_published(key, published)

    def task_published(self, key: TaskKey, published: set[TaskKey]) -> None:
        """Write the points that this task completes."""
        self._published = published
        self._files.discard()
        manifest = manifests.read_manifest(self._run.paths.task_manifest(key))
        time_s = manifest.writer["time"]
        self._times.append(task_time(key, manifest))
        self._write_speed(key, manifest)
        is_last = self._are_written(self._alike(key), key)
        if key.phase == SCORE and is_last:
            self._write_scores(key, time_s)
        elif key.phase == HINT and is_last:
            self._write_leaks(key, time_s)
        elif key.phase == UPDATE:
            self._write_steps(key, manifest, time_s)
            if is_last:
                self._write_time(key, time_s)
        elif key.phase == WARMUP:
            self._write_warmup(key, manifest, time_s)
        elif key.phase == EVALUATE and is_last:
            self._write_evaluation(key, time_s)
            self._write_samples(key)
        self._files.record(str(key), final=self._final)

    def close(self, *, finished: bool) -> None:
        """Write the end of the hyper-parameter session, with the figures of the last evaluation."""
        self._points.end(self._final, finished=finished)

    def take_points(self) -> list[Points]:
        """The points that were written since the last call, in their order."""
        return self._points.take()

    def _alike(self, key: TaskKey) -> list[TaskKey]:
        """All tasks of the same phase and iteration.

        An evaluation after what was once the last iteration is not a task of a longer run. Its points stay.
        """
        own = self._graph.tasks_of(key.iteration) if key.iteration <= self._graph.iterations else []
        alike = [k for k in own if k.phase == key.phase]
        if alike:
            return alike
        return sorted(k for k in self._published if (k.phase, k.iteration) == (key.phase, key.iteration))

    def _are_written(self, keys: Iterable[TaskKey], now: TaskKey) -> bool:
        """Whether tasks have their points in the files, apart from the one that is written now."""
        return all(k == now or str(k) in self.written for k in keys)

    def _write_speed(self, key: TaskKey, manifest: manifests.Manifest) -> None:
        stats, time_s = manifest.stats, manifest.writer["time"]
        part = f"/part{key.part}" if key.part else ""
        for name, seconds in stats.get("seconds", {}).items():
            self._points.scalar(key.model, f"seconds_{key.phase}/{name}{part}", seconds, key.iteration, time_s)
        named = {
            **dict.fromkeys(GENERATION_PHASES, ("num_completion_tokens", "generate")),
            UPDATE: ("num_tokens", UPDATE),
        }
        amount, working = named.get(key.phase, ("", ""))
        tokens, spent_s = stats.get(amount), stats.get("seconds", {}).get(working)
        if tokens is None or spent_s is None or (key.phase != UPDATE and not tokens):
            return
        if key.phase == UPDATE and "num_padded_tokens" in stats:
            padding_share = 1 - tokens / max(stats["num_padded_tokens"], 1)
            self._points.scalar(key.model, "speed/update_padding_share", padding_share, key.iteration, time_s)
        speed = tokens / max(spent_s, 1e-9)
        self._points.scalar(key.model, f"speed/{key.phase}_tokens_per_s{part}", speed, key.iteration, time_s)

    def _write_time(self, key: TaskKey, time_s: float) -> None:
        """Write time, overhead and waiting of an iteration, once its updates are published."""
        # Tasks of the iteration may have waited for the previous one. Earlier ones are not needed.
        self._times = [t for t in self._times if t.key.iteration >= key.iteration - 1]
        times = RunTimes(tuple(with_submissions(self._times, self._run.paths.slurm)), self._graph)
        row = iteration_table(times).filter(iteration=key.iteration).row(0, named=True)
        points = {f"time/{name}": row[name] for name in ("wall_s", "bound_s", "overhead", "overhead_without_queue")}
        waited = waited_table(times).filter(iteration=key.iteration).group_by("item").agg(pl.col("seconds").sum())
        points |= {f"waited_s/{item}": seconds for item, seconds in waited.rows()}
        self._points.scalars(TEAM, points, key.iteration, time_s)

    def _write_scores(self, key: TaskKey, time_s: float) -> None:
        scores = shards.read_tasks(self._run.root, self._alike(key), SCORES)
        for model in (*scores["model"].unique(maintain_order=True), TEAM):
            rows = scores if model == TEAM else scores.filter(pl.col("model") == model)
            self._points.scalars(model, score_points(rows), key.iteration, time_s)

    def _write_leaks(self, key: TaskKey, time_s: float) -> None:
        """Share of the hints in which the gold answer is the result of a step, by student and for the team."""
        hints = shards.read_tasks(self._run.root, self._alike(key), HINTS, columns=["model", "leak"])
        for model, share in leak_points(hints).items():
            self._points.scalar(model, "rescue/leak_share", share, key.iteration, time_s)

    def _write_steps(self, key: TaskKey, manifest: manifests.Manifest, time_s: float) -> None:
        for row in shards.read_manifest_table(manifest, STEPS).iter_rows(named=True):
            points = {tag: row[column] for column, tag in STEP_MEASURES.items()}
            self._points.scalars(key.model, points, row["global_step"], time_s)

    def _write_warmup(self, key: TaskKey, manifest: manifests.Manifest, time_s: float) -> None:
        steps = shards.read_manifest_table(manifest, STEPS, columns=["global_step", *_OF_WARMUP])
        for row in steps.iter_rows(named=True):
            points = {f"warmup/{column}": row[column] for column in _OF_WARMUP}
            self._points.scalars(key.model, points, row["global_step"], time_s)

    def _write_evaluation(self, key: TaskKey, time_s: float) -> None:
        rows = shards.read_tasks(self._run.root, self._alike(key), ROLLOUTS, columns=ROW_COLUMNS)
        counts = count_rows(rows, source=str(self._run.root))
        for name, own, of_set in by_set(self._run.config, counts):
            self._write_set(name, of_set, own.evaluation.samples, key, time_s)

    def _write_set(self, name: str, counts: pl.DataFrame, samples: int, key: TaskKey, time_s: float) -> None:
        """Write the points of one set of an evaluation; the main one has the empty name."""
        group = f"evaluation/{name}" if name else "evaluation"
        for model in (*(m.name for m in self._run.config.team), TEAM):
            own = counts if model == TEAM else counts.filter(pl.col("model") == model)
            for what in ("truncated", "no_answer"):
                share = int(own[f"num_{what}"].sum()) / max(int(own["n"].sum()), 1)
                self._points.scalar(model, f"{group}/{what}_share", share, key.iteration, time_s)
        ks = self._ks(samples)
        table = pass_at_k_table(counts, ks=ks, models=[m.name for m in self._run.config.team], teams=[])
        shown = table.filter(pl.col("estimate").is_not_null(), ~pl.col("measure").is_in([FIRST, PASS_HAT]))
        for row in shown.iter_rows(named=True):
            # Pass@k of the team is in the same chart as Pass@k of the models.
            tag = row["measure"].removeprefix("team_") + (f"/k{row['k']}" if row["k"] is not None else "")
            self._points.scalar(row["model"], f"{group}/{tag}", row["estimate"], key.iteration, time_s)
            if not name and tag.startswith("pass/"):
                self._final[f"{tag}/{row['model']}"] = row["estimate"]

    def _write_samples(self, key: TaskKey) -> None:
        """Write a page of sample texts per model, once the first evaluation has chosen the problems.

        Args:
            key: the last task of an evaluation.
        """
        stored = {k.iteration for k in self._published if k.phase == EVALUATE}
        tasks = {i: self._alike(replace(key, iteration=i)) for i in sorted({*self._graph.evaluated(), *stored})}
        whole = [i for i, keys in tasks.items() if self._are_written(keys, key)]
        first = min(tasks)
        if first not in whole:
            return
        if not self._samples.are_chosen:
            self._samples.choose(tasks[first])
        # Evaluations that were complete before the first one have no page yet.
        for iteration in whole if key.iteration == first else [key.iteration]:
            keys = tasks[iteration]
            time_s = max(manifests.read_manifest(self._run.paths.task_manifest(k)).writer["time"] for k in keys)
            for model in dict.fromkeys(k.model for k in keys):
                if page := self._samples.page(model, keys):
                    self._points.text(model, samples.TAG, page, iteration, time_s)

    def _ks(self, num_samples: int) -> list[int]:
        """The k of Pass@k that is shown, of a set with so many completions."""
        return [k for k in (1, 2, 4, 8, 16) if k <= num_samples]

    def _write_hyperparameters(self) -> None:
        config = self._run.config
        figures = [f"pass/k{k}/{name}" for k in self._ks(config.evaluation.samples) for name in _names(self._run)]
        fields = flatten(scientific_fields(config))
        self._points.hyperparameters(fields, figures, title_of(config.name, self._run.run_id))
