"""SLURM: its commands, submissions through submitit, what runs in a job, and the drivers `arrays` and `resident`.

Modules import downwards only: answers, commands; element, rendezvous; outcomes, resident_job,
submissions; watch; executor; arrays, resident; detach.
"""
