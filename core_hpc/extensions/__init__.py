"""Functions of the user in parts of the method: which there are, their source, and how they are called.

`points.py` has the signatures, `sources.py` the files, and `workers.py` calls the functions in
processes that are killed at a time limit. core_hpc/README.md describes them for users.
"""
