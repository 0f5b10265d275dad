"""SLURM: its commands, submissions through submitit, what runs in a job, and the driver `arrays`.

Modules import downwards only: answers, commands; element, rendezvous; outcomes, submissions; watch; arrays; detach.
"""
