"""SLURM: its commands, submissions, what runs in a job, and the drivers `arrays` and `resident`.

From the lowest module to the highest, which imports the others: `parse`, `commands`, `records`;
`reasons`, `sbatch`, `job`, `submit`, `acceptance`; `outcomes`, `notices`, `watch`; `remedies`, `pace`, `packing`;
`arrays`, `resident`; `executor`. Inside jobs `job` calls `element` or
`resident_job`; `rendezvous` runs in the batch script.
"""
