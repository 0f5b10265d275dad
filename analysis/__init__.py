"""Tables from published shards: Pass@k, rescue rates and error overlap, each with its uncertainty.

    python -m analysis report RUN_OR_SWEEP_DIR... --out DIR

In a notebook:

    from analysis.counts.load import load_run
    from analysis.metrics.passk import pass_at_k_table
    pass_at_k_table(load_run(Path("outputs/demo/demo-1a2b3c4d")).counts, ks=[1, 2])

The table functions of `metrics/passk.py`, `votes.py`, `rescue.py` and `overlap.py` take the counts
or the answer counts of one run. Those of `compare.py`, `arms.py` and `learning.py` take several runs
(`RunData`), and `curves.curves_table` takes a run folder. They return a tidy `pl.DataFrame` with one row per
figure. The columns of a figure are estimate, low, high, num_problems and note. Shares are fractions
between 0 and 1. An undefined figure is null, and its `note` gives the reason.

This package reads published shards only. It imports neither torch nor submitit, and it imports
matplotlib only when it draws.
"""

import core_hpc  # noqa: F401  # refuses a Python that is too old
