"""Tables from published shards: Pass@k, rescue rates and error overlap, each figure with its uncertainty.

    python -m analysis report RUN_OR_SWEEP_DIR... --out DIR

In a notebook:

    from analysis.counts.load import load_run
    from analysis.metrics.passk import pass_at_k_table
    pass_at_k_table(load_run(Path("outputs/demo/demo-1a2b3c4d")).counts, ks=[1, 2])

Every table function (passk, votes, rescue, overlap, compare) takes the counts or answer counts of a run and returns a tidy
`pl.DataFrame`: one figure a row, in the columns estimate, low, high, num_problems and note; shares are fractions (0 to 1),
undefined is null and `note` says why. `curves.curves_table` takes a run folder. This package reads published shards only; it
loads neither torch nor submitit, and matplotlib when it draws.
"""
