"""Loads one run for the tables: its configuration, its counts and the attributes of its problems.

The input is a run folder. The output is `RunData`. Loading a run never writes into its folder. Only
`keep_counts` writes, and only the run itself may call it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from analysis.counts import cache
from analysis.counts.counts import COUNTS, NO_MODEL, RESCUE_PUBLISHED
from analysis.counts.tasks import count_tasks
from core_hpc.common.errors import InputError
from core_hpc.config.problems import TrainingSource
from core_hpc.config.run import RunConfig
from core_hpc.problems.sets import set_names, set_of
from core_hpc.problems.splits import EVALUATION, TRAIN, split_of
from core_hpc.runs.folder import list_runs, read_identity, read_run_config
from core_hpc.runs.names import title_of
from core_hpc.store import manifests
from core_hpc.store.paths import RunPaths
from core_hpc.store.schema import ATTRIBUTES, COLD, EVALUATE, GENERATION_PHASES, HINT, HINTS, PROBLEMS, RESCUE
from core_hpc.store.shards import published_keys, read_manifest_table, read_rows, task_of_manifest


@dataclass(frozen=True)
class RunData:
    """The data of one run at the time it was read."""

    path: Path
    config: RunConfig | None  # None: imported predictions, which have no configuration
    models: list[str]  # the team, in the order of the configuration
    counts: pl.DataFrame  # columns of COUNTS and ATTRIBUTES, and RESCUE_PUBLISHED
    answers: pl.DataFrame  # columns of ANSWERS and ATTRIBUTES
    left_out: list[str] = field(default_factory=list)  # --lenient: what was left out and why, one line per item
    sets: dict[str, RunData] = field(default_factory=dict)  # further sets of the evaluation, each like a run
    evaluation_set: str = ""  # the set that these data are of; empty: the main one

    @property
    def name(self) -> str:
        return self.path.name + self._of_set

    @property
    def title(self) -> str:
        """The sweep and what varies in it, for titles; of imported predictions, the name of the folder."""
        name = self.path.name
        return (name if self.config is None else title_of(self.config.name, name)) + self._of_set

    @property
    def _of_set(self) -> str:
        return f", set {self.evaluation_set}" if self.evaluation_set else ""

    @property
    def num_samples(self) -> int:
        """Completions per held-out problem and model."""
        if self.config is not None:
            return self.config.evaluation.samples
        most = self.counts.filter(pl.col("phase") == EVALUATE)["n"].max()
        return most if isinstance(most, int) else 0

    @property
    def only_evaluates(self) -> bool:
        """Whether the run has `iterations: 0`: it evaluates models as they are, and trains none."""
        return self.config is not None and self.config.iterations == 0


def load_run(run: Path, *, answers: bool = True, lenient: bool = False) -> RunData:
    """Load the counts and the configuration of a run, or of imported predictions.

    The run may be finished or in progress.

    Args:
        run: the folder.
        answers: also count the answers. Only votes need them, and they double the time.
        lenient: leave out what cannot be used and report it in `left_out`, instead of an error.

    Raises:
        InputError: the folder is not a run folder.
        StoreError: a published shard is damaged, or its rows are not what the configuration asks
            for. The message gives the file and the row.
    """
    run = Path(run).resolve()
    config, models = configuration(run)
    problems = problems_of(run, config)
    counted = cache.read(run, answers=answers) if not lenient else {}
    keys = [k for k in published_keys(run) if k.phase in GENERATION_PHASES]
    new = [k for k in keys if k.iteration not in counted]
    fresh, left_out = count_tasks(run, new, problems, config, answers=answers, lenient=lenient)
    rescued = {i: {k.model for k in keys if (k.iteration, k.phase) == (i, RESCUE)} for i in counted}
    counts = pl.concat([*(_complete(cached.counts, rescued[i]) for i, cached in counted.items()), fresh.counts])
    counts = pl.concat([counts, _unpublished(counts, problems)], how="diagonal")
    answer_counts = pl.concat(part.answers for part in [*counted.values(), fresh])
    data = RunData(run, config, models, described(counts, problems), described(answer_counts, problems), left_out)
    return _by_set(data)


def _unpublished(counts: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """Counts of the held-out problems that no model has in an evaluation, so that tables can name their number."""
    known = counts.filter(pl.col("phase") == EVALUATE).select("iteration", "problem_id").unique()
    split = problems.filter(pl.col("split") == EVALUATION).select("problem_id")
    absent = known.select("iteration").unique().join(split, how="cross").join(known, on=known.columns, how="anti")
    zeros = [pl.lit(0, dtype).alias(name) for name, dtype in COUNTS.items() if dtype == pl.Int64]
    return absent.select("iteration", pl.lit(EVALUATE).alias("phase"), NO_MODEL.alias("model"), "problem_id", *zeros)


def of_main_set(config: RunConfig | None) -> pl.Expr:
    """Whether a row with the columns phase and problem_id belongs to no further set of the evaluation."""
    names = set_names(config) if config is not None else []
    return (pl.col("phase") != EVALUATE) | (set_of(names) == "")


def _by_set(data: RunData) -> RunData:
    """The data of the main set of the evaluation, with those of the further sets beside them (`sets`)."""
    if data.config is None or not data.config.evaluation.sets:
        return data
    names, main, sets = set_names(data.config), of_main_set(data.config), {}
    for name in names:
        own = (pl.col("phase") == EVALUATE) & (set_of(names) == name)
        sets[name] = replace(
            data,
            config=data.config.for_set(name),
            counts=data.counts.filter(own),
            answers=data.answers.filter(own),
            evaluation_set=name,
        )
    return replace(data, counts=data.counts.filter(main), answers=data.answers.filter(main), sets=sets)


def _complete(counts: pl.DataFrame, rescued: Collection[str]) -> pl.DataFrame:
    """Add RESCUE_PUBLISHED to the cached counts of an iteration.

    rescued: the models with published rescue tasks. Only complete iterations are cached, so all
    their rescue tasks are published.
    """
    is_published = pl.when(pl.col("phase") == COLD).then(pl.col("model").is_in(list(rescued)))
    return counts.with_columns(is_published.alias(RESCUE_PUBLISHED))


def configuration(run: Path) -> tuple[RunConfig | None, list[str]]:
    """Read the configuration of a run, and the names of its models in their order.

    The configuration is None for imported predictions.

    Raises:
        InputError: the folder is not a run folder.
    """
    if not RunPaths(run).identity.is_file():
        raise InputError(f"{run}: not a run folder (no {RunPaths(run).identity.name} in it)")
    imported = read_identity(run).get("imported")
    if imported is not None:
        return None, list(imported["models"])
    config = read_run_config(run)
    return config, [m.name for m in config.team]


def load_hints(run: Path) -> pl.DataFrame:
    """Read the length of every published hint, and whether the gold answer stands in it.

    Returns:
        Columns iteration, model (the student), problem_id, num_hint_tokens and leak (null in files
        of an earlier version).
    """
    columns = ["iteration", "model", "problem_id", "num_hint_tokens", "hint", "leak"]
    rows = read_rows(run, HINTS, phases=[HINT], columns=columns)
    return rows.filter(pl.col("hint").is_not_null()).drop("hint")


def keep_counts(run: Path, iteration: int) -> None:
    """Count an iteration and store the counts in the run folder (`counts/cache.py`).

    All tasks of the iteration must be published.

    Raises:
        StoreError: a shard is damaged, or its rows are incorrect.
    """
    config, listing = read_run_config(run), cache.sources(run, iteration)
    folders = [RunPaths(run).phase_folder(phase, iteration) for phase in GENERATION_PHASES]
    paths = [path for folder in folders for path in manifests.list_manifests(folder)]
    keys = sorted(key for path in paths if (key := task_of_manifest(path)) is not None)
    # A controller runs this. Some damage ends the whole process inside Polars (store/parquet.py).
    problems = problems_of(run, config)
    counted, _ = count_tasks(run, keys, problems, config, answers=True, lenient=False, checksum=True)
    cache.write(run, iteration, counted, listing)


def problems_of(run: Path, config: RunConfig | None) -> pl.DataFrame:
    """Read the frozen problems of both splits.

    Returns:
        Columns split, problem_id, question, gold and ATTRIBUTES. The attributes are the fields with
        these names in the metadata of a problem. A problem without `data_set` gets the name of its
        source.
    """
    frames = []
    for split in (TRAIN, EVALUATION):
        path = RunPaths(run).problems / f"{split}.manifest.json"
        if not path.is_file():
            continue
        frame = read_manifest_table(manifests.read_manifest(path), PROBLEMS)
        metadata = frame["metadata"].str.json_decode(pl.Struct({name: pl.String() for name in ATTRIBUTES}))
        fields = frame.select(pl.lit(split).alias("split"), "problem_id", "question", "gold")
        known = fields.hstack(metadata.struct.unnest())
        frames.append(known.with_columns(pl.col("data_set").fill_null(_source_names(config, split))))
    schema = {**dict.fromkeys(("split", "problem_id", "question", "gold"), pl.String()), **ATTRIBUTES}
    return pl.concat(frames).select(list(schema)) if frames else pl.DataFrame(schema=schema)


def _source_names(config: RunConfig | None, split: str) -> pl.Expr:
    """The name of the source of a problem, as an expression on the column `problem_id`."""
    if config is None:
        return pl.lit("imported")
    if split == TRAIN:
        return pl.lit(_name_of(config.problems.train))
    sets = set_names(config)
    names = {name: _name_of(config.for_set(name).problems.evaluation) for name in ("", *sets)}
    return set_of(sets).replace_strict(names, return_dtype=pl.String)


def _name_of(source: TrainingSource) -> str:
    return source.task if source.source == "generated" else source.source


def described(rows: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """Add the ATTRIBUTES of the problems to rows that have the columns phase and problem_id."""
    frames = []
    for split in (TRAIN, EVALUATION):
        known = problems.filter(pl.col("split") == split).select("problem_id", *ATTRIBUTES)
        here = rows.filter(pl.col("phase").is_in([phase for phase in GENERATION_PHASES if split_of(phase) == split]))
        frames.append(here.join(known, on="problem_id", how="left", maintain_order="left"))
    # The parts of many tasks become one piece here. Otherwise, each later group-by would copy them into one.
    return pl.concat(frames, rechunk=True)


def load_runs(
    paths: Sequence[Path], *, answers: bool = True, lenient: bool = False, evaluation_set: str | None = None
) -> list[RunData]:
    """Load all runs in these run and sweep folders, each of them once.

    Args:
        paths: the folders.
        answers: as in `load_run`, like `lenient`.
        evaluation_set: name of a further set of the evaluation (`evaluation.sets`), instead of the
            main one.

    Raises:
        InputError: a path is neither a run nor a sweep folder, or a run has no such set.
    """
    runs = dict.fromkeys(run.resolve() for path in paths for run in list_runs(Path(path)))
    loaded = [load_run(run, answers=answers, lenient=lenient) for run in runs]
    if evaluation_set is None:
        return loaded
    for data in loaded:
        if evaluation_set not in data.sets:
            have = f"only {', '.join(data.sets)}" if data.sets else "and no other one"
            raise InputError(f"--set {evaluation_set}: {data.path} has no such evaluation set, {have}")
    return [data.sets[evaluation_set] for data in loaded]
