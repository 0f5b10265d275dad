"""Which training problems an iteration has (`protocol.choose`).

In: the configuration, the ids of the training problems, and the scores of earlier iterations. Out:
row numbers of training problems. The choice is a function of published files, so every task of an
iteration finds the same problems, also after a restart. A copy of a run without scores (`rescore` of
analysis) has the row numbers in `RunPaths.chosen` instead.

`order` goes through a seeded order of all problems, epoch by epoch. `pass_rate` draws problems that
the team solved sometimes more often than problems that it solved always or never, whose completions
mostly have equal rewards and advantages of 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core_hpc.common.seeds import stable_seed
from core_hpc.config.run import RunConfig
from core_hpc.problems.splits import problems_of_iteration
from core_hpc.runs.graph import sampler_of
from core_hpc.store import manifests, shards
from core_hpc.store.paths import TEAM, RunPaths, TaskKey
from core_hpc.store.schema import COLD, SCORE, SCORES

SMALLEST_WEIGHT = 0.1
"""Weight of a problem that the team solved always or never. Models change, so it is drawn again."""


def pass_rate_weights(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight of each problem, [n]: 4 r (1 - r) of its last pass rate r, or `SMALLEST_WEIGHT` if that is more.

    A problem without a pass rate (NaN) was not sampled yet, and has the weight 1.

    >>> pass_rate_weights(np.array([np.nan, 0.0, 0.25, 0.5, 1.0])).tolist()
    [1.0, 0.1, 0.75, 1.0, 0.1]
    """
    return np.where(np.isnan(rates), 1.0, np.maximum(4 * rates * (1 - rates), SMALLEST_WEIGHT))


def draw(weights: Sequence[float], count: int, stream: random.Random) -> list[int]:
    """Draw `count` numbers 0 .. n-1 without replacement.

    Each draw has probabilities proportional to the weights of the numbers that are left (Efraimidis
    and Spirakis 2006: the largest of the keys u^(1/w), or the smallest of -log(u)/w).
    """
    keys = [stream.expovariate(weight) for weight in weights]
    return sorted(range(len(keys)), key=keys.__getitem__)[:count]


class Choice:
    """The training problems of each iteration of a run. One thread may use it.

    Args:
        root: the run folder.
        config: its configuration.
    """

    def __init__(self, root: Path, config: RunConfig) -> None:
        self._root = root
        self._config = config
        self._rates: dict[str, float] = {}  # last pass rate of each problem that was sampled
        self._read_until = 0
        self._chosen: dict[int, list[int]] = {}

    def problems(self, iteration: int, problem_ids: pl.Series) -> list[int]:
        """Row numbers of the training problems of a 1-based iteration.

        Args:
            iteration: the iteration.
            problem_ids: ids of all training problems, in their frozen order.

        Raises:
            StoreError: scores that decide about them cannot be read.
        """
        if iteration not in self._chosen:
            self._chosen[iteration] = self._choose(iteration, problem_ids)
        return self._chosen[iteration]

    def _choose(self, iteration: int, problem_ids: pl.Series) -> list[int]:
        protocol, seed = self._config.protocol, self._config.seed
        count = protocol.problems_per_iteration
        if protocol.choose == "order":
            return problems_of_iteration(len(problem_ids), count, iteration, seed)
        if manifests.is_file(RunPaths(self._root).chosen):
            return list(manifests.read_json(RunPaths(self._root).chosen)[str(iteration)])
        known = self._rates_after(sampler_of(iteration, protocol.staleness))
        rates = np.array([known.get(problem_id, np.nan) for problem_id in problem_ids])
        return draw(pass_rate_weights(rates).tolist(), count, random.Random(stable_seed(seed, "choose", iteration)))

    def _rates_after(self, iteration: int) -> dict[str, float]:
        """The last pass rate of each problem that was sampled until an iteration."""
        if iteration < self._read_until:
            self._rates, self._read_until = {}, 0
        while self._read_until < iteration:
            self._rates |= self._pass_rates(self._read_until + 1)
            self._read_until += 1
        return self._rates

    def _pass_rates(self, iteration: int) -> dict[str, float]:
        """The share of correct cold completions of all models, by problem of an iteration."""
        keys = [TaskKey(iteration, SCORE, TEAM, part) for part in range(self._config.num_parts)]
        scores = shards.read_tasks(self._root, keys, SCORES, columns=["phase", "problem_id", "correct"])
        cold = scores.filter(pl.col("phase") == COLD)
        return dict(cold.group_by("problem_id").agg(pl.col("correct").mean()).iter_rows())
