"""Tables from published shards: Pass@k, rescue rates and error overlap, each with its uncertainty.

    python -m analysis report RUN_OR_SWEEP_DIR... --out DIR

In a notebook (yaml/examples/notebook.py is one):

    from analysis.counts.load import load_run
    from analysis.metrics.passk import pass_at_k_table
    pass_at_k_table(load_run(Path("outputs/demo/demo-1a2b3c4d")).counts, ks=[1, 2])

Load (a `RunData` has path, config, models, counts and answers):

    analysis.counts.load.load_run            one run folder; every row is checked
    analysis.counts.load.load_runs           all runs of run and sweep folders
    analysis.counts.load.load_hints          the hints of a run
    core_hpc.store.shards.read_rows          rows of single completions, hints, scores or steps

Tables of one run, from its counts:

    analysis.metrics.passk.pass_at_k_table   Pass@k of models, sub-teams and team
    analysis.metrics.passk.before_after_table  Pass@k before and after training, and the difference
    analysis.metrics.passk.gain_table        the team minus its best model
    analysis.metrics.votes.vote_table        majority votes (from the answers of a run)
    analysis.metrics.rescue.rescue_table     rescue rates with their control
    analysis.metrics.overlap.overlap_table   whether models fail on the same problems
    analysis.metrics.selectors.selector_table  one answer without the gold answer
    analysis.metrics.curves.curves_table     rewards, lengths and losses by iteration (from the run folder)

Tables of several runs, from their `RunData`:

    analysis.metrics.fields.varied_fields    what varies in a sweep
    analysis.metrics.fields.grouped          runs by the values of fields, with seeds as seeds
    analysis.metrics.ranking.ranking_report  configurations, best first, averaged over seeds
    analysis.metrics.compare.compare         B minus A, paired by problem
    analysis.metrics.contrasts.contrasts_table  all differences between arms
    analysis.metrics.arms.arms_table         levels of several arms side by side
    analysis.metrics.learning.learning_table  learning curves over seeds, with their areas
    analysis.report.report.write_reports     a report as a folder with pages

They return a tidy `pl.DataFrame` with one row per figure. The columns of a figure are estimate, low,
high, num_problems and note. Shares are fractions between 0 and 1. An undefined figure is null, and its
`note` gives the reason. The functions whose names end in `report` return a `ReportTable`, whose
`frame` is the tidy table.

This package reads published shards only. It imports neither torch nor submitit, and it imports
matplotlib only when it draws.
"""

import core_hpc  # noqa: F401  # refuses a Python that is too old
