"""core_hpc: collaborative reasoning via cross teaching (CORE, arXiv 2601.21600) on a cluster or one machine."""

import sys

__version__ = "0.1.0"
OLDEST_PYTHON = (3, 11)

if sys.version_info < OLDEST_PYTHON:  # before any other module, because an older Python cannot read some of them
    sys.exit(
        "error: core_hpc {} needs Python {}.{} or newer, but this is Python {}.{} ({}). Load a newer Python (on a "
        "cluster often: module avail python), then make the environment with it: python3.{} -m venv .venv".format(
            __version__, *OLDEST_PYTHON, *sys.version_info[:2], sys.executable, OLDEST_PYTHON[1]
        )
    )
