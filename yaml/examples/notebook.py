# %% [markdown]
# # The results of a sweep in a notebook
#
# This file is a notebook in the percent format: VS Code and Jupyter (with jupytext) open it as cells,
# and `python yaml/examples/notebook.py outputs/SWEEP` runs it from top to bottom. It only reads.
# `help(analysis)` lists the functions that a notebook needs.

# %%
import sys
from pathlib import Path

import polars as pl

from analysis.counts.load import load_hints, load_runs
from analysis.metrics.curves import curves_table
from analysis.metrics.fields import varied_fields
from analysis.metrics.passk import before_after_table, default_ks, pass_at_k_table
from analysis.metrics.ranking import ranking_report
from analysis.metrics.rescue import rescue_table
from core_hpc.store.schema import ROLLOUTS
from core_hpc.store.shards import read_rows

SWEEP = Path(sys.argv[1] if len(sys.argv) == 2 else "outputs/quickstart")

# %% [markdown]
# ## Load
#
# Every row is checked against the configuration of its run. Votes need `answers=True`, which takes
# twice the time.

# %%
runs = load_runs([SWEEP], answers=False)
first = runs[0]
ks = default_ks(first.num_samples)
print(f"{len(runs)} run(s); they differ in: {', '.join(varied_fields(runs)) or 'their seeds only'}")

# %% [markdown]
# ## Pass@k of one run, before and after training

# %%
print(before_after_table(first.counts, ks=ks, models=first.models))
team = pass_at_k_table(first.counts, ks=ks, models=first.models).filter(measure="team_pass")
print(team.select("iteration", "k", "estimate", "low", "high", "num_problems"))

# %% [markdown]
# ## All configurations of a grid, averaged over seeds
#
# A rank is no test. `python -m analysis compare SWEEP --by FIELD` has the p values.

# %%
ranking = ranking_report(runs)
print(ranking.title)
print(ranking.frame)

# %% [markdown]
# ## Does a hint help?

# %%
rescues = rescue_table(first.counts, groups=["all"], hints=load_hints(first.path))
print(rescues.select("rate", "estimate", "low", "high", "num_problems"))

# %% [markdown]
# ## Training curves, and rows of single completions

# %%
curves = curves_table(first.path)
print(curves.filter(pl.col("measure").str.contains("length/mean")))
rows = read_rows(first.path, ROLLOUTS, phases=["evaluate"], columns=["iteration", "model", "correct"])
print(rows.group_by("iteration", "model").agg(pl.col("correct").mean()).sort("iteration", "model"))
