"""core_hpc: collaborative reasoning via cross teaching (CORE, arXiv 2601.21600) on a cluster or one machine."""

__version__ = "0.1.0"
